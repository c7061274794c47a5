"""What goes over the wire as JSON, for OpenAPI and for clients."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Every error, whatever the status."""

    error: ErrorDetail


class MaskUsed(BaseModel):
    """The version a reference meant when the request was resolved."""

    name: str
    version: int
    digest: str


class CascadeUsed(MaskUsed):
    """Likewise of a cascade; `experts` are the picked ones of every row, from 1, null where all ran."""

    mode: str
    experts: list[int] | None


class EmbedJson(BaseModel):
    """Images as base64 or data URIs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"images": ["iVBORw0KGgo..."]}]})

    images: list[str]


class EmbedAnswer(BaseModel):
    """Pooled, unnormalised features of every image, in order; fused ones of a cascade."""

    model: str
    space: str
    mask: MaskUsed | None
    cascade: CascadeUsed | None
    dimensions: int
    embeddings: list[list[float]]
    warnings: list[str] = []


class Label(BaseModel):
    """What a classifier says of one image: the most probable class, and classes in order of probability."""

    index: int
    label: str
    probs: list[float]
    classes: list[str]
    num_classes: int


class ClassifyAnswer(BaseModel):
    """vLLM's shape; beside it what the vectors went through, and their space."""

    object: Literal["list"] = "list"
    model: str
    space: str
    mask: MaskUsed | None
    cascade: CascadeUsed | None
    data: list[Label]
    warnings: list[str] = []


class Written(BaseModel):
    """A version that an upload or a rollback made current."""

    name: str
    version: int
    digest: str
    bytes: int
    warnings: list[str]


class MaskPlace(BaseModel):
    """A mask that a version needs and a version that holds it; no name where the caller's key may not see it."""

    digest: str
    name: str | None
    version: int | None


class VersionInfo(BaseModel):
    """One version; `parent` is the mask that its file is coded against."""

    version: int
    digest: str
    bytes: int
    uploaded: str
    vectors: str | None = None
    parent: MaskPlace | None = None


class CurrentVersion(BaseModel):
    version: int
    digest: str


class MaskInfo(BaseModel):
    """One mask. `notes` are by version, of those that have some; all but versions, aliases and notes is the current
    version's: `vectors`, the hash of what makes its vectors, `space`, which they are in whole and as floats,
    `metadata`, `density` (fraction ON by tensor) and `warnings`.
    """

    name: str
    current: CurrentVersion
    versions: list[VersionInfo]
    aliases: dict[str, int]
    notes: dict[str, dict[str, Any]]
    vectors: str
    space: str
    metadata: dict[str, Any]
    density: dict[str, float]
    warnings: list[str]


class CascadeInfo(BaseModel):
    """One cascade; all but versions and aliases is the current one's. `masks` are the root, then the experts.

    `modes` are those it can run in, with the components of their embeddings; `spaces` those of their vectors, whole
    and as floats, and `space` that of the default mode.
    """

    name: str
    current: CurrentVersion
    versions: list[VersionInfo]
    aliases: dict[str, int]
    vectors: str
    space: str
    spaces: dict[str, str]
    metadata: dict[str, Any]
    masks: list[MaskPlace]
    fusion: str
    mode: str
    modes: dict[str, int]


class MaskItem(BaseModel):
    name: str
    current: CurrentVersion
    versions: int


class MaskList(BaseModel):
    """A page of names in order; `next` is the `after` of the following page."""

    data: list[MaskItem]
    next: str | None


class AliasSet(BaseModel):
    """`name@alias` means this version."""

    name: str
    alias: str
    version: int
    warnings: list[str]


NOTES_EXAMPLE = {"preference": {"prefers": "photos@3", "over": "root", "won": 21, "of": 30, "p": 0.043}}


class Noted(BaseModel):
    """What stands beside a version now."""

    name: str
    version: int
    notes: dict[str, Any]


class GalleryPicture(BaseModel):
    """A picture of the operator's; `label` is the folder that it lies in."""

    id: str
    label: str | None


class GalleryList(BaseModel):
    """A page of pictures; `unreadable` are files that are no pictures, as far as anybody has looked."""

    data: list[GalleryPicture]
    next: str | None
    total: int
    unreadable: int


class MapRequest(BaseModel):
    """Pictures of the gallery by id, or vectors as base64 of little-endian float32, as `/v1/embeddings` has them."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"vectors": ["AACAPwAAAAA="]}]})

    ids: list[str] | None = Field(None, max_length=2000)
    vectors: list[str] | None = Field(None, max_length=2000)
    clusters: int = Field(8, ge=1, le=20, strict=True)
    neighbours: int = Field(12, ge=1, le=50, strict=True)


class MapProgress(BaseModel):
    """So many of the pictures are embedded: the same request again goes on."""

    object: Literal["map.progress"] = "map.progress"
    embedded: int
    of: int


class MapAnswer(BaseModel):
    """Row by row, of pictures in the order of `ids`: a place within 0 to 1, a cluster, rows that are near."""

    object: Literal["map"] = "map"
    ids: list[str]
    places: list[list[float]]
    clusters: list[int]
    neighbours: list[list[int]]
    method: Literal["tsne", "pca"]


class SetCurrent(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": 1}]})

    version: int = Field(ge=1, le=999_999_999, strict=True)


class OpenAIEmbedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | list[int] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class OpenAIAnswer(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    space: str
    usage: Usage


class OpenAIModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    space: str | None


class OpenAIModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIModel]

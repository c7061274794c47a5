"""Everything a server can be told: flags of `smn serve`, or `SMN_` variables. Nothing else reads the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec

MIB = 2**20
Names = Annotated[list[str], NoDecode]


class Settings(BaseSettings):
    """One server process. A list is written with commas; sizes are bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="SMN_", extra="ignore", frozen=True, env_ignore_empty=True)

    registry: str = Field("registry", description="Folder, or redis:// URL, that holds the masks.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    preload: Names = Field([], description="References that are resident before the server is ready.")
    pin: Names = Field(
        [], description="References that stay in host memory whatever the budget; a name through uploads and rollbacks."
    )

    backbone: str = Field("resnet50", description="timm model name.")
    weights: Path | None = Field(None, description="safetensors or weights_only checkpoint; timm's pretrained weights.")
    model_arg: Names = Field([], description="Extra create_model arguments, KEY=VALUE.")
    image_size: int | None = Field(None, ge=1, description="Side of the input in pixels.")
    mean: str | None = Field(None, description="Pixel mean, one or three numbers.")
    std: str | None = Field(None, description="Pixel deviation, one or three numbers.")
    crop_pct: float | None = Field(None, description="Share of the shorter side that is seen; 1 cuts nothing off it.")
    device: str = Field("auto", description="cpu, cuda, cuda:1; auto takes a GPU where there is one.")
    dtype: str = Field("float32", description="float32, bfloat16 or float16.")

    on: str = Field("here", pattern="here|ray", description="here: this process; ray: a Ray cluster (extra ray).")
    replicas: int = Field(
        1, ge=1, description="On Ray: replicas, each with an engine; the fewest when they are scaled."
    )
    max_replicas: int = Field(0, ge=0, description="On Ray: replicas under load; 0 does not scale.")
    replica_cpus: float = Field(1.0, ge=0, description="On Ray: processors that a replica reserves.")
    replica_gpus: float = Field(0.0, ge=0, description="On Ray: GPUs, or a part of one, that a replica reserves.")
    ingresses: int = Field(1, ge=1, description="On Ray: processes that take requests and decode.")

    slots: int = Field(0, ge=0, description="Masks whose weights are resident at once; 0: as many as slot_bytes holds.")
    slot_bytes: int = Field(2048 * MIB, ge=MIB, description="Memory for slots, each as large as the maskable weights.")
    batch_size: int = Field(32, ge=1, description="Images a forward.")
    threads: int = Field(0, ge=0, description="torch's threads; 0 takes torch's default.")
    decode_workers: int = Field(
        0, ge=0, description="Threads that decode images and check uploads; 0: one a core, at least 2, at most 8."
    )
    cache_bytes: int = Field(1024 * MIB, ge=MIB, description="Host memory for masks that are not in a slot.")
    queue_images: int = Field(
        512, ge=1, description="Images admitted at once, from before decode to the answer; then 429."
    )

    max_body_bytes: int = Field(64 * MIB, ge=1024, description="Largest request body; then 413.")
    max_pixels: int = Field(51_000_000, ge=1, description="Most pixels of one image; then 422.")
    max_images: int = Field(64, ge=1, description="Most images of one request; then 413.")
    timeout_ms: int = Field(30_000, ge=1, description="Deadline of a request; X-Timeout-Ms may shorten it.")
    drain_s: float = Field(20.0, ge=0, description="Longest wait for work in flight after SIGTERM.")

    api_keys: Names = Field([], description="Keys that may embed and read; key=prefix binds one to names.", repr=False)
    admin_keys: Names = Field([], description="Keys that may change masks too.", repr=False)
    insecure: bool = Field(False, description="Listen beyond loopback without an admin key.")
    log_format: str = Field("json", pattern="json|console", description="Log lines as JSON or for people.")
    otlp_endpoint: str | None = Field(
        None, description="Collector that traces go to over OTLP/HTTP, http://host:4318; needs the extra otel."
    )

    @field_validator("preload", "pin", "model_arg", "api_keys", "admin_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return json.loads(value) if value.startswith("[") else [part for part in value.split(",") if part]
        return value

    @property
    def most_images(self) -> int:
        """Of one request: no more than are admitted at once, or it would be told to come again for ever."""
        return min(self.max_images, self.queue_images)

    @property
    def decoders(self) -> int:
        """Threads that decode: more than cores bring little and slow forwards (docs/decisions.md)."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
        return self.decode_workers or min(8, max(2, cores))

    def spec(self) -> BackboneSpec:
        """The backbone these settings name.

        Raises:
            InvalidArgument: a model argument, mean or std that cannot be read.
        """
        from smn_core.verbs.options import numbers, parse_model_args

        return BackboneSpec(
            name=self.backbone,
            weights=self.weights,
            args=parse_model_args(self.model_arg),
            image_size=self.image_size,
            mean=numbers("mean", self.mean),
            std=numbers("std", self.std),
            crop_pct=self.crop_pct,
            device=self.device,
            dtype=self.dtype,
        )


def secret(text: str | None) -> str | None:
    """A key as it was given; `env:NAME` is what the environment variable NAME holds.

    Raises:
        InvalidArgument: it is not set.
    """
    if text is None or not text.startswith("env:"):
        return text
    value = os.environ.get(text.removeprefix("env:"), "")
    if not value:
        raise InvalidArgument(f"--key {text}: that environment variable is not set")
    return value

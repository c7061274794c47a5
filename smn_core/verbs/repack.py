"""The same mask, or the masks of a cascade, in other bytes: `smn repack`. Bits, state, map, head and texts stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from smn_core import codec, tensorfile
from smn_core.backbone import Backbone, load_backbone
from smn_core.cascade.file import FILE_NAME, open_folder, serialise_cascade
from smn_core.errors import InvalidArgument
from smn_core.files import write_bytes
from smn_core.mask import CodedMask, TaskMask
from smn_core.maskfile import read_mask, serialise_mask, with_bits
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained


@dataclass(frozen=True)
class Repacked:
    """Bytes of the whole file, or of all files of a folder, before and after; the digest of the mask or cascade."""

    before: int
    after: int
    digest: str


def repack(spec: BackboneSpec, file: Path, out: Path, codec_name: str) -> Repacked:
    """Write a mask under another codec, or a cascade's folder with all its masks.

    The backbone is loaded where one of the codecs needs its weights. A cascade names its masks by their digests, so its
    file is written anew with theirs; what it makes of images stays the same, and its space too.

    Raises:
        InvalidArgument: smn-mask/1 does not have the codec; a cascade is to be written over itself.
        InvalidMask, InvalidCascade, WrongBackbone: a file cannot be read, or was made for other weights.
    """
    require_codec(codec_name)
    if file.is_dir():
        return _repack_folder(spec, file, out, codec_name)
    mask = read_mask(file)
    made = serialise_mask(*_with_backbone(spec, mask, file, codec_name))
    before = file.stat().st_size
    write_bytes(out, made)
    return Repacked(before, len(made), tensorfile.digest_of(made))


def require_codec(name: str) -> None:
    """Raise InvalidArgument unless smn-mask/1 has the codec."""
    if name not in codec.CODECS:
        raise InvalidArgument(f"--codec {name}: smn-mask/1 has {', '.join(codec.CODECS)}")


def _with_backbone(
    spec: BackboneSpec, mask: TaskMask, file: Path, codec_name: str
) -> tuple[TaskMask, str, Backbone | None]:
    """The mask with its bits, its new codec, and its backbone where one of its codecs needs that."""
    if not isinstance(mask, CodedMask) and codec_name != codec.CONTEXT:
        return mask, codec_name, None
    backbone = load_backbone(as_trained(spec, mask, file))
    return with_bits(mask, backbone), codec_name, backbone


def _repack_folder(spec: BackboneSpec, folder: Path, out: Path, codec_name: str) -> Repacked:
    if out.resolve() == folder.resolve():
        raise InvalidArgument(f"--out {out} is the cascade itself: give another folder")
    found = open_folder(folder)
    masks = dict(zip(found.files, found.masks(), strict=True))
    first, root = next(iter(masks.items()))
    coded = next((mask for mask in masks.values() if isinstance(mask, CodedMask)), root)
    _, _, backbone = _with_backbone(spec, coded, first, codec_name)
    out.mkdir(parents=True, exist_ok=True)
    digests, after = dict[str, str](), 0
    for file, mask in masks.items():
        made = serialise_mask(with_bits(mask, backbone) if backbone is not None else mask, codec_name, backbone)
        write_bytes(out / file.name, made)
        digests[str(mask.digest)], after = tensorfile.digest_of(made), after + len(made)
    cascade = found.cascade
    experts = tuple(digests[digest] for digest in cascade.experts)
    made = serialise_cascade(replace(cascade, root=digests[cascade.root], experts=experts))
    write_bytes(out / FILE_NAME, made)
    before = sum(file.stat().st_size for file in (*masks, folder / FILE_NAME))
    return Repacked(before, after + len(made), tensorfile.digest_of(made))

"""The same mask in other bytes: `smn repack`. Bits, state, map, head and texts stay what they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smn_core import codec, tensorfile
from smn_core.backbone import Backbone, load_backbone
from smn_core.errors import InvalidArgument
from smn_core.files import write_bytes
from smn_core.mask import CodedMask
from smn_core.maskfile import read_file, serialise_mask, with_bits
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained


@dataclass(frozen=True)
class Repacked:
    """Bytes of the whole file before and after, and the new file's digest."""

    before: int
    after: int
    digest: str


def repack(spec: BackboneSpec, file: Path, out: Path, codec_name: str) -> Repacked:
    """Write a mask under another codec. The backbone is loaded where one of the two codecs needs its weights.

    Raises:
        InvalidArgument: smn-mask/1 does not have the codec.
        InvalidMask, WrongBackbone: the file cannot be read, or was made for other weights than those named.
    """
    require_codec(codec_name)
    data, mask = read_file(file)
    backbone: Backbone | None = None
    if isinstance(mask, CodedMask) or codec_name == codec.CONTEXT:
        backbone = load_backbone(as_trained(spec, mask, file))
        mask = with_bits(mask, backbone)
    made = serialise_mask(mask, codec_name, backbone)
    write_bytes(out, made)
    return Repacked(len(data), len(made), tensorfile.digest_of(made))


def require_codec(name: str) -> None:
    """Raise InvalidArgument unless smn-mask/1 has the codec."""
    if name not in codec.CODECS:
        raise InvalidArgument(f"--codec {name}: smn-mask/1 has {', '.join(codec.CODECS)}")

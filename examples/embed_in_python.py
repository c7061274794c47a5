"""Embed images through a mask in your own process, without a server.

.venv/bin/python examples/embed_in_python.py /tmp/smn-example        # after train_on_a_folder.py
"""

import sys
from pathlib import Path

import torch

from smn_core.backbone import load_backbone
from smn_core.engine import Engine, Segment
from smn_core.images import ImageReader, decode
from smn_core.maskfile import read_mask
from smn_core.spec import BackboneSpec


def main(folder: Path) -> None:
    # The engine owns the one copy of the backbone's weights; a mask changes what a forward reads, never that copy.
    spec = BackboneSpec("test_vit", weights=folder / "backbone.safetensors", image_size=32, device="cpu")
    engine = Engine(load_backbone(spec), slots=2)

    # `prepare` checks that the mask was made for these weights, and refuses it otherwise.
    mask = read_mask(folder / "photos.smn", engine.backbone.layout)
    for warning in engine.prepare(mask):
        print(f"warning: {warning}", file=sys.stderr)

    # The reader makes of a picture what the server makes of it, so the embeddings are the server's.
    reader = ImageReader(engine.backbone.preprocess)
    paths = sorted((folder / "photos").iterdir())[:4]
    x = torch.stack([reader.tensor(decode(path.read_bytes())) for path in paths])

    # One batch may mix masks: here the first rows go through the untouched backbone, the others through the mask.
    done = engine.embed(torch.cat([x, x]), [Segment(None, 0, len(x)), Segment(mask.digest, len(x), 2 * len(x))])
    root, masked = done.embeddings[: len(x)], done.embeddings[len(x) :]
    for path, similarity in zip(paths, torch.cosine_similarity(root, masked), strict=True):
        print(f"{path.name}: cosine of embeddings with and without the mask {similarity:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Learn a mask from a folder of images, without labels.

    .venv/bin/python examples/train_on_a_folder.py /tmp/smn-example

It takes seconds: the images are scikit-learn's digits, the backbone is a toy with random weights. For your own images
and a real backbone the two lines at the end become one command, and timm brings the weights:

    smn train --data photos/ --recipe small-vit --backbone vit_tiny_patch16_224 --out photos.smn
"""

import subprocess
import sys
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

# The command that lies beside this Python, so that no activated environment is needed.
SMN = Path(sys.executable).parent / "smn"


def main(folder: Path, *more: str) -> None:
    # Any folder of images will do, in subfolders or not: learning with SwAV uses no labels.
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for number, digit in enumerate(load_digits().images[:200]):
        image = Image.fromarray((digit * 15).astype("uint8")).resize((32, 32))
        image.convert("RGB").save(folder / "photos" / f"{number:03}.png")

    # A mask belongs to one set of weights, by their fingerprint: whoever uses it later names the same file.
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    save_file(model.state_dict(), folder / "backbone.safetensors")

    # FILE.run/ beside the mask has the checkpoint: `--resume` goes on where a run stopped.
    backbone = ["--backbone", "test_vit", "--weights", folder / "backbone.safetensors", "--image-size", "32"]
    train = ["train", "--data", folder / "photos", "--out", folder / "photos.smn", "--recipe", "tiny", "--overwrite"]
    subprocess.run([SMN, *train, *backbone, *more], check=True)
    subprocess.run([SMN, "inspect", folder / "photos.smn"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])  # what follows the folder goes to `smn train`

"""Image bytes -> normalised tensor [3,H,W]. The same code serves and evaluates.

Up to the pixels it is `pixels.py`, which the server runs in processes without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from smn_core.containers import MAX_PIXELS
from smn_core.pixels import PixelReader, decode, draft_side_px

__all__ = ["MAX_PIXELS", "ImageReader", "decode", "draft_side_px"]


class ImageReader:
    """Image bytes -> float32 [3,H,W], normalised, for one backbone. Safe to call from several threads.

    Args:
        preprocess: timm's `input_size, mean, std, interpolation, crop_pct, crop_mode`.
        max_pixels: images with more are refused from their header.
    """

    def __init__(self, preprocess: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> None:
        self._read = PixelReader(preprocess, max_pixels)
        self._mean, self._std = (torch.tensor(preprocess[key]).view(3, 1, 1) for key in ("mean", "std"))
        self.input_px = self._read.input_px

    def __call__(self, data: bytes) -> Float32[Tensor, "3 h w"]:
        """Decode, resize, crop and normalise.

        Raises:
            InvalidImage, ImageTooLarge: as `decode`.
        """
        return self.normalise(np.asarray(self._read(data))[None])[0]

    def tensor(self, image: Image.Image) -> Float32[Tensor, "3 h w"]:
        """The model input of an image that is already RGB."""
        return self.normalise(np.asarray(self._read.fit(image))[None])[0]

    def normalise(self, pixels: UInt8[ndarray, "n h w 3"]) -> Float32[Tensor, "n 3 h w"]:
        """The model input of images that have been decoded, resized and cropped; bit for bit as timm makes it."""
        x = torch.empty(len(pixels), 3, *pixels.shape[1:3], dtype=torch.float32)
        x.numpy()[...] = pixels.transpose(0, 3, 1, 2)
        return x.div_(255).sub_(self._mean).div_(self._std)

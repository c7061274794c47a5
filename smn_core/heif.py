"""HEIC photos, where pillow-heif is installed: the extra `heic`."""

from __future__ import annotations

KIND = "HEIF"
NEEDED = "HEIC photos need pillow-heif, of the extra heic: uv pip install -e '.[heic]' in a clone"


def teach_pillow() -> bool:
    """Let Pillow read HEIF; whether it does now.

    On one thread, since images are decoded side by side already, and without the small pictures that a file may have
    beside its own: a thumbnail has other pixels than the photo.
    """
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True

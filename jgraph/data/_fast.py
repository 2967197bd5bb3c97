"""JPEG decoding and resizing by faster libraries where they are installed.

Each function returns None where it can't do what Pillow does; Pillow then does it, or says what is
wrong with the file. What is returned equals Pillow's pixels within 1 of 255 levels (see the tests).

Shape suffixes: H height, W width, S side of a square, 3 channels (R, G, B).
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jgraph._preprocessing import Interpolation


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


simplejpeg = _optional("simplejpeg")
cv2 = None if simplejpeg else _optional("cv2")
resizer = _optional("cykooz_resizer")

# Pillow's bicubic is the cubic with a = -1/2, which others name after Catmull and Rom.
_FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}
_WIDEST = 3  # pixels that the widest of them reaches to each side


def libraries() -> str:
    """Return what decodes and what resizes JPEGs here, such as `"simplejpeg, Pillow"`."""
    decoder = "simplejpeg" if simplejpeg else "OpenCV" if cv2 else "Pillow"
    return f"{decoder}, {'cykooz.resizer' if resizer else 'Pillow'}"


def decode_jpeg(encoded: bytes, image: Image.Image) -> UInt8[np.ndarray, "h w 3"] | None:
    """Decode a JPEG that Pillow has opened, and perhaps drafted, but not decoded.

    Args:
        encoded: the whole file.
        image: its mode decides whether it can be done here, its size how small it gets.

    Returns:
        RGB, [H, W, 3] of `image.size`; None where Pillow has to decode.
    """
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    width, height = image.size
    if simplejpeg:
        try:
            # Of what libjpeg can scale to, the smallest that isn't smaller than this.
            pixels = simplejpeg.decode_jpeg(encoded, min_height=height, min_width=width)
        except ValueError:
            return None
    elif cv2:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    else:
        return None
    return pixels if pixels is not None and pixels.shape == (height, width, 3) else None


def resize(
    rgb: Image.Image | UInt8[np.ndarray, "h w 3"],
    side: int,
    interpolation: Interpolation,
    box: tuple[float, float, float, float],
) -> UInt8[np.ndarray, "s s 3"] | None:
    """Resize a part of a picture to a square.

    Args:
        rgb: the picture.
        side: S, in pixels.
        interpolation: the filter, which widens where the picture shrinks.
        box: left, top, right and bottom of the part, in pixels.

    Returns:
        RGB, [S, S, 3]; None where Pillow has to resize.
    """
    if not resizer:
        return None
    left, top, right, bottom = box
    width, height = rgb.size if isinstance(rgb, Image.Image) else rgb.shape[1::-1]
    # Each pass rounds and clips, so their order, which is Pillow 13's, shows at sharp edges.
    rows_first = height - side > max(0, 2 * (width - side))
    reach = _WIDEST * max(1.0, (bottom - top) / side)
    first = max(0, math.floor(top - reach))
    pixels = np.asarray(rgb)[first : math.ceil(bottom + reach)]
    height, width, _ = pixels.shape
    structs = resizer.structs
    algorithm = structs.ResizeAlg.convolution(structs.FilterType[_FILTERS[interpolation]])

    def shrink(source: Any, width: int, height: int, *box: int | float) -> Any:
        target = structs.ImageData(width, height, structs.PixelType.U8x3)
        options = structs.ResizeOptions(algorithm, crop_box=structs.CropBox(*box))
        # One a call: threads can't share it, and it costs nothing.
        resizer.Resizer().resize(source, target, options)
        return target

    whole = structs.ImageData(width, height, structs.PixelType.U8x3, pixels.tobytes())
    top, tall, wide = top - first, bottom - top, right - left
    if rows_first:
        half = shrink(whole, width, side, 0, top, width, tall)
        square = shrink(half, side, side, left, 0, wide, side)
    else:
        half = shrink(whole, side, height, left, 0, wide, height)
        square = shrink(half, side, side, 0, top, side, tall)
    return np.frombuffer(bytearray(square.get_buffer()), np.uint8).reshape(side, side, 3)

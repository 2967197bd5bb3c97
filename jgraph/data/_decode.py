"""One picture, from a file of any common kind to uint8 RGB of the network's size.

Shape suffixes: H height, W width, S side of the network's square, 3 channels (R, G, B).
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jgraph._errors import PictureError
from jgraph._preprocessing import Preprocessing
from jgraph.data import _fast

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")

PictureSource = str | Path | bytes | Image.Image | np.ndarray

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")

# Pillow's readers let these through on damaged files, beside its own OSError.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIDEWAYS = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves this many times the pixels
# per side that the resize needs; the result is then the same within rounding (see the test).
_DRAFT_MARGIN = 3.0

_METADATA_WARNINGS = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)
_SIZE_WARNINGS = ("ignore", None, Image.DecompressionBombWarning, None, 0)


def decode_picture(
    source: PictureSource, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "s s 3"]:
    """Decode a picture to the square the network sees, not yet normalised.

    The short side becomes `preprocessing.resize_size` pixels long and the centre is cut out. EXIF
    rotation is applied, transparency is laid on white, of an animation the first frame is taken;
    grey, palette, CMYK, 1-bit and 16-bit pictures become RGB with 8 bits.

    Args:
        source: a file's path or its bytes, a Pillow picture, or an array: uint8, uint16 (full
            scale 65535), bool or floating (full scale 1), [H, W], [H, W, 1], [H, W, 3] or
            [H, W, 4].
        preprocessing: size, crop and interpolation; mean and std are left to the graph.

    Returns:
        RGB, uint8 [S, S, 3] with S = `preprocessing.image_size`.

    Raises:
        PictureError: the file is missing, empty, broken, cut short, too large to be decoded
            safely, or not a picture; the message names it.

    Example:
        >>> import numpy as np
        >>> from jgraph._preprocessing import Preprocessing
        >>> p = Preprocessing(4, 4, "bicubic", mean=(127.0,) * 3, std=(128.0,) * 3)
        >>> picture = decode_picture(np.full((9, 6), 200, np.uint8), p)
        >>> picture.shape, int(picture.min()), int(picture.max())
        ((4, 4, 3), 200, 200)
    """
    share = preprocessing.image_size / preprocessing.resize_size

    def centre(width: int, height: int) -> Box:
        side = min(width, height) * share
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    return _render(source, preprocessing, centre)


def augment_picture(
    source: PictureSource, preprocessing: Preprocessing, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """Decode a random part of a picture, at random mirrored: another picture of the same class.

    The part has 0.35 to 1 of the area and sides of ratio 3/4 to 4/3; half of the time left and
    right are exchanged.

    Args:
        source: as for `decode_picture`.
        preprocessing: size and interpolation.
        rng: what is drawn depends on it and on the picture's size alone.

    Returns:
        RGB, uint8 [S, S, 3] with S = `preprocessing.image_size`.

    Raises:
        PictureError: as for `decode_picture`.

    Source:
        Szegedy et al., Going deeper with convolutions, 2015, section 6 (arXiv:1409.4842), with the
        area's lower end at 0.35: a part of 0.08 often lacks what the picture shows.

    Example:
        >>> import numpy as np
        >>> from jgraph._preprocessing import Preprocessing
        >>> p = Preprocessing(4, 4, "bicubic", mean=(127.0,) * 3, std=(128.0,) * 3)
        >>> augment_picture(np.zeros((9, 6), np.uint8), p, np.random.default_rng(0)).shape
        (4, 4, 3)
    """
    picture = _render(source, preprocessing, lambda width, height: random_box(width, height, rng))
    return np.ascontiguousarray(picture[:, ::-1]) if rng.random() < 0.5 else picture


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Return a random part: 0.35 to 1 of the area, ratio of the sides 3/4 to 4/3."""
    for _ in range(10):
        area = width * height * rng.uniform(0.35, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        part_width, part_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if part_width <= width and part_height <= height:
            left = rng.uniform(0, width - part_width)
            top = rng.uniform(0, height - part_height)
            return left, top, left + part_width, top + part_height
    # A picture far from square has no such part: the largest square, anywhere along it.
    side = min(width, height)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    return left, top, left + side, top + side


def _render(
    source: PictureSource, preprocessing: Preprocessing, choose: Callable[[int, int], Box]
) -> UInt8[np.ndarray, "s s 3"]:
    """Decode, turn upright, and resize the box that `choose(width, height)` returns."""
    name = _name(source)
    side = preprocessing.image_size
    with _named_errors(name), _opened(source, name) as (image, encoded):
        turn = _turn(image)
        box = choose(*(image.size[::-1] if turn in _SIDEWAYS else image.size))
        reduction = _draft(image, min(box[2] - box[0], box[3] - box[1]) / side)
        rgb = None if encoded is None else _fast.decode_jpeg(encoded, image)
        if rgb is None:
            rgb = _to_rgb(image, name)
        if turn is not None:
            rgb = _as_image(rgb).transpose(turn)
        left, top, right, bottom = (edge / reduction for edge in box)
        width, height = rgb.size if isinstance(rgb, Image.Image) else rgb.shape[1::-1]
        box = left, top, min(right, width), min(bottom, height)
        picture = _fast.resize(rgb, side, preprocessing.interpolation, box)
        if picture is not None:
            return picture
        resampling = _RESAMPLING[preprocessing.interpolation]
        return np.array(_as_image(rgb).resize((side, side), resampling, box))


def _as_image(rgb: Image.Image | np.ndarray) -> Image.Image:
    return rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)


@contextlib.contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Turn what Pillow raises on a bad file into a PictureError that names the file."""
    try:
        yield
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        endings = ", ".join(ending[1:] for ending in PICTURE_EXTENSIONS)
        raise PictureError(f"{name} is not a picture of a known kind ({endings})") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} has too many pixels to be decoded safely: {error}") from None
    except _PILLOW_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise PictureError(f"{name} is broken or cut short: {reason}") from error


@contextlib.contextmanager
def _opened(source: PictureSource, name: str) -> Iterator[tuple[Image.Image, bytes | None]]:
    """Open a picture of any source; those of a file aren't decoded yet, and come with its bytes."""
    _hush_pillow()
    if isinstance(source, Image.Image):
        yield source.copy(), None
    elif isinstance(source, np.ndarray):
        yield _from_array(source, name), None
    else:
        encoded = _read(source, name)
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            yield image, encoded


def _hush_pillow() -> None:
    """Silence Pillow's remarks on metadata and size: what matters is raised, naming the file.

    `warnings.catch_warnings` is not safe in threads, so the two narrow filters stay.
    """
    if _METADATA_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    if _SIZE_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def _read(source: str | Path | bytes, name: str) -> bytes:
    """Return the bytes of a picture, which must be there."""
    try:
        encoded = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise PictureError(f"{name} cannot be read: {error.strerror}") from None
    if not encoded:
        raise PictureError(f"{name} is empty (0 bytes)")
    return encoded


def _name(source: PictureSource) -> str:
    """Return what an error message calls the picture."""
    if isinstance(source, bytes):
        return "the picture given as bytes"
    if isinstance(source, np.ndarray):
        return "the picture given as an array"
    if isinstance(source, Image.Image):
        return "the picture given"
    return str(source)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes the picture upright; None without (readable) EXIF orientation."""
    if image.format == "TIFF":
        return None  # Pillow's reader of this format turns the pixels itself
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except _PILLOW_ERRORS:
        # The pixels are whole even where the camera's notes are not.
        return None


def _draft(image: Image.Image, shrink: float) -> float:
    """Have a JPEG decoded smaller where the resize shrinks it anyway; return how much smaller."""
    wanted = max(1.0, shrink / _DRAFT_MARGIN)
    width, height = image.size
    drafted = image.draft(None, (math.ceil(width / wanted), math.ceil(height / wanted)))
    return 1.0 if drafted is None else width / drafted[1][2]


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return the picture with three channels of 8 bits, transparency laid on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image), name))
    if image.mode == "LAB":
        raise PictureError(f"{name} has CIE Lab colours; save it as RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    """Return an array as a Pillow picture."""
    shape = array.shape
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise PictureError(
            f"{name} must have shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(shape)}"
        )
    if len(shape) == 3 and shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(_to_8_bits(array, name)))


def _to_8_bits(array: np.ndarray, name: str) -> np.ndarray:
    """Scale pixels to 0-255: 65535 is full scale for integers beyond 8 bits, 1 for floats."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.floating):
        full_scale, accepted = 1.0, "floating pixels must lie between 0 and 1"
    elif array.dtype in (np.dtype(">u2"), np.dtype("<u2"), np.int32):
        full_scale, accepted = 65535.0, "integer pixels beyond 8 bits must lie between 0 and 65535"
    else:
        raise PictureError(
            f"{name} must have pixels of type uint8, uint16, bool or floating, got {array.dtype}"
        )
    low, high = float(array.min()), float(array.max())
    if not 0 <= low <= high <= full_scale:
        raise PictureError(f"{name}: {accepted}, got {low:g} to {high:g}")
    return np.rint(array.astype(np.float64) * (255 / full_scale)).astype(np.uint8)

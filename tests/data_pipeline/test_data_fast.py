"""The fast decoder and resizer give Pillow's pixels, and leave to Pillow what they can't do."""

import importlib
import io

import numpy as np
import pytest
from PIL import Image

from jgraph._errors import PictureError
from jgraph._preprocessing import Preprocessing
from jgraph.data import _fast, augment_picture, decode_picture

DECODERS = ("simplejpeg", "cv2")
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SQUARE = Preprocessing(56, 64, "bicubic", ZERO, ONE)


@pytest.fixture(params=[*DECODERS, "resizer"])
def fast(request, monkeypatch):
    """One library at a time; what each is for."""
    name = request.param if request.param in DECODERS else "cykooz_resizer"
    library = importlib.import_module(name)
    for name in (*DECODERS, "resizer"):
        monkeypatch.setattr(_fast, name, library if name == request.param else None)
    return request.param


@pytest.fixture
def plain(fast, monkeypatch):
    """Decode by Pillow alone, beside what is under test."""

    def decode(call, *arguments):
        with monkeypatch.context() as without:
            for name in (*DECODERS, "resizer"):
                without.setattr(_fast, name, None)
            return call(*arguments)

    return decode


def photograph(height, width):
    """Return pixels with smooth parts, hard edges at the ends of the scale, and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = np.stack([np.sin(9 * x + y), np.cos(5 * x - 8 * y), np.sin(15 * x * y)], axis=-1)
    pixels = 127 + 110 * waves + rng.normal(0, 8, (height, width, 3))
    pixels[(x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.04] = (255, 0, 255)
    pixels[:, ::17] = 255
    pixels[::23] = 0
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def jpeg(picture, **options):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **{"quality": 85, **options})
    return stream.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


JPEGS = {
    "4:2:0": {},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "quality 100": {"quality": 100},
    **{f"turned {n}": {"exif": turned(n)} for n in range(2, 9)},
}


@pytest.mark.parametrize("kind", [*JPEGS, "grey", "CMYK", "odd", "large", "tall"])
def test_pixels_are_pillows_within_two_levels(plain, kind):
    sizes = {"odd": (151, 203), "large": (500, 720), "tall": (400, 90)}
    picture = photograph(*sizes.get(kind, (150, 200)))
    modes = {"grey": "L", "CMYK": "CMYK"}
    data = jpeg(picture.convert(modes.get(kind, "RGB")), **JPEGS.get(kind, {}))
    found = decode_picture(data, SQUARE)
    expected = plain(decode_picture, data, SQUARE)
    assert found.dtype == np.uint8
    assert found.shape == (56, 56, 3)
    assert found.flags.writeable
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert np.ptp(expected) > 200  # so that something would show


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(150, 200), (30, 41)])
def test_random_parts_by_any_filter_are_pillows(plain, interpolation, size):
    data = jpeg(photograph(*size))
    p = Preprocessing(56, 64, interpolation, ZERO, ONE)
    for seed in range(4):
        found = augment_picture(data, p, np.random.default_rng(seed))
        expected = plain(augment_picture, data, p, np.random.default_rng(seed))
        assert np.abs(found.astype(int) - expected).max() <= 2


def test_the_fast_path_is_taken_where_it_can_be(fast):
    whole, grey = jpeg(photograph(150, 200)), jpeg(photograph(150, 200).convert("L"))
    for data in (whole, grey):
        image = Image.open(io.BytesIO(data))
        if fast == "resizer":
            assert (
                _fast.resize(image.convert("RGB"), 8, "bicubic", (0.0, 0.0, 9.0, 9.0)) is not None
            )
        else:
            assert _fast.decode_jpeg(data, image) is not None


@pytest.mark.parametrize("fast", ["simplejpeg"], indirect=True)  # the others reduce nothing
def test_reduced_decoding_is_that_of_pillow(fast, plain):
    data = jpeg(photograph(600, 801))
    for reduction in (2, 4, 8):
        image = Image.open(io.BytesIO(data))
        image.draft(None, (801 // reduction, 600 // reduction))
        found = _fast.decode_jpeg(data, image)
        assert found is not None
        assert found.shape[1] == -(-801 // reduction)
        assert np.abs(found.astype(int) - np.asarray(image)).max() <= 2


def broken():
    data = jpeg(photograph(150, 200))
    half = len(data) // 2
    return {
        "cut short": data[:half],
        "without an end": data[:-2],
        "header alone": data[:300],
        "other bytes within": data[:half] + bytes(200) + data[half + 200 :],
        "ended early": data[:half] + b"\xff\xd9",
        "more behind it": data + b"more" * 9,
    }


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("what", broken())
def test_damaged_files_do_what_they_do_with_pillow(plain, what):
    data = broken()[what]

    def outcome():
        try:
            return decode_picture(data, SQUARE)
        except PictureError as error:
            return str(error)

    found, expected = outcome(), plain(outcome)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert not isinstance(found, str)
        assert np.abs(found.astype(int) - expected).max() <= 2


def test_libraries_are_named(fast):
    names = {
        "simplejpeg": "simplejpeg, Pillow",
        "cv2": "OpenCV, Pillow",
        "resizer": "Pillow, cykooz.resizer",
    }
    assert _fast.libraries() == names[fast]

"""Decoding every kind of picture, and one clear sentence for what is none."""

import io
import itertools
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jgraph._errors import PictureError
from jgraph._preprocessing import Interpolation, Preprocessing
from jgraph.data import augment_picture, decode_picture


def square(
    image_size: int, resize_size: int | None = None, interpolation: Interpolation = "bicubic"
) -> Preprocessing:
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Preprocessing(image_size, resize_size or image_size, interpolation, zero, one)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """Return a picture of slow waves, uint8 [H, W, 3], different in every corner and channel."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = np.stack([np.sin(3 * x + y), np.cos(2 * x - 4 * y), np.sin(5 * x * y + 1)], axis=-1)
    return np.rint(127.5 + 110 * waves).astype(np.uint8)


def quarters() -> np.ndarray:
    """Return 16 x 16 pixels in four plain quarters: red, green / blue, white."""
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    return colours.repeat(8, axis=0).repeat(8, axis=1)


def test_geometry_is_short_side_then_centre():
    # 512 -> 256 and 224 of 256 in the middle: whole numbers, so Pillow's two steps are the same.
    pixels = smooth(512, 768)
    resized = Image.fromarray(pixels).resize((384, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((80, 16, 304, 240)))
    np.testing.assert_array_equal(decode_picture(pixels, square(224, 256)), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_interpolation_is_the_one_asked_for(interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    resampling = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(pixels).resize((24, 24), resampling))
    found = decode_picture(pixels, square(24, None, interpolation))
    np.testing.assert_allclose(found, expected.astype(int), atol=1)  # 0 by Pillow, 1 by faster code


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 7), (17, 300)])
def test_any_shape_becomes_the_square(shape):
    picture = decode_picture(np.full((*shape, 3), (10, 20, 30), np.uint8), square(8, 10))
    np.testing.assert_array_equal(picture, np.broadcast_to([10, 20, 30], (8, 8, 3)))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "TIFF"])
def test_file_formats_without_loss(tmp_path, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(quarters()), kind, **options)
    path = tmp_path / "picture"  # the content decides, not the name
    path.write_bytes(data)
    for source in (path, str(path), data, quarters(), Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(decode_picture(source, square(16)), quarters())


@pytest.mark.parametrize("scale", [1, 2, 4, 9])
def test_jpeg_of_any_size_is_that_of_full_decoding(scale):
    # 9 is beyond the margin of reduced decoding; a smooth picture shows shifts and no ringing.
    data = encoded(Image.fromarray(smooth(224 * scale, 300 * scale + 5)), "JPEG", quality=95)
    whole = np.asarray(Image.open(io.BytesIO(data)))
    difference = decode_picture(data, square(112)).astype(int) - decode_picture(whole, square(112))
    assert np.abs(difference).max() <= 1


def test_large_jpegs_of_fine_detail_keep_their_look():
    # Noise is the worst case for reduced decoding: every coefficient that it drops is there.
    pixels = np.random.default_rng(0).integers(0, 256, (1600, 2000, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), "JPEG", quality=95)
    whole = np.asarray(Image.open(io.BytesIO(data)))
    difference = decode_picture(data, square(64)).astype(float) - decode_picture(whole, square(64))
    assert np.abs(difference).mean() < 1.0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    # What the camera stores for an upright picture, by the EXIF standard's table:
    # row 0 and column 0 of the stored pixels lie at (top, left), (top, right), (bottom, right) …
    upright = quarters()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    for source in (data, Image.open(io.BytesIO(data))):
        picture = decode_picture(source, square(16)).astype(int)
        assert np.abs(picture - upright).max() <= 4  # JPEG's rounding


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_turned_oblong_is_cropped_in_its_upright_centre(kind):
    upright = smooth(300, 180)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(upright.transpose(1, 0, 2)[::-1])
    data = encoded(Image.fromarray(stored), kind, exif=exif)
    np.testing.assert_array_equal(
        decode_picture(data, square(90, 120)), decode_picture(upright, square(90, 120))
    )


def test_a_broken_orientation_does_not_lose_the_picture():
    data = encoded(Image.fromarray(quarters()), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode_picture(data, square(16)), quarters())


def test_grey_and_one_bit():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.repeat(ramp[:, :, None], 3, axis=2)
    data = encoded(Image.fromarray(ramp), "PNG")
    np.testing.assert_array_equal(decode_picture(data, square(16)), expected)
    bits = encoded(Image.fromarray(ramp > 127), "PNG")
    assert Image.open(io.BytesIO(bits)).mode == "1"
    np.testing.assert_array_equal(decode_picture(bits, square(16)), 255 * (expected > 127))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    pixels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    data = encoded(Image.fromarray(pixels), kind)
    expected = np.rint(pixels / 257).astype(np.uint8)
    np.testing.assert_array_equal(decode_picture(data, square(16))[:, :, 1], expected)


def test_sixteen_bits_a_colour():
    # Pillow writes none: a PNG by hand (16-bit RGB, one plain colour).
    row = b"\0" + struct.pack(">3H", 0xFF00, 0x8000, 0x0100) * 4

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)

    header = struct.pack(">2I5B", 4, 4, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row * 4)), chunk(b"IEND", b""))
    picture = decode_picture(b"\x89PNG\r\n\x1a\n" + b"".join(parts), square(4))
    np.testing.assert_array_equal(picture[2, 2], [255, 128, 1])


def test_palette():
    data = encoded(Image.fromarray(quarters()).convert("P", colors=8), "PNG")
    assert Image.open(io.BytesIO(data)).mode == "P"
    picture = decode_picture(data, square(16)).astype(int)
    assert np.abs(picture - quarters()).max() == 0


def test_transparency_lies_on_white():
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, :8] = (200, 0, 100, 255)
    rgba[:, 8:] = (200, 0, 100, 51)  # a fifth: 0.2 of the colour and 0.8 of white
    picture = decode_picture(encoded(Image.fromarray(rgba), "PNG"), square(16))
    np.testing.assert_array_equal(picture[3, 3], [200, 0, 100])
    np.testing.assert_array_equal(picture[3, 12], [244, 204, 224])
    np.testing.assert_array_equal(decode_picture(rgba, square(16)), picture)


def test_transparent_palette_and_grey_lie_on_white():
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    palette.paste(1, (0, 0, 8, 16))
    for transparency in (0, b"\x00\xff"):
        data = encoded(palette, "PNG", transparency=transparency)
        picture = decode_picture(data, square(16))
        np.testing.assert_array_equal(picture[3, 3], [50, 60, 70])
        np.testing.assert_array_equal(picture[3, 12], [255, 255, 255])
    grey = Image.new("LA", (16, 16), (40, 0))
    np.testing.assert_array_equal(decode_picture(encoded(grey, "PNG"), square(4)), 255)
    np.testing.assert_array_equal(decode_picture(grey.convert("La"), square(4)), 255)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind):
    # Cyan ink 100 %, nothing else: no red is reflected.
    data = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), kind)
    picture = decode_picture(data, square(16)).astype(int)
    assert np.abs(picture - [0, 255, 255]).max() <= 3


def test_the_first_picture_of_a_telephone_s_several():
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    shown = decode_picture(data, square(16)).astype(int)
    assert np.abs(shown - [255, 0, 0]).max() <= 3


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode_picture(data, square(16))[8, 8], [255, 0, 0])


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((4, 4), 0.5, np.float32), 128),
        (np.full((4, 4, 1), 1.0), 255),
        (np.full((4, 4, 3), 65535, np.uint16), 255),
        (np.full((4, 4), 257 * 7, np.uint16), 7),
        (np.full((4, 4), 257 * 7, ">u2"), 7),
        (np.ones((4, 4), bool), 255),
        (np.asfortranarray(np.full((4, 4, 3), 9, np.uint8)), 9),
    ],
)
def test_arrays(array, expected):
    np.testing.assert_array_equal(decode_picture(array, square(4)), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"must have shape \[H, W\].* got \[4, 4, 2\]"),
        (np.zeros((0, 4), np.uint8), r"got \[0, 4\]"),
        (np.zeros(4, np.uint8), r"got \[4\]"),
        (np.full((4, 4), 2.0), "floating pixels must lie between 0 and 1, got 2 to 2"),
        (np.full((4, 4), np.nan), "floating pixels must lie between 0 and 1, got nan to nan"),
        (np.full((4, 4), 70_000, np.int32), "must lie between 0 and 65535, got 70000 to 70000"),
        (np.zeros((4, 4), np.complex64), "uint8, uint16, bool or floating, got complex64"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with pytest.raises(PictureError, match="the picture given as an array.*" + message):
        decode_picture(array, square(4))


def test_a_picture_of_pillow_is_left_as_it_was():
    opened = Image.open(io.BytesIO(encoded(Image.fromarray(smooth(900, 900)), "JPEG")))
    decode_picture(opened, square(32))
    assert opened.size == (900, 900)
    with pytest.raises(PictureError, match="the picture given: integer pixels"):
        decode_picture(Image.new("I", (4, 4), -1), square(4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<html>not found</html>", r"is not a picture of a known kind \(jpg, jpeg, .*tiff\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture of a known kind"),
        (encoded(Image.new("LAB", (4, 4)), "TIFF"), "has CIE Lab colours; save it as RGB"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, content, message):
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=r"holiday\.jpg " + message):
        decode_picture(path, square(4))
    with pytest.raises(PictureError, match="the picture given as bytes " + message):
        decode_picture(content, square(4))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PictureError, match=r"gone\.jpg cannot be read: No such file"):
        decode_picture(tmp_path / "gone.jpg", square(4))
    with pytest.raises(PictureError, match="cannot be read: Is a directory"):
        decode_picture(tmp_path, square(4))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_file_cut_short_is_named(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "half.jpg"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(PictureError, match=r"half\.jpg is (broken or cut short|not a picture)"):
        decode_picture(path, square(4))


def bomb(width: int, height: int) -> bytes:
    """Return a small BMP whose header promises width x height pixels."""
    header = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    with pytest.raises(
        PictureError, match=r"has too many pixels to be decoded safely: .*400000000"
    ):
        decode_picture(bomb(20_000, 20_000), square(4))


def test_the_size_at_which_pillow_warns_is_no_warning_here():
    with pytest.raises(PictureError, match="broken or cut short"):
        decode_picture(bomb(10_000, 10_000), square(4))


def test_damaged_bytes_give_a_picture_or_a_picture_error():
    # Whatever a disk or a download does to a file must not end a run with a traceback.
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(smooth(40, 48))
    outcomes = set()
    for kind, _ in itertools.product(("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"), range(60)):
        data = bytearray(
            encoded(picture, kind, exif=exif) if kind != "BMP" else encoded(picture, kind)
        )
        for position in rng.integers(0, min(len(data), 400), 4):
            data[position] = rng.integers(256)
        try:
            outcomes.add(decode_picture(bytes(data), square(8)).shape)
        except PictureError as error:
            outcomes.add(str(error).startswith("the picture given as bytes "))
    assert outcomes == {(8, 8, 3), True}


def test_no_filter_of_warnings_is_added_twice():
    decode_picture(quarters(), square(4))
    before = list(warnings.filters)
    decode_picture(quarters(), square(4))
    assert list(warnings.filters) == before


def test_augmentation_follows_the_generator_alone(tmp_path):
    path = Path(tmp_path / "a.jpg")
    path.write_bytes(encoded(Image.fromarray(smooth(120, 200)), "JPEG"))
    first, again, other = (
        augment_picture(path, square(32), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def positions(height: int, width: int) -> np.ndarray:
    """Return a picture whose red is the column and whose green is the row, over 0-255."""
    y, x = np.mgrid[0 : 255 : height * 1j, 0 : 255 : width * 1j]
    return np.rint(np.stack([x, y, 0 * x], axis=-1)).astype(np.uint8)


def test_augmented_parts_have_the_promised_area_ratio_and_mirroring():
    width, height, mirrored = 300, 240, 0
    pixels = positions(height, width)
    areas, ratios = [], []
    for seed in range(300):
        picture = augment_picture(pixels, square(40), np.random.default_rng(seed)).astype(float)
        # Pixel centres: 39 steps between the first and the last of 40 columns.
        part_width = abs(picture[20, -1, 0] - picture[20, 0, 0]) / 255 * width * 40 / 39
        part_height = (picture[-1, 20, 1] - picture[0, 20, 1]) / 255 * height * 40 / 39
        mirrored += picture[20, -1, 0] < picture[20, 0, 0]
        areas.append(part_width * part_height / (width * height))
        ratios.append(part_width / part_height)
    # The colours are rounded and the filter is short of pixels at the edges: 3 % of leeway.
    assert 0.34 < min(areas) < 0.40
    assert 0.90 < max(areas) < 1.03
    assert 0.72 < min(ratios) < 0.80
    assert 1.25 < max(ratios) < 1.38
    assert 110 < mirrored < 190  # 150 expected, 8.7 the standard deviation


def test_a_strip_is_augmented_by_its_squares():
    pixels = positions(20, 400)
    lefts = set()
    for seed in range(20):
        picture = augment_picture(pixels, square(20), np.random.default_rng(seed)).astype(float)
        assert abs(abs(picture[10, -1, 0] - picture[10, 0, 0]) - 255 * 19 / 400) <= 2
        lefts.add(picture[10, 0, 0])
    assert len(lefts) > 10

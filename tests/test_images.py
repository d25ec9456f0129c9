"""An image file without a single meaning in 8-bit RGB is refused by name: depth, transparency, pictures, orientation.

The bug behind most of these tests: Pillow silently returns the upper eight of sixteen bits, or pixels without their
transparency.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from fastcifar.data import images
from fastcifar.data.images import open_image, open_images
from fastcifar.errors import DataError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 4096, (32, 32, 3)).astype("<u2")  # twelve bits in sixteen, as microscopes write them
RGB = Image.fromarray(PIXELS)
GRAY = RGB.convert("L")
PALETTE = RGB.quantize(64)


def half_transparent() -> Image.Image:
    image = RGB.convert("RGBA")
    alpha = np.full((32, 32), 255, np.uint8)
    alpha[:16] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


HALF = half_transparent()


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


def png(rows: NDArray[Any], colour: int) -> bytes:
    """A PNG of 16 bits a channel."""
    return png_of(32, 32, 16, colour, b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))


def png_of(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(pixels: NDArray[Any], photometric: int = 2, sample_format: int = 1, extra: int | None = None) -> bytes:
    """An uncompressed little-endian TIFF of one strip."""
    height, width, channels = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * channels),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", [0]),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [pixels.nbytes]),
    }
    if extra is not None:
        tags[338] = ("H", [extra])
    tags[339] = ("H", [sample_format] * channels)
    behind = 8 + 2 + 12 * len(tags) + 4
    beside, entries = b"", b""
    long = sum(len(values) * struct.calcsize(kind) for kind, values in tags.values() if len(values) > 2)
    tags[273] = ("I", [behind + long])
    for number, (kind, values) in tags.items():
        packed = struct.pack(f"<{len(values)}{kind}", *values)
        entries += struct.pack("<HHI", number, 3 if kind == "H" else 4, len(values))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", behind + len(beside))
            beside += packed
    start = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return start + entries + bytes(4) + beside + pixels.tobytes()


def with_orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def jpeg2000_of_sixteen_bits() -> bytes:
    """Pillow writes only 8 bits, so that the depth of each channel is changed in the header."""
    content = bytearray(encoded(RGB, "JPEG2000"))
    at = content.index(b"\xff\x4f\xff\x51") + 42
    content[at : at + 9 : 3] = bytes([15, 15, 15])
    return bytes(content)


def sgi(deep: NDArray[Any]) -> bytes:
    header = struct.pack(">hBBHHHHii", 474, 0, 2, 3, 32, 32, 3, 0, 65535)
    return header.ljust(512, b"\0") + deep.transpose(2, 0, 1).astype(">u2").tobytes()


BITS = "has 16 bits a channel, and only 8 are taken"
TRANSPARENT = "transparent"
SEVERAL = "holds 2 pictures: which one is meant"
MODE = "which has no exact 8-bit RGB"
TGA_PALETTE = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 2, 32, 0, 0, 32, 32, 8, 0x20)
TGA_PALETTE += bytes([0, 0, 255, 255, 0, 255, 0, 128]) + bytes([0, 1] * 512)
"""Two colours, of which one is half transparent."""

REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    # more than eight bits
    "png, rgb": ("png", lambda: png(DEEP.reshape(32, -1), 2), BITS),
    "png, gray and alpha": ("png", lambda: png(np.dstack([DEEP[..., 0], DEEP[..., 0] * 0 + 65535]), 4), BITS),
    "png, gray": ("png", lambda: png(DEEP[..., 0], 0), MODE),
    "tiff, rgb": ("tiff", lambda: tiff(DEEP), BITS),
    "tiff, rgba": ("tiff", lambda: tiff(np.dstack([DEEP, DEEP[..., 0] * 0 + 65535]), extra=2), BITS),
    "tiff, gray": ("tif", lambda: encoded(Image.fromarray(DEEP[..., 0]), "TIFF"), MODE),
    "tiff, float": ("tif", lambda: encoded(Image.fromarray(np.zeros((32, 32), np.float32)), "TIFF"), MODE),
    "ppm, highest 65535": ("ppm", lambda: b"P6 32 32 65535\n" + DEEP.astype(">u2").tobytes(), BITS),
    "ppm, highest 1023": ("ppm", lambda: b"P6 32 32 1023\n" + (DEEP // 4).astype(">u2").tobytes(), BITS),
    "ppm, as text": ("ppm", lambda: b"P3 32 32 1023\n" + " ".join(map(str, (DEEP // 4).ravel())).encode(), BITS),
    "pgm": ("pgm", lambda: b"P5 32 32 65535\n" + DEEP[..., 0].astype(">u2").tobytes(), MODE),
    "sgi": ("sgi", lambda: sgi(DEEP), BITS),
    "jpeg 2000": ("jp2", jpeg2000_of_sixteen_bits, BITS),
    "tiff, signed": ("tiff", lambda: tiff(PIXELS[..., :1], 1, 2), "signed or floating-point numbers"),
    # transparency
    "png, rgba": ("png", lambda: encoded(HALF, "PNG"), TRANSPARENT),
    "png, gray with alpha": ("png", lambda: encoded(HALF.convert("LA"), "PNG"), TRANSPARENT),
    "png, palette with alpha": ("png", lambda: encoded(HALF.quantize(64, 2), "PNG"), TRANSPARENT),
    "png, one colour of a palette": (
        "png",
        lambda: encoded(PALETTE, "PNG", transparency=PALETTE.getpixel((0, 0))),
        TRANSPARENT,
    ),
    "png, one colour": ("png", lambda: encoded(RGB, "PNG", transparency=RGB.getpixel((0, 0))), TRANSPARENT),
    "png, one gray": ("png", lambda: encoded(GRAY, "PNG", transparency=GRAY.getpixel((0, 0))), TRANSPARENT),
    "png, black of two": ("png", lambda: encoded(RGB.convert("1"), "PNG", transparency=0), TRANSPARENT),
    "gif": ("gif", lambda: encoded(PALETTE, "GIF", transparency=PALETTE.getpixel((0, 0))), TRANSPARENT),
    "webp": ("webp", lambda: encoded(HALF, "WEBP", lossless=True), TRANSPARENT),
    "tiff with alpha": ("tiff", lambda: encoded(HALF, "TIFF"), TRANSPARENT),
    "tga": ("tga", lambda: encoded(HALF, "TGA"), TRANSPARENT),
    "tga, palette": ("tga", lambda: TGA_PALETTE, f"{TRANSPARENT}|unrecognized raw mode"),  # Pillow 13 reads it
    "bmp": ("bmp", lambda: encoded(HALF, "BMP"), TRANSPARENT),
    "sgi with alpha": ("sgi", lambda: encoded(HALF, "SGI"), TRANSPARENT),
    "jpeg 2000 with alpha": ("jp2", lambda: encoded(HALF, "JPEG2000"), TRANSPARENT),
    "tiff, a channel of no meaning": (
        "tiff",
        lambda: tiff(np.dstack([PIXELS, PIXELS[..., 0]]), extra=0),
        "whose meaning it does not say",
    ),
    # several pictures
    "apng": ("png", lambda: encoded(RGB, "PNG", save_all=True, append_images=[GRAY.convert("RGB")]), SEVERAL),
    "animated gif": ("gif", lambda: encoded(RGB, "GIF", save_all=True, append_images=[GRAY]), SEVERAL),
    "animated webp": ("webp", lambda: encoded(RGB, "WEBP", save_all=True, append_images=[GRAY]), SEVERAL),
    "tiff of two pages": ("tiff", lambda: encoded(RGB, "TIFF", save_all=True, append_images=[RGB.copy()]), SEVERAL),
    "mpo": ("mpo", lambda: encoded(RGB, "MPO", save_all=True, append_images=[HALF.convert("RGB")]), SEVERAL),
    # colours that are no RGB
    "jpeg, cmyk": ("jpg", lambda: encoded(RGB.convert("CMYK"), "JPEG"), MODE),
    "tiff, cmyk": ("tiff", lambda: encoded(RGB.convert("CMYK"), "TIFF"), MODE),
    "tiff, lab": ("tiff", lambda: encoded(RGB.convert("LAB"), "TIFF"), MODE),
    "tiff, ycbcr": ("tiff", lambda: encoded(RGB.convert("YCbCr"), "TIFF"), f"{MODE}|truncated"),  # Pillow 13 reads it
    # orientation
    "jpeg, turned": ("jpg", lambda: encoded(RGB, "JPEG", exif=with_orientation(6)), "EXIF orientation 6"),
    "png, upside down": ("png", lambda: encoded(RGB, "PNG", exif=with_orientation(3)), "EXIF orientation 3"),
    "webp, mirrored": ("webp", lambda: encoded(RGB, "WEBP", exif=with_orientation(2)), "EXIF orientation 2"),
    # no images
    "empty": ("png", bytes, "is damaged or no image .it is empty"),
    "web page": ("png", lambda: b"<html>404</html>", "it is a web page"),
    "pointer of git lfs": ("png", lambda: b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    "hdf5": ("png", lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "it is an HDF5 file"),
    "postscript": ("png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", "in none of the formats PNG"),
    "too many pixels": ("png", lambda: png_of(20_000, 20_000, 8, 0, b""), "far too many pixels"),
    "many pixels": ("png", lambda: png_of(10_000, 10_000, 8, 0, b""), "has 10000x10000 pixels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    suffix, content, message = REFUSED[case]
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content())
    with pytest.raises(DataError, match=rf"{path} .*{message}"):
        open_images([path], 32)


def test_ten_bits_of_avif() -> None:
    """Pillow writes only 8 bits. The file's configuration (av1C) is changed to what other programs write."""
    for flags, bits in ((0x00, 8), (0x40, 10), (0x60, 12)):
        content = b"....ftypavif....av1C" + bytes([0x81, 0x00, flags, 0x00])
        assert images._bits(SimpleNamespace(format="AVIF"), content) == bits


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow is built without AVIF")
def test_avif(tmp_path: Path) -> None:
    (tmp_path / "x.avif").write_bytes(encoded(HALF, "AVIF"))
    with pytest.raises(DataError, match="partly transparent"):
        open_image(tmp_path / "x.avif")
    (tmp_path / "x.avif").write_bytes(encoded(RGB, "AVIF"))
    assert open_image(tmp_path / "x.avif").shape == (32, 32, 3)


TAKEN: dict[str, tuple[str, Callable[[], bytes], Image.Image]] = {
    "png, opaque rgba": ("png", lambda: encoded(RGB.convert("RGBA"), "PNG"), RGB),
    "png, palette": ("png", lambda: encoded(PALETTE, "PNG"), PALETTE),
    "png, a transparent colour that no pixel has": ("png", lambda: encoded(PALETTE, "PNG", transparency=200), PALETTE),
    "png, alpha of 255 a colour": ("png", lambda: encoded(PALETTE, "PNG", transparency=b"\xff" * 64), PALETTE),
    "png, two colours": ("png", lambda: encoded(RGB.convert("1"), "PNG"), RGB.convert("1")),
    "gif": ("gif", lambda: encoded(PALETTE, "GIF"), PALETTE),
    "tiff": ("tiff", lambda: tiff(PIXELS), RGB),
    "tiff, gray": ("tiff", lambda: tiff(PIXELS[..., :1], 1), Image.fromarray(PIXELS[..., 0])),
    "tga": ("tga", lambda: encoded(RGB, "TGA"), RGB),
    "bmp": ("bmp", lambda: encoded(RGB, "BMP"), RGB),
    "bmp of 32 bits": ("bmp", lambda: encoded(RGB.convert("RGBA"), "BMP"), RGB),
    "pcx": ("pcx", lambda: encoded(RGB, "PCX"), RGB),
    "sgi": ("rgb", lambda: encoded(RGB, "SGI"), RGB),
    "qoi": ("qoi", lambda: encoded(RGB, "QOI"), RGB),
    "jpeg 2000": ("jp2", lambda: encoded(RGB, "JPEG2000"), RGB),
    "webp": ("webp", lambda: encoded(RGB, "WEBP", lossless=True), RGB),
    "webp by a wrong name": ("png", lambda: encoded(RGB, "WEBP", lossless=True), RGB),
    "ppm, highest 15": ("ppm", lambda: b"P6 32 32 15\n" + (PIXELS // 16).tobytes(), Image.fromarray(PIXELS // 16 * 17)),
    "upright": ("png", lambda: encoded(RGB, "PNG", exif=with_orientation(1)), RGB),
    "damaged exif": ("png", lambda: encoded(RGB, "PNG", exif=b"Exif\0\0rubbish"), RGB),
}


@pytest.mark.parametrize("case", TAKEN)
def test_taken_pixel_for_pixel(case: str, tmp_path: Path) -> None:
    suffix, content, expected = TAKEN[case]
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(open_images([path], 32)[0], np.asarray(expected.convert("RGB")))


def test_first_of_several_problems_is_told(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:03d}.png" for i in range(600)]
    for path in paths:
        path.write_bytes(encoded(RGB, "PNG", compress_level=0))
    paths[300].write_bytes(b"")
    paths[599].write_bytes(b"")
    with pytest.raises(DataError, match=r"300\.png"):
        open_images(paths, 32)


def test_a_pipe_in_place_of_an_image_does_not_stop_the_program(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"cannot read .*x\.png: it is a named pipe, where a file is wanted"):
        open_image(tmp_path / "x.png")


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"x\.png: it has 1,099,511,627,776 bytes"):
        open_image(tmp_path / "x.png")


def test_what_the_system_refuses_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: with too few file handles every image was called "damaged"."""

    def none_left(*_: object, **__: object) -> int:
        raise OSError(24, "Too many open files", str(tmp_path / "x.png"))

    (tmp_path / "x.png").write_bytes(encoded(RGB, "PNG"))
    monkeypatch.setattr(Path, "read_bytes", none_left)
    with pytest.raises(DataError, match=r"cannot read .*x\.png: Too many open files"):
        open_image(tmp_path / "x.png")


@pytest.mark.parametrize("rows", [0, 16, 31])
def test_a_png_whose_pixels_end_early_is_damaged(tmp_path: Path, rows: int) -> None:
    """The bug: if the compressed stream ended in order, the missing rows were black."""
    lines = b"".join(b"\0" + row.tobytes() for row in PIXELS[:rows])
    (tmp_path / "a.png").write_bytes(png_of(32, 32, 8, 2, lines))
    with pytest.raises(DataError, match="damaged"):
        open_image(tmp_path / "a.png")


def test_whole_pngs_of_every_kind_are_whole(tmp_path: Path) -> None:
    """PNGs with several pieces of data, with one bit a pixel, and interlaced in seven passes."""
    whole = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    (tmp_path / "a.png").write_bytes(png_of(32, 32, 8, 2, whole))
    assert np.array_equal(open_image(tmp_path / "a.png"), PIXELS)
    for mode in ("1", "P", "L", "RGB"):
        RGB.convert(mode).save(tmp_path / "b.png")
        assert np.array_equal(open_image(tmp_path / "b.png"), np.asarray(RGB.convert(mode).convert("RGB"))), mode
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    woven = [PIXELS[top::down, left::across] for left, top, across, down in passes]
    data = b"".join(b"\0" + row.tobytes() for part in woven for row in part)
    content = bytearray(png_of(32, 32, 8, 2, data))
    content[28] = 1  # interlaced
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "c.png").write_bytes(content)
    assert np.array_equal(open_image(tmp_path / "c.png"), PIXELS)
    for missing in (1, 96, len(data) // 2):
        content = bytearray(png_of(32, 32, 8, 2, data[:-missing]))
        content[28] = 1
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        (tmp_path / "d.png").write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            open_image(tmp_path / "d.png")


def test_a_part_of_a_picture_and_one_of_two_are_refused(tmp_path: Path) -> None:
    RGB.crop((0, 0, 20, 20)).save(tmp_path / "part.gif")
    content = bytearray((tmp_path / "part.gif").read_bytes())
    content[6:10] = struct.pack("<HH", 32, 32)  # a canvas larger than its only frame
    (tmp_path / "part.gif").write_bytes(content)
    with pytest.raises(DataError, match="covers only a part"):
        open_image(tmp_path / "part.gif")
    for mode, kind in (("RGB", "P6"), ("L", "P5")):
        one = f"{kind} 32 32 255\n".encode() + RGB.convert(mode).tobytes()
        (tmp_path / "one.ppm").write_bytes(one)
        assert np.array_equal(open_image(tmp_path / "one.ppm"), np.asarray(RGB.convert(mode).convert("RGB")))
        (tmp_path / "two.ppm").write_bytes(one + one)
        with pytest.raises(DataError, match="more than one picture"):
            open_image(tmp_path / "two.ppm")


def test_whole_gifs_are_taken(tmp_path: Path) -> None:
    PALETTE.save(tmp_path / "a.gif")
    assert np.array_equal(open_image(tmp_path / "a.gif"), np.asarray(PALETTE.convert("RGB")))

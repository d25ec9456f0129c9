"""Decoding one image file -> pixels. A file that has no single meaning in 8-bit RGB is refused by name.

Pillow silently takes the upper eight of sixteen bits, drops transparency, and picks one of several pictures. Such a
choice is left to the user.
"""

import functools
import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.decoded import LARGEST, SMALLEST, how_to_convert, is_taken
from fastcifar.data.foreign import foreign_kind
from fastcifar.data.paths import read_bytes
from fastcifar.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "TGA", "PCX", "SGI", "QOI", "JPEG2000", "AVIF")
SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .bmp .dib .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .pfm .tga .icb .vda "
    ".vst .pcx .sgi .rgb .rgba .bw .qoi .jp2 .j2k .jpx .jpf .jpc .j2c .avif .avifs".split()
)
OTHER_SUFFIXES = frozenset(  # formats whose depth or transparency may not be read correctly
    ".ico .cur .icns .psd .dds .im .xbm .xpm .msp .pcd .pxr .fit .fits .fli .flc .dcx .blp .ftc .ftu .gbr .ras".split()
)
LARGEST_IMAGE = 64 * 2**20  # bytes; 32 x 32 pixels without compression have 3,072
_MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "PA")
_ORIENTATION = 0x0112
_UPRIGHT = (None, 1)


class OtherSizeError(DataError):
    """An image has another size than the images before it."""


def open_images(files: Sequence[Path], side: int, *, scale: bool = False) -> NDArray[np.uint8]:
    """Decodes image files.

    Args:
        files: the paths of N files.
        side: of the images, in pixels.
        scale: scales images of another size, as `fitted` does; otherwise they are refused.

    Returns:
        uint8 [N, side, side, 3] RGB.

    Raises:
        DataError: a file cannot be read or is refused. If there are several, the first one in `files` is named.
    """
    if scale:
        return _all_of(len(files), side, lambda i: np.asarray(fitted(open_picture(files[i]), side)))
    return _all_of(len(files), side, lambda i: open_image(files[i], side))


def decode_images(
    contents: Sequence[bytes], name: Callable[[int], str], side: int, *, scale: bool = False
) -> NDArray[np.uint8]:
    """Decodes the contents of image files that lie in another file.

    Args:
        contents: the bytes of N image files.
        name: gives the name of each image for messages, by its index in `contents`.
        side: of the images, in pixels.
        scale: as for `open_images`.

    Returns:
        uint8 [N, side, side, 3] RGB.

    Raises:
        DataError: an image is refused. If there are several, the first one in `contents` is named.
    """
    wanted = None if scale else (side, side)
    return _all_of(len(contents), side, lambda i: np.asarray(fitted(_decoded(contents[i], name(i), wanted), side)))


def _all_of(count: int, side: int, decode: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    images = np.empty((count, side, side, 3), dtype=np.uint8)

    def chunk(start: int) -> None:
        for i in range(start, min(start + 256, count)):
            images[i] = decode(i)

    with no_warnings(), ThreadPoolExecutor() as pool:
        list(pool.map(chunk, range(0, count, 256)))
    return images


@contextmanager
def no_warnings() -> Iterator[None]:
    """A context without Pillow's warnings: each file is either read as it is, or refused. Threads start inside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def side_of(content: bytes, name: str, source: Path) -> int:
    """The side of the images of a source, which is that of its first image.

    Args:
        content: the bytes of the first image's file.
        name: what messages call the image.
        source: the file or folder that holds all images, for messages.

    Raises:
        DataError: the image is refused, or images of its size are not taken.
    """
    with no_warnings():
        width, height = _decoded(content, name, None).size
    if not is_taken(width, height):
        raise DataError(
            f"{name} has {width}x{height} pixels; squares from {SMALLEST} to {LARGEST} pixels are taken; "
            f"{how_to_convert(source)}"
        )
    return width


def open_image(file: Path, side: int = 32) -> NDArray[np.uint8]:
    """Decodes one image file.

    Args:
        file: the path of the file. Its content decides the format, not its name.
        side: of the image, in pixels.

    Returns:
        uint8 [side, side, 3] RGB.

    Raises:
        DataError: the file cannot be read or is refused.
    """
    return np.asarray(_decoded(read_bytes(file, LARGEST_IMAGE), str(file), (side, side)))


def fitted(picture: "Image.Image", side: int, *, crop: bool = True) -> "Image.Image":
    """A picture scaled to `side` x `side` pixels, bicubic and, where it shrinks, averaging.

    Args:
        picture: of any size; one that has the size is not changed.
        side: in pixels.
        crop: whether the centre square is scaled, or the whole picture.
    """
    from PIL import Image

    width, height = picture.size
    if (width, height) == (side, side):
        return picture
    shorter = min(width, height)
    left, upper = ((width - shorter) // 2, (height - shorter) // 2) if crop else (0, 0)
    square = picture.crop((left, upper, left + shorter, upper + shorter)) if crop else picture
    return square.resize((side, side), Image.Resampling.BICUBIC)


def scaled(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Images [N, H, W, 3] scaled by `fitted`, [N, side, side, 3]."""
    from PIL import Image

    small = np.empty((len(images), side, side, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        small[i] = np.asarray(fitted(Image.fromarray(image), side))
    return small


def open_picture(file: Path) -> "Image.Image":
    """Decodes one image file of any size, and turns it as its EXIF orientation says. Pillow may warn.

    Args:
        file: as for `open_image`.

    Returns:
        The picture, in Pillow's mode RGB.

    Raises:
        DataError: the file cannot be read or is refused.
    """
    return _decoded(read_bytes(file, LARGEST_IMAGE), str(file), None)


def _decoded(content: bytes, file: str, size: tuple[int, int] | None) -> "Image.Image":
    """The pixels of a file, in mode RGB. Without `size` any size is taken, and the picture is turned upright."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=_installed_formats()) as image:
            if size is not None and image.size != size:
                wanted = f"{size[0]}x{size[1]}"
                raise OtherSizeError(f"{file} has {image.width}x{image.height} pixels, where {wanted} are wanted")
            if reason := _reason_to_refuse(image, content, is_turned_upright=size is None):
                raise DataError(f"{file} {reason}")
            upright = ImageOps.exif_transpose if _orientation(image) not in _UPRIGHT else lambda turned: turned
            if image.format == "PNG" and not _png_is_whole(content):
                raise DataError(f"{file} is damaged or no image (its pixels end early)")
            if _may_be_transparent(image):
                rgba = image.convert("RGBA")
                if rgba.getchannel("A").getextrema() != (255, 255):
                    raise DataError(f"{file} is partly transparent: lay it on a colour first")
                return upright(rgba.convert("RGB"))
            if _has_a_fourth_byte(image, content):
                raise DataError(f"{file} may be partly transparent (a fourth byte a pixel): lay it on a colour first")
            return upright(image.convert("RGB"))
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{file} has far too many pixels ({error})") from error
    except UnidentifiedImageError as error:
        kind = foreign_kind(content[:512])
        reason = f"it is {kind[0]}" if kind else f"in none of the formats {', '.join(FORMATS)}"
        raise DataError(f"{file} is damaged or no image ({reason})") from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        raise DataError(f"{file} is damaged or no image ({error})") from error


@functools.cache
def _installed_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason_to_refuse(image: "Image.Image", content: bytes, *, is_turned_upright: bool) -> str:
    """Why an image is refused: it has no single meaning as pixels of 8-bit RGB. Empty if it has one."""
    if (frames := getattr(image, "n_frames", 1)) > 1:
        return f"holds {frames} pictures: which one is meant?"
    if image.mode not in _MODES:
        return f"is of mode {image.mode}, which has no exact 8-bit RGB"
    if (bits := _bits(image, content)) > 8:
        return f"has {bits} bits a channel, and only 8 are taken: convert it first"
    decoder, place, offset, *_ = (*getattr(image, "tile", [])[:1], ("", None, 0))[0]
    if image.format == "GIF" and place is not None and tuple(place) != (0, 0, *image.size):
        return "holds a picture that covers only a part of it: what is the rest?"
    if image.format == "PPM" and decoder == "raw" and image.mode in ("L", "RGB"):
        if offset + image.width * image.height * len(image.getbands()) < len(content):
            return "holds more than one picture: which one is meant?"
    if image.format == "TIFF":
        return _reason_to_refuse_tiff(image)
    if not is_turned_upright and _orientation(image) not in _UPRIGHT:
        return (
            f"is to be shown turned or mirrored (EXIF orientation {_orientation(image)}): which one is meant? "
            "Turn its pixels, or remove the tag"
        )
    return ""


def _png_is_whole(content: bytes) -> bool:
    """Whether a PNG has all of its pixels. Pillow leaves rows black if the pixel data is valid but too short."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", content[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(0, 0, 1, 1)]
    if interlace:  # Adam7
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    needed = 0
    for left, top, across, down in passes:
        columns, rows = len(range(left, width, across)), len(range(top, height, down))
        needed += rows * (1 + -(-columns * bits // 8)) if columns else 0
    stream, at = zlib.decompressobj(), 8
    found = 0
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        if kind == b"IDAT":
            found += len(stream.decompress(content[at + 8 : at + 8 + length], max(needed - found, 1)))
        at += 12 + length
    return found >= needed


def _bits(image: Any, content: bytes) -> int:
    """The number of bits in a channel of the file; 8 if its format never has more."""
    match image.format:
        case "PNG":
            return content[content.index(b"IHDR") + 12]  # after the chunk's name, width and height
        case "TIFF":
            return max(_tag(image, 258, (1,)))
        case "PPM":
            highest = image.tile[0][3]  # the decoder's arguments: a mode, or a mode and the highest value
            return 16 if isinstance(highest, tuple) and int(highest[-1]) > 255 else 8
        case "SGI":
            return 8 * content[3]
        case "JPEG2000":
            if size := re.search(rb"\xff\x4f\xff\x51.{36}(..)", content, re.DOTALL):
                channels = content[size.end() : size.end() + 3 * int.from_bytes(size[1], "big") : 3]
                return 1 + max((channel & 0x7F for channel in channels), default=7)
        case "AVIF":
            if (at := content.find(b"av1C")) >= 0 and content[at + 6] & 0x40:
                return 12 if content[at + 6] & 0x20 else 10
    return 8


def _reason_to_refuse_tiff(image: "Image.Image") -> str:
    if set(_tag(image, 339, (1,))) - {1, 4}:  # SampleFormat: 1 is unsigned, 4 is undefined
        return "has signed or floating-point numbers: convert it to 8 bits without a sign first"
    if 0 in _tag(image, 338, ()):  # ExtraSamples
        return "has a channel beyond red, green and blue whose meaning it does not say: remove it first"
    return ""


def _tag(image: Any, number: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = image.tag_v2.get(number, default)
    return value if isinstance(value, tuple) else (value,)


def _may_be_transparent(image: "Image.Image") -> bool:
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info or palette.endswith("A")


def _has_a_fourth_byte(image: Any, content: bytes) -> bool:
    """Whether a BMP with 32 bits a pixel uses the eight bits that its format calls unused.

    Some programs write alpha there. In other files these bits are the same in every pixel.
    """
    if image.format not in ("BMP", "DIB") or not image.tile or image.tile[0][3][0] != "BGRX":
        return False
    start = image.tile[0][2]
    return len(set(content[start + 3 : start + 4 * image.width * image.height : 4])) > 1


def _orientation(image: "Image.Image") -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged metadata does not damage the pixels
        return None

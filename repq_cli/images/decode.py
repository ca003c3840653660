"""Image files as pictures of 8 bits: one decoder, so that whoever reads a file sees the same pixels.

A picture is turned upright (EXIF); of several in a file the first counts; colour profiles are dropped. What becomes of
its values, and white is 255 afterwards:

    1, 2, 4, 8 bits, grey      their own scale to 0..255
    palette, YCbCr, CMYK       R = (255 - C)(255 - K) / 255, and so on
    grey of 12 and 16 bits     v * 255 / 4095, v * 255 / 65535
    colour of 16 bits          the upper byte of each channel, which is all that Pillow gives
    float                      v * 255 where all lie in 0..1, v where all are whole numbers of 0..255
    transparency               left out; the colours below it stay

Everything else is refused, since its white is not known: other floats, NaN, 32-bit and signed integers, Lab, and deep
values that all lie below a sixteenth of white, as those of 8, 10 or 12 bits stored in 16: they would be nearly black.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from repq_cli.errors import DataError
from repq_cli.images.members import Member

GREY, COLOUR = ("1", "L", "LA", "La"), ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and a value of it
SAMPLE_FORMAT, SIGNED = 339, 2
DARK = 1 / 16  # of white
MAX_PIXELS = 100_000_000  # by default: more than cameras take in one picture, and 0.3 GB of RGB as it is decoded
PILLOWS_MOST = 178_956_970  # pixels; more it does not open
OF_PROGRAMS = ("EPS", "WMF")  # formats that a program draws, and a file may tell it what to do
REPLACE, CONVERT = "remove or replace it", "convert it to 8 bits a channel first"
UNKNOWN_WHITE = f"holds signed or 32-bit integers, of which nothing says what is white: {CONVERT}"


class ImageError(DataError):
    """An image file that cannot be used. ``reason``: what is wrong with it, and the fix."""

    def __init__(self, path: Path | Member, reason: str) -> None:
        super().__init__(f"The image {path} {reason}.")


def open_image(path: Path | Member, mode: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture without transparency in Pillow's ``mode``, ``L`` or ``RGB``. Raises ImageError with the reason."""
    picture = decode(path, max_pixels=max_pixels)
    if "A" in picture.mode and _is_drawn_in_alpha(picture):
        raise ImageError(
            path, "has one colour and is drawn in its transparency, which is left out: fill its background"
        )
    return picture.convert(mode)


def _is_drawn_in_alpha(picture: Image.Image) -> bool:
    *colours, alpha = (len(set(channel.getextrema())) > 1 for channel in picture.split())
    return alpha and not any(colours)


def decode(
    path: Path | Member, deep: bool = True, max_pixels: int = MAX_PIXELS, key: str = "data.max_pixels"
) -> Image.Image:
    """The picture, upright, as Pillow's ``L``, ``LA``, ``RGB`` or ``RGBA``. Raises ImageError with the reason.

    deep: whether one of more than 8 bits is brought down to them, or refused. max_pixels: of which one with more, as
    its header says, is refused before it is decoded; ``key``: what sets that, for the error.
    """
    with _refusing(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures and of damaged EXIF, which both are read
        with Image.open(path.open() if isinstance(path, Member) else path) as opened:
            _refuse_unopened(path, opened, max_pixels, key)
            is_deep = any(map(_is_deep, opened.tile))
            if not deep and (opened.mode.startswith(("I", "F")) or is_deep):
                raise ImageError(path, f"has more than 8 bits a channel, which would be lost: {CONVERT}")
            raw_mode = next(map(_raw_mode, opened.tile), "")
            tags = getattr(opened, "tag_v2", {})
            if SIGNED in tags.get(SAMPLE_FORMAT, ()):
                raise ImageError(path, UNKNOWN_WHITE)
            white_is_zero = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
            opened.load()
            with contextlib.suppress(Exception):  # of damaged EXIF, as diverse as decoders': shown as it is stored
                ImageOps.exif_transpose(opened, in_place=True)
            if opened.mode.startswith(("I", "F")):
                if white_is_zero:
                    raise ImageError(path, f"has white as zero at more than 8 bits, which is not read: {CONVERT}")
                return _in_eight_bits(path, opened, raw_mode)
            if opened.mode not in GREY + COLOUR:
                raise ImageError(path, f"has colours of the kind {opened.mode}, which is not read: convert it to RGB")
            if is_deep:  # black may be all that is left of it
                _refuse_dark(path, max(high for _, high in opened.convert("RGB").getextrema()) or 1, 255, " in 8 bits")
            mode = "L" if opened.mode in GREY else "RGB"
            return opened.convert(f"{mode}A" if opened.has_transparency_data else mode)


def _refuse_unopened(path: Path | Member, opened: Image.Image, max_pixels: int, key: str) -> None:
    """ImageError for what is not decoded at all; only the header has been read."""
    width, height = opened.size
    if opened.format in OF_PROGRAMS:
        raise ImageError(path, f"is {opened.format}, which a program would have to draw: convert it to PNG")
    if width * height > max_pixels:
        much = f"is {width}x{height}, {width * height / 1e6:.1f} million pixels, and {key}={max_pixels} allows fewer"
        raise ImageError(path, f"{much}: make it smaller, cut it into parts, or allow more (at most {PILLOWS_MOST})")


@contextlib.contextmanager
def _refusing(path: Path | Member) -> Iterator[None]:
    """Whatever Pillow raises as ImageError: given arbitrary bytes, its decoders raise nearly everything."""
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        size = str(error).partition(",")[0]  # and Pillow's limit; then it speaks of an attack
        raise ImageError(path, f"is too large to be decoded ({size}): make it smaller, or cut it into parts") from error
    except UnidentifiedImageError as error:
        if _is_empty(path):
            raise ImageError(path, f"is empty: {REPLACE}") from error
        what = "cannot be decoded: it is of no format and kind of pixels that is read here, or its beginning is damaged"
        raise ImageError(path, f"{what}; {REPLACE}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(path, f"cannot be read: {error.strerror}") from error
        raise ImageError(path, f"cannot be decoded ({str(error) or type(error).__name__}): {REPLACE}") from error


def _is_empty(path: Path | Member) -> bool:
    return (path.size if isinstance(path, Member) else path.stat().st_size) == 0


def _raw_mode(tile: Any) -> str:
    """How a part of the file stores its values, in Pillow's terms."""
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _is_deep(tile: Any) -> bool:
    """Whether Pillow's decoder is told of more than 8 bits: by its raw mode, or, for PPM, by the largest value."""
    of_ppm = tile[0].startswith("ppm") and isinstance(tile[3], tuple)
    return ";16" in _raw_mode(tile) or (of_ppm and tile[3][1] > 255)


def _in_eight_bits(path: Path | Member, image: Image.Image, raw_mode: str) -> Image.Image:
    """Grey of integers or floats, where Pillow's own conversion would clip. PPM comes scaled to 16 bits."""
    values = np.asarray(image)
    if image.mode == "F":
        white = _white_of_floats(path, values)
    elif image.mode.startswith("I;16") or image.format == "PPM" or raw_mode in ("I;16", "I;16B", "I;16N"):
        white = 4095 if raw_mode == "I;12" else 65535
    else:
        raise ImageError(path, UNKNOWN_WHITE)
    _refuse_dark(path, values.max(), white)
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def _refuse_dark(path: Path | Member, brightest: float, white: int, brought: str = "") -> None:
    if 0 < brightest < white * DARK:
        held = f"holds no value above {brightest:g}{brought}, and white would be {white}"
        raise ImageError(path, f"{held}, so that it would be nearly black: scale its values")


def _white_of_floats(path: Path | Member, values: npt.NDArray[np.float32]) -> int:
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1:
        return 1
    if low >= 0 and high <= 255 and (values == values.round()).all():
        return 255
    held = f"holds floats from {low:g} to {high:g}" if np.isfinite(values).all() else "holds values that are not finite"
    raise ImageError(path, f"{held}; read are those of 0 to 1, and whole numbers of 0 to 255: scale them")

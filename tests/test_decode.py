"""Every kind of image file: what its pixels become, or why it is refused; the same for every reader."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from repq_cli.data.image_folder import Decoder, _only_size
from repq_cli.data.imagenet import CentreCut, RandomCrop
from repq_cli.images.decode import ImageError, decode, open_image
from repq_cli.images.files import pixels_of, read_rgb

Pixels = npt.NDArray[np.uint8]

RNG = np.random.default_rng(0)
GREY: Pixels = RNG.integers(0, 256, (5, 4), dtype=np.uint8)
RGB: Pixels = RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)
ALPHA: Pixels = RNG.integers(0, 256, (5, 4), dtype=np.uint8)
DEEP = RNG.integers(300, 65536, (5, 4), dtype=np.uint16)


def file_of(image: Image.Image | npt.NDArray[Any], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(colours: Pixels, alpha: Pixels = ALPHA) -> Image.Image:
    image = Image.fromarray(colours)
    image.putalpha(Image.fromarray(alpha))
    return image


def palette(**options: Any) -> bytes:
    """Twenty pixels of twenty colours, which ``RGB`` has."""
    image = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(5, 4), "P")
    image.putpalette(RGB.tobytes())
    return file_of(image, "PNG", **options)


def cmyk() -> tuple[bytes, Pixels]:
    inks = RNG.integers(0, 256, (5, 4, 4), dtype=np.uint8)
    light = 255.0 - inks
    return file_of(Image.fromarray(inks, "CMYK"), "TIFF"), (light[..., :3] * light[..., 3:] / 255).round()


def tiff(pixels: npt.NDArray[Any], **tags: int) -> bytes:
    """A TIFF of one strip with tags that Pillow does not write itself."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    known = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "strip": 273}
    known |= {"rows": 278, "bytes": 279, "samples": 339}
    height, width = pixels.shape
    values = {"width": width, "height": height, "bits": pixels.itemsize * 8, "compression": 1, "photometric": 1}
    values |= {"strip": 0, "rows": height, "bytes": pixels.nbytes, "samples": 1} | tags
    for name, value in values.items():
        directory[known[name]] = value
    body = io.BytesIO()
    directory.save(body)
    return body.getvalue() + (pixels.tobytes() if "bits" not in tags else b"\xab\xcd\xef" * 10)


def deep_png(pixels: npt.NDArray[np.uint16]) -> bytes:
    """16 bits of colour, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def grey3(values: npt.NDArray[Any]) -> Pixels:
    return np.repeat(np.asarray(values)[..., None], 3, 2).astype(np.uint8)


UNIT = RNG.random((5, 4)).astype(np.float32)
TWELVE = np.full((5, 4), 0xABC) * 255 / 4095, np.full((5, 4), 0xDEF) * 255 / 4095
READ: dict[str, tuple[bytes, npt.NDArray[Any]]] = {
    "rgb": (file_of(RGB, "PNG"), RGB),
    "grey": (file_of(GREY, "PNG"), grey3(GREY)),
    "one bit": (file_of(Image.fromarray(GREY > 99), "PNG"), grey3(np.where(GREY > 99, 255, 0))),
    "two bits": (file_of(Image.fromarray(GREY % 4, "L"), "PNG", bits=2), grey3(GREY % 4 * 85)),
    "palette": (palette(), RGB),
    "palette with transparency": (palette(transparency=bytes(range(0, 200, 10))), RGB),
    "rgb with alpha": (file_of(with_alpha(RGB), "PNG"), RGB),
    "grey with alpha": (file_of(with_alpha(GREY), "PNG"), grey3(GREY)),
    "rgb with a transparent colour": (file_of(RGB, "PNG", transparency=(0, 0, 0)), RGB),
    "grey with a transparent one": (file_of(GREY, "PNG", transparency=7), grey3(GREY)),
    "cmyk": cmyk(),
    "16 bits, PNG": (file_of(DEEP, "PNG"), grey3((DEEP / 257).round())),
    "16 bits, TIFF": (file_of(DEEP, "TIFF"), grey3((DEEP / 257).round())),
    "16 bits, TIFF, packed": (file_of(DEEP, "TIFF", compression="tiff_lzw"), grey3((DEEP / 257).round())),
    "16 bits, big-endian": (file_of(DEEP.astype(">u2"), "TIFF"), grey3((DEEP / 257).round())),
    "16 bits, black": (file_of(DEEP * 0, "PNG"), grey3(DEEP * 0)),
    "10 bits, PGM": (
        b"P5 4 5 1023\n" + (DEEP // 64).astype(">u2").tobytes(),
        grey3((DEEP // 64 * (255 / 1023)).round()),
    ),
    "100 levels, PGM": (b"P5 4 5 100\n" + (GREY % 101).tobytes(), grey3((GREY % 101 * 2.55).round())),
    "12 bits, TIFF": (tiff(DEEP[:, :4], bits=12, bytes=30), grey3(np.stack(TWELVE, -1).round().reshape(5, 8)[:, :4])),
    "16 bits of colour": (deep_png(RGB.astype(np.uint16) * 256 + 199), RGB),
    "16 bits of colour, PPM": (b"P6 4 5 65535\n" + (RGB.astype(">u2") * 257).tobytes(), RGB),
    "float of 0 to 1": (file_of(UNIT, "TIFF"), grey3((UNIT * 255).round())),
    "float of two values": (file_of((GREY > 99).astype(np.float32), "TIFF"), grey3(np.where(GREY > 99, 255, 0))),
    "float of whole numbers": (file_of(GREY.astype(np.float32), "TIFF"), grey3(GREY)),
    "the first of several": (file_of(RGB, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 5))]), RGB),
    "pages": (file_of(RGB, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]), RGB),
    "white as zero": (tiff(GREY, photometric=0), grey3(255 - GREY)),
    "a profile": (file_of(RGB, "PNG", icc_profile=b"of another space"), RGB),
    "damaged EXIF": (file_of(RGB, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), RGB),
    "another ending": (file_of(RGB, "BMP"), RGB),
}
INTEGERS = GREY.astype(np.int32)
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty: remove or replace it"),
    "text": (b"not an image", "cannot be decoded: it is of no format and kind of pixels that is read here"),
    "cut": (file_of(RGB, "BMP")[:-20], r"cannot be decoded \(image file is truncated .*\): remove or replace it"),
    "damaged": (file_of(RGB, "PNG")[:60] + bytes(40), r"cannot be decoded \(.*\): remove or replace it"),
    "large": (b"P4 20000 20000\n", r"is too large to be decoded \(Image size \(400000000 pixels\) exceeds limit"),
    "integers": (file_of(INTEGERS, "TIFF"), "holds signed or 32-bit integers, of which nothing says what is white"),
    "large integers": (file_of(INTEGERS * 70000, "TIFF"), "holds signed or 32-bit integers"),
    "signed": (tiff(GREY.astype(np.int16), samples=2), "holds signed or 32-bit integers"),
    "signed, 8 bits": (tiff(GREY, samples=2), "holds signed or 32-bit integers"),
    "8 bits in 16": (file_of(GREY.astype(np.uint16), "PNG"), r"holds no value above 2\d\d, and white would be 65535"),
    "12 bits in 16": (
        file_of(DEEP // 16, "PNG"),
        r"holds no value above \d+, and white would be 65535, .* nearly black",
    ),
    "8 bits of colour in 16": (
        deep_png(RGB.astype(np.uint16)),
        "holds no value above 1 in 8 bits, and white would be 255",
    ),
    "12 bits of colour in 16": (
        deep_png(RGB.astype(np.uint16) * 16),
        "holds no value above 1. in 8 bits, and white",
    ),
    "8 bits of colour in 16, PPM": (
        b"P6 4 5 65535\n" + RGB.astype(">u2").tobytes(),
        "holds no value above 1 in 8 bits, and",
    ),
    "two dark floats": (
        file_of((GREY % 3).astype(np.float32), "TIFF"),
        "holds no value above 2, and white would be 255",
    ),
    "dark floats": (file_of(UNIT / 300, "TIFF"), "holds no value above 0.00.*, and white would be 1,"),
    "high floats": (file_of(UNIT * 2, "TIFF"), "holds floats from .* to 1.9.*; read are those of 0 to 1"),
    "large floats": (file_of(UNIT * 255, "TIFF"), "holds floats from .* to 25.*; read are those of 0 to 1"),
    "whole floats": (file_of(GREY * np.float32(300), "TIFF"), "holds floats from .* whole numbers of 0 to 255"),
    "negative": (file_of(UNIT - 0.5, "TIFF"), r"holds floats from -0\.4"),
    "nan": (file_of(np.where(UNIT > 0.5, np.nan, UNIT), "TIFF"), "holds values that are not finite"),
    "infinite": (file_of(np.where(UNIT > 0.5, np.inf, UNIT), "TIFF"), "holds values that are not finite"),
    "white as zero": (tiff(DEEP, photometric=0), "has white as zero at more than 8 bits"),
    "lab": (file_of(Image.fromarray(RGB, "LAB"), "TIFF"), "has colours of the kind LAB"),
    "only alpha": (file_of(with_alpha(RGB * 0), "PNG"), "has one colour and is drawn in its transparency"),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_what_every_kind_of_file_becomes(tmp_path: Path) -> None:
    for name, (content, expected) in READ.items():
        path = tmp_path / "image.png"
        path.write_bytes(content)
        np.testing.assert_array_equal(np.array(open_image(path, "RGB")), expected, err_msg=name)
        if (expected == expected[..., :1]).all():
            np.testing.assert_array_equal(np.array(open_image(path, "L")), expected[..., 0], err_msg=name)


def test_what_cannot_be_used_is_refused_with_its_own_reason(tmp_path: Path) -> None:
    for content, reason in REFUSED.values():
        path = tmp_path / "image.png"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=rf"^The image \S+/image\.png {reason}"):
            read_rgb(path)
    for path, reason in ((tmp_path / "none.png", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ImageError, match=f"cannot be read: {reason}"):
            read_rgb(path)


def test_a_large_picture_below_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns from the limit on and refuses from twice the limit on."""
    path = tmp_path / "image.png"
    path.write_bytes(READ["rgb"][0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    np.testing.assert_array_equal(np.array(open_image(path, "RGB")), RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(
        ImageError, match=r"is too large to be decoded \(Image size \(20 pixels\) exceeds limit of 18 pixels"
    ):
        open_image(path, "RGB")


# What EXIF's orientations do to the picture that is shown: 1 to 8, as a camera would have stored it.
STORED = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.swapaxes(0, 1),
    6: RGB.swapaxes(0, 1)[::-1],
    7: RGB.swapaxes(0, 1)[::-1, ::-1],
    8: RGB.swapaxes(0, 1)[:, ::-1],
    9: RGB,  # means nothing
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_reader_sees_pictures_upright(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    for orientation, stored in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path.write_bytes(file_of(np.ascontiguousarray(stored), kind, exif=exif, lossless=True))
        assert _only_size({"train": [(path, 0)]}) == (5, 4)
        readers = {
            "image_folder": Decoder((5, 4), grey=False)(path),
            "imagenet": CentreCut(4, 4)(path, None),
            "sr_folder": read_rgb(path),
            "upscale": pixels_of(decode(path, deep=False)),
        }
        for name, found in readers.items():
            shown = RGB if name != "imagenet" else RGB[:4]  # the centre, rounded down
            np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), shown, err_msg=f"{name}, {orientation}")


def test_what_would_lose_bits_is_refused_where_it_is_enlarged(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    for name, (content, _) in READ.items():
        path.write_bytes(content)
        if name.startswith(("10 bits", "12 bits", "16 bits", "float")):
            with pytest.raises(ImageError, match=r"has more than 8 bits a channel, which would be lost: convert it"):
                decode(path, deep=False)
        else:
            decode(path, deep=False)
    path.write_bytes(file_of(with_alpha(RGB * 0), "PNG"))
    assert decode(path, deep=False).mode == "RGBA", "transparency is enlarged as well"


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """Every reader names the file, its size and the key, and decodes nothing; as many as are allowed are read."""
    path = tmp_path / "large.png"
    path.write_bytes(file_of(RGB, "PNG"))
    readers = {
        "data.max_pixels=19": [
            lambda: read_rgb(path, 19),
            lambda: Decoder(5, False, 19).prepare(path),
            lambda: CentreCut(5, 5, 19).prepare(path),
            lambda: RandomCrop(5, (0.5, 1.0), None, 19).prepare(path),
            lambda: _only_size({"train": [(path, 0)]}, 19),
        ],
        "max_pixels=19": [lambda: decode(path, False, 19, "max_pixels")],
    }
    assert decode(path, max_pixels=20).size == (4, 5) and read_rgb(path, 20).shape == (3, 5, 4)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it is decoded"))
    for key, calls in readers.items():
        for call in calls:
            with subtests.test(key), pytest.raises(ImageError, match=rf"large.png is 4x5, .* and {key} allows fewer"):
                call()
    bomb = file_of(Image.new("1", (13000, 13000)), "PNG")
    path.write_bytes(bomb)
    with pytest.raises(ImageError, match=r"is 13000x13000, 169\.0 million pixels, and data.max_pixels=100000000"):
        decode(path)


def test_a_picture_that_a_program_would_draw_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "drawn.png"
    path.write_bytes(file_of(RGB, "EPS"))
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail("a program is started"))
    with pytest.raises(ImageError, match=r"drawn\.png is EPS, which a program would have to draw"):
        decode(path)

"""Seals: a digest at the end of a file, of all bytes before it, checked before any of them is believed.

A seal is part of what it protects, so that a rename or a hard link carries both, and nothing can be written between
them. Readers that know of none are not disturbed: an archive of ``torch.save`` is read from its end of directory, and a
seal of an ONNX file is a field of its format. One inside a JSON object is the key ``seal``.

Against accidents, such as a flipped bit, half a file or one from elsewhere; whoever wants to deceive makes a new seal.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from repq_cli.files import open_regular

MARK = b"\n# sha256 "
ONNX_MARK = (
    b"\x72\x4a\x0a\x06sha256\x12\x40"  # an entry of ModelProto.metadata_props: key 'sha256', a value of 64 bytes
)
DIGITS = 64
KEY = "seal"


def seal(content: bytes | memoryview, mark: bytes = MARK) -> bytes:
    """What belongs behind ``content``.

    >>> without_seal(b"text" + seal(b"text"))
    b'text'
    """
    return mark + hashlib.sha256(content).hexdigest().encode()


def without_seal(content: bytes) -> bytes:
    """The bytes that a seal stands behind, or all where there is none. Raises ValueError where it does not fit.

    >>> without_seal(b"test" + seal(b"text"))
    Traceback (most recent call last):
    ValueError: its bytes are not those that were written
    """
    length = len(content) - DIGITS - len(MARK)
    if length < 0 or not content.startswith(MARK, length):
        return content
    if hashlib.sha256(memoryview(content)[:length]).hexdigest().encode() != content[-DIGITS:]:
        raise ValueError("its bytes are not those that were written")
    return content[:length]


def has_seal(path: Path, mark: bytes = MARK) -> bool:
    """Whether a file ends in a seal. Raises ValueError where that does not fit, OSError as ``open_regular``."""
    with open_regular(path) as file:
        length = os.fstat(file.fileno()).st_size - DIGITS - len(mark)
        if length < 0:
            return False
        file.seek(length)
        if file.read(len(mark)) != mark:
            return False
        wanted = file.read(DIGITS)
        file.seek(0)
        found = _digest_of(file, length)
    if found.encode() != wanted:
        raise ValueError("its bytes are not those that were written")
    return True


def seal_of(path: Path, mark: bytes = MARK) -> str | None:
    """The digest at the end of a file, which is not compared with its bytes. OSError as ``open_regular``."""
    with open_regular(path) as file:
        length = os.fstat(file.fileno()).st_size
        file.seek(max(0, length - DIGITS - len(mark)))
        end = file.read()
    return end[len(mark) :].decode("ascii", "replace") if end.startswith(mark) else None


def file_digest(path: Path) -> str:
    """Of all that a file holds, its seal included. OSError as ``open_regular``."""
    with open_regular(path) as file:
        return _digest_of(file, os.fstat(file.fileno()).st_size)


def _digest_of(file: BinaryIO, length: int) -> str:
    """Of the next ``length`` bytes, or of those that are there."""
    digest = hashlib.sha256()
    while length > 0 and (part := file.read(min(length, 1 << 20))):
        digest.update(part)
        length -= len(part)
    return digest.hexdigest()


def sealed_json(tree: dict[str, Any]) -> dict[str, Any]:
    """The object with its seal."""
    return {**tree, KEY: _digest(tree)}


def without_json_seal(tree: dict[str, Any]) -> dict[str, Any]:
    """The object without its seal, or as it is where it has none. Raises ValueError where it does not fit."""
    inner = {key: value for key, value in tree.items() if key != KEY}
    if KEY in tree and tree[KEY] != _digest(inner):
        raise ValueError("it is not what was written")
    return inner


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()

"""A file of weights by anybody: what it holds, or in a sentence what it is instead."""

from __future__ import annotations

import re
import sys
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from repq_cli.errors import DataError, is_out_of_memory

SAVE = "save the net's state_dict() by torch.save"

# How files of other kinds begin, and what to do about each.
OTHER_KINDS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a pointer of Git LFS and not the weights themselves: fetch them by git lfs pull"),
    (rb"\s*<(!doctype|html|\?xml|head|body)", "a web page, so that its download went wrong: fetch the file itself"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "compressed: unpack it first"),
    (rb".{257}ustar", "a tar archive: unpack it first"),
    (rb"\x89HDF\r\n", f"an HDF5 file, as Keras and h5py write: read it there, and {SAVE}"),
    (rb"\x08[\x01-\x20][\x12\x1a\x3a\x42]", f"an ONNX model, whose graph holds no net of torch's: {SAVE}"),
    (rb"\x93NUMPY", f"an array of NumPy's: {SAVE}"),
    (rb"GGUF|.{4}TFL3", f"a model of another library: {SAVE}"),
    (rb"model_checkpoint_path", f"TensorFlow's list of checkpoints: read them there, and {SAVE}"),
    (rb"\s*[{\[]\s*[\"{\]}]", "a JSON text: name the file with the tensors"),
)
TENSORFLOW = re.compile(r"\.(index|meta|pb|data-\d{5}-of-\d{5})$")
NAMES_OF_WEIGHTS = ("*.pth", "*.pt", "*.safetensors", "*.bin", "*.ckpt", "*.tar")

# Modules and builtins whose objects scripts keep beside weights, and which do nothing.
DATA_MODULES = {"argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "typing", "uuid"}
BUILTINS = {
    f"builtins.{kind}" for kind in ("bool", "dict", "float", "frozenset", "int", "list", "range", "slice", "str")
}


def read(path: Path) -> object:
    """The content of a file that torch.save or safetensors wrote, tensors on the CPU; no code in it is run.

    Raises DataError for a file that is missing, damaged, of another kind, or holds code.
    """
    head = _beginning(path)
    for pattern, kind in OTHER_KINDS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            raise DataError(f"The checkpoint {path} is {kind}.")
    if TENSORFLOW.search(path.name):
        raise DataError(f"The checkpoint {path} is one of TensorFlow's: read it there, and {SAVE}.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return _safetensors(path)
    if head.startswith(b"PK"):
        return _archive(path)
    if head.startswith(b"\x80"):
        return _pickle(path)
    kind = (
        f"a text that begins '{' '.join(head[:40].decode().split())}'"
        if _is_text(head)
        else "of no kind that is known here"
    )
    raise DataError(f"The checkpoint {path} is {kind}: name a file that torch.save or safetensors wrote.")


def _beginning(path: Path) -> bytes:
    try:
        head = _head(path)
    except OSError as error:
        raise DataError(f"The checkpoint {path} cannot be read ({error.strerror}): name one that can.") from error
    if not head:
        raise DataError(f"The checkpoint {path} is empty: fetch or copy it again.")
    return head


def _head(path: Path) -> bytes:
    if path.is_dir():
        found = sorted(file.name for pattern in NAMES_OF_WEIGHTS for file in path.glob(pattern))
        if (path / "saved_model.pb").exists():
            raise DataError(f"The checkpoint {path} is a folder of TensorFlow's: read it there, and {SAVE}.")
        hint = f"name a file in it, such as {found[0]}" if found else "name a run folder or a file"
        raise DataError(f"The checkpoint {path} is a folder without checkpoints/fp.pt: {hint}.")
    if not path.exists():
        if path.with_name(f"{path.name}.index").exists():
            raise DataError(f"The checkpoint {path} is one of TensorFlow's: read it there, and {SAVE}.")
        raise DataError(
            f"There is no checkpoint {path}: name a run folder, one of its checkpoints/*.pt, or a file of weights."
        )
    if not path.is_file():
        raise DataError(f"The checkpoint {path} is no regular file: name a run folder or a file of weights.")
    with path.open("rb") as file:
        return file.read(512)


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head)


def _safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"The checkpoint {path} is truncated or damaged ({error}): fetch or copy it again.") from error


def _archive(path: Path) -> object:
    """What torch.save has written since version 1.6: a ZIP archive of a pickle and the tensors' bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > path.stat().st_size:  # by compression, or since entries share their bytes
                raise DataError(f"The checkpoint {path} is compressed, to {unpacked:,} bytes: unpack it first.")
            checked = any(entry.CRC for entry in archive.infolist())  # torch may be told to leave checksums out
            spoilt = archive.testzip() if checked else None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"The checkpoint {path} is truncated or damaged: fetch or copy it again.") from error
    if spoilt is not None:  # torch looks at no checksum
        raise DataError(f"The checkpoint {path} is damaged ({spoilt} has another checksum): fetch or copy it again.")
    if any(name.endswith("/constants.pkl") for name in names):
        raise DataError(f"The checkpoint {path} is a TorchScript archive: load it by torch.jit.load, and {SAVE}.")
    if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        raise DataError(
            f"The checkpoint {path} is a ZIP archive with {names[0] if names else 'nothing'} in it and no file of "
            f"torch.save: unpack it first."
        )
    try:
        with torch.serialization.safe_globals(_known()):
            foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # of a damaged pickle, whatever its bytes trip over
        raise DataError(f"The checkpoint {path} is damaged: fetch or copy it again.") from error
    return _load(path, foreign)


def _pickle(path: Path) -> object:
    """What torch.save wrote before, or a pickle by other means."""
    try:
        return _load(path, [])
    except DataError as error:
        cause = str(error.__cause__)
        named = re.search(r"GLOBAL ([\w.]+)", cause)
        if named:
            _refuse_code(path, [named[1]])
            raise DataError(f"The checkpoint {path} holds objects of {named[1]}: {SAVE}.") from error
        raise


def _load(path: Path, foreign: list[str]) -> object:
    _refuse_code(path, foreign)
    known = [*_known(), *((Foreign, name) for name in foreign)]
    try:
        # Of odd pickles torch warns before it refuses them.
        with torch.serialization.safe_globals(known), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # torch.load raises whatever the broken bytes happen to trip over: zip, pickle, key or end-of-file errors.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if foreign:
            raise DataError(f"The checkpoint {path} holds objects of {', '.join(foreign[:3])}: {SAVE}.") from error
        raise DataError(
            f"The checkpoint {path} is truncated, or a pickle that torch.save did not write: fetch it again, or {SAVE}."
        ) from error


class Foreign:
    """Stands for a class that is not imported, such as a script's configuration: of its objects the items stay."""

    def __new__(cls, *_: object, **__: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """What torch's restricted unpickler lets be filled."""
        return OrderedDict()


def _refuse_code(path: Path, foreign: list[str]) -> None:
    """DataError for a pickle of a whole net, or one that calls a function: nothing of the kind is imported or run."""
    net = [name for name in foreign if name.startswith("torch.nn.modules.")]
    if net:
        own = [name for name in foreign if not name.startswith("torch.")]
        raise DataError(
            f"The checkpoint {path} is a whole pickled net (of {', '.join((own or net)[:3])}), whose code would have "
            f"to run: save its state_dict() instead."
        )
    for name in foreign:
        module, _, last = name.rpartition(".")
        builtin = module.partition(".")[0] in sys.stdlib_module_names
        if module not in DATA_MODULES and name not in BUILTINS and (builtin or not last[:1].isupper()):
            raise DataError(
                f"The checkpoint {path} is not opened, since its pickle calls {name}, which is code and no weights: "
                f"{SAVE}."
            )


def _known() -> list[Any]:
    """What is made while a file is read, beside tensors: NumPy's numbers and arrays, under their old and new names."""
    rebuild = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
    named = [(made, f"numpy.{core}.multiarray.{name}") for name, made in rebuild.items() for core in ("core", "_core")]
    kinds = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
    return [np.dtype, np.ndarray, *kinds, *named]

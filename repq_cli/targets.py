"""The sections of the configuration that name a function, and have its arguments for keys. No torch here.

What a section may name is what the files of its group in ``configs/`` name, and nothing else of ours: a configuration
that somebody sent is data, and our own functions would do harm with arguments of its choice, too.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import Annotated, Any, Literal

from repq_cli.bounds import Range

# Blocks that add the input wherever it has the output's shape.
HAVE_IDENTITY = ("repvgg", "qarepvgg", "orepa", "mobileone", "mobileone_k1", "sesr")
TARGET = re.compile(r"^\s*_target_:\s*([\w.]+)\s*$", re.MULTILINE)
DOTTED = re.compile(r"(?!__)[A-Za-z_]\w*(\.(?!__)[A-Za-z_]\w*)*", re.ASCII)
OWN = "repq_cli"


@functools.cache
def registered(section: str) -> frozenset[str]:
    """The functions that a section may name: those of the files of its group.

    >>> sorted(registered("model"))[0], registered("optim")
    ('repq_cli.models.ecbsr.ecbsr', frozenset())
    """
    folder = files("repq_cli.configs") / section
    texts = [path.read_text(encoding="utf-8") for path in folder.iterdir()] if folder.is_dir() else []
    return frozenset(target for text in texts for target in TARGET.findall(text))


def plugin_of(target: str, plugins: Iterable[str]) -> str | None:
    """Which of ``plugins`` a dotted name lies below.

    >>> plugin_of("mine.blocks.block", ["yours", "mine"]), plugin_of("minefield.block", ["mine"])
    ('mine', None)
    """
    return next((plugin for plugin in plugins if DOTTED.fullmatch(target) and target.startswith(f"{plugin}.")), None)


def mistake_of_plugin(name: str) -> str | None:
    """What is wrong with a plugin's name as a sentence's predicate, or None."""
    top = name.partition(".")[0]
    if not DOTTED.fullmatch(name):
        return "is no name of a package, such as my_package or my_package.blocks"
    if top == OWN or top in sys.stdlib_module_names:
        return f"belongs to {'repq' if top == OWN else 'Python'} itself: a plugin is a package of your own"
    return None


def unnamed_plugins(wanted: object, named: Iterable[str]) -> str | None:
    """What is wrong with plugins that the running command line does not name, as a sentence's predicate, or None.

    A file that somebody sent must not choose which code runs here. What is no list of names is another mistake.

    >>> unnamed_plugins(["mine"], ["mine"]), unnamed_plugins("mine", [])
    (None, None)
    """
    found = [name for name in wanted if isinstance(name, str)] if isinstance(wanted, list) else []
    if set(found) <= set(named):
        return None
    return f"comes from a file, and code runs only where it is named: if you trust it, add plugins=[{','.join(found)}]"


@dataclass(frozen=True)
class Target:
    """A section with a ``_target_``; ``arguments``: its keys that are none of ours, checked against that function's."""

    _target_: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def target(self) -> str:
        """The function's name."""
        return self._target_

    @property
    def is_ours(self) -> bool:
        """Whether the function is none of a plugin's."""
        return self._target_.startswith("repq_cli.")

    def own_keys(self) -> dict[str, Any]:
        """The keys that are ours, with their values."""
        return {key.name: getattr(self, key.name) for key in fields(self) if key.name != "arguments"}

    def keys(self) -> dict[str, Any]:
        """All keys with their values."""
        return self.own_keys() | self.arguments


@dataclass(frozen=True)
class ModelSection(Target):
    """Keys of ``model``; one with a ``scale`` enlarges pictures. Arguments that it has not are None."""

    @property
    def num_classes(self) -> int | None:
        """None: as many as the data has."""
        return self.arguments.get("num_classes")

    @property
    def activation(self) -> str | None:
        """None: that of its paper."""
        return self.arguments.get("activation")

    @property
    def width(self) -> float | None:
        """What multiplies its channels."""
        return self.arguments.get("width")

    @property
    def scale(self) -> int | None:
        """How many times it enlarges pictures."""
        return self.arguments.get("scale")

    @property
    def enlarging(self) -> tuple[int, Literal["luma", "rgb"]]:
        """How many times it enlarges pictures, and what of them: only where it does."""
        return self.arguments["scale"], self.arguments["colour"]


@dataclass(frozen=True)
class RepSection(Target):
    """Keys of ``rep``.

    batch_norm: whether its blocks have any; an argument of those functions that leave the choice.
    kernels: the sizes of the convolutions that become blocks; all others stay ordinary ones.
    """

    batch_norm: bool
    kernels: list[Annotated[int, Range(1)]]

    @property
    def identity(self) -> bool:
        """Whether it adds the input where it need not: a branch without weights, which no stored net tells of."""
        return self.name not in HAVE_IDENTITY and bool(self.arguments.get("identity", False))

    @property
    def splits_identity(self) -> bool:
        """Whether its identity is quantized apart from the rest of the merged kernel."""
        return self.arguments.get("identity") == "split"


@dataclass(frozen=True)
class DataSection(Target):
    """Keys of ``data``."""

    batch_size: Annotated[int, Range(2)] = 64

    @property
    def low_rounding(self) -> str | None:
        """How low resolution is made, where it is."""
        return self.arguments.get("low_rounding")

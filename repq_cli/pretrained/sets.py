"""The sets of weights in a file, found by structure: any dict of tensors, however it is nested and prefixed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

# What DataParallel, torch.compile, FSDP, activation checkpointing and Fabric put into names, at any place.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
AVERAGES = {"ema", "shadow", "averaged", "average", "avg", "swa", "polyak"}  # words of names of averaged weights
BESIDE = ("total_ops", "total_params")  # what profilers leave beside weights
COUNT = "n_averaged"  # what torch's averaged nets have beside theirs
DEEPEST = 32  # nesting that is looked into

Path = tuple[str, ...]


@dataclass(frozen=True)
class WeightSet:
    """Tensors by name, and where in the file they lie: keys of dicts and parts of dotted names alike."""

    path: Path
    tensors: dict[str, Tensor]

    @property
    def averaged(self) -> bool:
        """Whether they are said to be an average over training.

        >>> [WeightSet((name,), {}).averaged for name in ("state_dict_ema", "modelEMA", "params_ema", "schema")]
        [True, True, True, False]
        """
        return COUNT in self.tensors or any(word.lower() in AVERAGES for name in self.path for word in _words(name))

    @property
    def begun(self) -> bool:
        """False for an average of nothing as yet, which holds what the net began with."""
        return COUNT not in self.tensors or bool(self.tensors[COUNT] > 0)

    @property
    def numbers(self) -> set[str]:
        """What averages count beside their weights, such as ``decay`` and ``num_updates``."""
        return {key for key, tensor in self.tensors.items() if "." not in key and tensor.dim() == 0}

    def overlaps(self, other: WeightSet) -> bool:
        """Whether one of both lies in the other."""
        return all(mine == theirs for mine, theirs in zip(self.path, other.path, strict=False))

    def __str__(self) -> str:
        return f"'{'.'.join(self.path)}'" if self.path else "the top level"


def without_wrappers(key: str) -> str:
    """A dotted name as it is without wrappers around modules.

    >>> without_wrappers("module._orig_mod.layer1.module.weight")
    'layer1.weight'
    """
    return ".".join(_unwrapped(key.split(".")))


def _unwrapped(parts: Iterable[str]) -> Iterator[str]:
    return (part for part in parts if part not in WRAPPERS)


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)


def weight_sets(content: object) -> list[WeightSet]:
    """All tensors below each place in a file: a dotted name is a path like that through nested dicts.

    So a wrapper's key, an attribute's name in front of every key, and both of them several times over, are one thing.
    """
    leaves: dict[Path, Tensor] = {}
    for raw, tensor in _leaves(content, (), set()):
        path = tuple(_unwrapped(raw))
        if path and path[-1] not in BESIDE:
            leaves[raw if path in leaves else path] = tensor
    sets: dict[Path, dict[str, Tensor]] = {}
    for path, tensor in leaves.items():
        for depth in range(len(path)):
            sets.setdefault(path[:depth], {})[".".join(path[depth:])] = tensor
    return [WeightSet(path, tensors) for path, tensors in sets.items()]


def _leaves(content: object, path: Path, seen: set[int]) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor with its path; a container that occurs twice counts once."""
    if isinstance(content, Tensor):
        yield path, content
    elif isinstance(content, dict | list | tuple) and len(path) < DEEPEST and id(content) not in seen:
        seen.add(id(content))
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from _leaves(value, (*path, *str(key).split(".")), seen)

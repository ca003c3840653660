"""How well a set of weights fits a net as a layout, and what is done to make it fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from repq_cli.errors import DataError
from repq_cli.pretrained.layout import COUNTER, Layout, Source
from repq_cli.pretrained.sets import WeightSet

LISTED = 8  # keys of a mismatch that an error names
HEADS = ("classifier",)  # the layers of a classifier, in networks of repq's
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STATISTICS = ("running_mean", "running_var", COUNTER)


@dataclass(frozen=True)
class Fit:
    """One set of a file's weights as one layout; ``ours``: the net's tensors, of which only shapes matter.

    beside: keys of theirs that are left out on purpose. added_up: our kernels that are summed over colours. heads: our
    layers that other classes need anew.
    """

    name: str
    layout: Layout
    weights: WeightSet
    ours: dict[str, Tensor]
    beside: frozenset[str] = frozenset()
    added_up: tuple[str, ...] = ()
    heads: tuple[str, ...] = HEADS

    @property
    def wanted(self) -> list[str]:
        """The keys of theirs that have to be there."""
        return [key for key in dict.fromkeys(source.key for source in self.layout.sources.values()) if _counts(key)]

    @property
    def missing(self) -> list[str]:
        """Keys of the layout that the file lacks."""
        return [key for key in self.wanted if key not in self.weights.tensors]

    @property
    def unexpected(self) -> list[str]:
        """Keys of the file that the layout has no use for."""
        used = {source.key for source in self.layout.sources.values()} | set(self.layout.constants) | self.beside
        return [key for key in self.weights.tensors if _counts(key) and key not in used]

    @property
    def misshapen(self) -> dict[str, Source]:
        """Our keys whose tensor has another shape in the file."""
        theirs = self.weights.tensors
        return {
            key: source
            for key, source in self.layout.sources.items()
            if _counts(key) and source.key in theirs and theirs[source.key].shape != source.shape(self.ours[key].shape)
        }

    @property
    def score(self) -> float:
        """How much of both sides is explained, 0 to 1: Dice's coefficient of keys, less a quarter for wrong shapes."""
        passed = self.layout.constants.keys() | self.beside
        wanted, have = len(self.wanted), sum(map(_counts, self.weights.tensors.keys() - passed))
        wrong = {source.key for source in self.misshapen.values()}
        return (2 * (wanted - len(self.missing)) - len(wrong) / 2) / max(1, wanted + have)

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.misshapen)

    def differences(self) -> str:
        """What does not fit, in words."""
        theirs = self.weights.tensors
        wrong = dict.fromkeys(
            f"{source.key} ({_shape(theirs[source.key].shape)}, not {_shape(source.shape(self.ours[key].shape))})"
            for key, source in self.misshapen.items()
        )
        parts = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": list(wrong)}
        return "; ".join(f"{len(keys)} {word}: {some(keys)}" for word, keys in parts.items() if keys)

    def head(self) -> list[str]:
        """The file's keys of the classifier."""
        return [source.key for key, source in self.layout.sources.items() if self.is_of_head(key)]

    def is_of_head(self, key: str) -> bool:
        """Whether a tensor of ours is a classifier's."""
        return any(key.startswith(f"{head}.") for head in self.heads)

    def without_head(self) -> Fit:
        """The body alone: neither the classifier's tensors, nor theirs that lie beside all of the body's parts."""
        sources = {key: source for key, source in self.layout.sources.items() if not self.is_of_head(key)}
        body, head = {source.key.partition(".")[0] for source in sources.values()}, set(self.head())
        beside = {key for key in self.weights.tensors if key in head or key.partition(".")[0] not in body}
        return replace(self, layout=replace(self.layout, sources=sources), beside=self.beside | beside)

    def other_channels(self, first: Iterable[str], theirs: int, ours: int) -> list[str]:
        """Our kernels of the ``first`` layers whose only difference is that they read other numbers of channels."""
        return [
            key
            for key, source in self.misshapen.items()
            if key.startswith(tuple(f"{name}." for name in first))
            and self.ours[key].dim() == 4
            and self.ours[key].shape[1] == ours
            and self.weights.tensors[source.key].shape == _with_channels(theirs, self.ours[key].shape)
        ]

    def summed(self, keys: Sequence[str]) -> Fit:
        """With the kernels of ``keys`` summed over their three input channels."""
        three = partial(_with_channels, 3)
        changed = {key: replace(self.layout.sources[key], transform=_summed, theirs=three) for key in keys}
        layout = replace(self.layout, sources=self.layout.sources | changed)
        return replace(self, layout=layout, added_up=tuple(keys))

    def converted(self, net: nn.Module) -> dict[str, Tensor]:
        """Their tensors under our keys; what they leave out keeps the net's value."""
        theirs = self.weights.tensors
        found = {key: source.read(theirs) for key, source in self.layout.sources.items() if source.key in theirs}
        return {key: found.get(key, value).reshape(value.shape) for key, value in net.state_dict().items()}

    def refuse_impossible(self, path: object) -> None:
        """DataError for a tensor that no net can run with, and for a constant that is not ours."""
        theirs = self.weights.tensors
        for key in dict.fromkeys(source.key for source in self.layout.sources.values() if source.key in theirs):
            _refuse_impossible(path, key, theirs[key])
        for key, constant in self.layout.constants.items():
            if key in theirs and not (
                theirs[key].shape == constant.shape and torch.allclose(theirs[key].float(), constant, atol=1e-2)
            ):
                raise DataError(
                    f"The file {path} has other values in {key} than every published net of its kind, and they are "
                    f"not trained: use another file."
                )


def _counts(key: str) -> bool:
    """Whether a key matters for a fit; counters of batches may be there or not."""
    return not key.endswith(COUNTER)


def _refuse_impossible(path: object, key: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise DataError(f"The file {path} holds the shape of {key} and no values: save the net once it has some.")
    if tensor.layout != torch.strided:
        raise DataError(f"The file {path} holds {key} as a {tensor.layout} tensor: dense weights are needed.")
    if tensor.dtype not in FLOATS and _counts(key):
        raise DataError(
            f"The file {path} holds {key} as {tensor.dtype}: floating-point weights are needed (16, 32 or 64 bit), "
            f"those from before the net was quantized."
        )
    if not torch.isfinite(tensor).all():
        raise DataError(f"The file {path} holds values in {key} that are not finite: use another file.")
    if not torch.isfinite(tensor.float()).all():
        raise DataError(f"The file {path} holds values in {key} that are too large for float32: use another file.")
    if key.endswith("running_var") and tensor.min() < 0:
        raise DataError(f"The file {path} holds a negative variance in {key}: use another file.")


def _with_channels(channels: int, kernel: torch.Size) -> torch.Size:
    return torch.Size([kernel[0], channels, *kernel[2:]])


def _summed(weight: Tensor) -> Tensor:
    """In float64: the sum is the same in any order of the channels."""
    return weight.double().sum(1, keepdim=True)


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def some(keys: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    listed = list(keys)
    return ", ".join(listed[:LISTED]) + (f" and {len(listed) - LISTED} more" if len(listed) > LISTED else "")

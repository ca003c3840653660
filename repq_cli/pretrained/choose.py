"""Which of a file's sets of weights is taken, and as which layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from repq_cli.errors import DataError
from repq_cli.pretrained.fit import HEADS, STATISTICS, Fit
from repq_cli.pretrained.formats import FORMATS, MOST, recognise
from repq_cli.pretrained.sets import WeightSet


@dataclass(frozen=True)
class Choice:
    """What is taken, and what else is in the file: other sets that would do as well, and averages that would not."""

    fit: Fit
    left: list[WeightSet]

    def __str__(self) -> str:
        kind = "averaged (EMA) weights" if self.fit.weights.averaged else "weights"
        taken = f"{kind} at {self.fit.weights}, layout {self.fit.name}"
        left = "; left: " + ", ".join(map(str, self.left)) if self.left else ""
        beside = sorted({key.partition(".")[0] for key in self.fit.beside})
        return taken + left + (f"; left out beside them: {', '.join(beside)}" if beside else "")


def fits_of(net: nn.Module, sets: list[WeightSet], names: Iterable[str], body: bool) -> list[Fit]:
    """Every set as every layout that the net has, best first; ``body``: the classifier does not count.

    Of layouts that are the same for this net, as merged ones may be, the one that the keys look like comes first.
    """
    ours, found = net.state_dict(), []
    for name in names:
        layout = FORMATS[name].layout(net)
        if layout is None:
            continue
        # Few tensors cannot explain most of a layout; where all sets are small, their differences are still wanted.
        large = [weights for weights in sets if 4 * len(weights.tensors) >= len(layout.sources)]
        for weights in large or sets:
            fit = Fit(name, layout, weights, ours, heads=getattr(net, "last_layers", HEADS))
            fit = replace(fit, beside=frozenset(weights.numbers.difference(fit.wanted)))
            found.append(fit.without_head() if body else fit)
    return sorted(found, key=lambda fit: (-fit.score, fit.name != recognise(fit.weights.tensors)))


def choose(
    fits: list[Fit], sets: list[WeightSet], weights: Literal["auto", "ema", "plain"], path: object
) -> Choice | None:
    """The set to take; None where none explains most of its keys.

    Averaged weights that lack batch norms' statistics, as averages of parameters do, get those of the plain ones beside
    them. Raises DataError where the kind that ``weights`` asks for is not there, or several sets do equally well.
    """
    fits = [fit for fit in fits if fit.score > MOST]
    fits = [fit for fit in fits if fit.weights.begun] or fits
    if not fits:
        return None
    unread = _unread_averages(sets, fits)
    plain = [fit for fit in fits if not fit.weights.averaged]
    averaged = [_completed(fit, plain[0]) if plain else fit for fit in fits if fit.weights.averaged]
    averaged.sort(key=lambda fit: -fit.score)
    wanted = {"plain": plain, "ema": averaged}.get(weights)
    if wanted is None:
        wanted = averaged if averaged and not (plain and plain[0].score > averaged[0].score) else plain
    if not wanted:
        found = ", ".join(dict.fromkeys(str(fit.weights) for fit in fits))
        empty = f" (its averages at {', '.join(map(str, unread))} fit no layout, or are empty as yet)" if unread else ""
        raise DataError(
            f"The file {path} has no {weights} weights of this net, only those at {found}{empty}: leave "
            f"fp.weights={weights} out, or name another file."
        )
    best = wanted[0]
    _refuse_doubt(path, best, wanted[1:])
    others = {fit.weights.path: fit.weights for fit in fits if fit.weights.path != best.weights.path}
    return Choice(best, [*others.values(), *unread])


def _unread_averages(sets: list[WeightSet], fits: list[Fit]) -> list[WeightSet]:
    """Averages that none of the ``fits`` is made of, such as lists without names; small ones are an optimiser's."""
    least, found = len(fits[0].layout.sources) / 4, list[WeightSet]()
    for weights in sorted(sets, key=lambda weights: len(weights.path)):
        known = [*found, *(fit.weights for fit in fits)]
        if weights.averaged and len(weights.tensors) >= least and not any(map(weights.overlaps, known)):
            found.append(weights)
    return found


def _completed(averaged: Fit, plain: Fit) -> Fit:
    missing = [key for key in averaged.missing if key.endswith(STATISTICS) and key in plain.weights.tensors]
    tensors = averaged.weights.tensors | {key: plain.weights.tensors[key] for key in missing}
    return replace(averaged, weights=replace(averaged.weights, tensors=tensors))


def _refuse_doubt(path: object, best: Fit, others: list[Fit]) -> None:
    """DataError where other weights than the best would do as well."""
    for other in others:
        elsewhere = other.weights.path != best.weights.path and other.score >= best.score
        if elsewhere and not _same(best.weights.tensors, other.weights.tensors):
            raise DataError(
                f"The file {path} has weights that fit equally well at {best.weights} and at {other.weights}: save the "
                f"ones that you mean alone."
            )


def _same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    if {key: tensor.shape for key, tensor in mine.items()} != {key: tensor.shape for key, tensor in theirs.items()}:
        return False
    return all(torch.equal(tensor.float(), theirs[key].float()) for key, tensor in mine.items())


def looks_like(sets: list[WeightSet]) -> str | None:
    """The layout of the largest set that is one of a known layout."""
    for weights in sorted(sets, key=lambda found: -len(found.tensors)):
        name = recognise(weights.tensors)
        if name is not None:
            return name
    return None

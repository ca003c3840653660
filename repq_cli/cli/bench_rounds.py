"""What the kinds of ``repq bench`` share: rounds with a bar, a folder to write to, the figure beside the numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tqdm import tqdm

from repq_cli.bench.timing import Clock, interleaved, nothing
from repq_cli.cli.figures import drawn
from repq_cli.files import make_folder
from repq_cli.runs.folder import BENCH
from repq_cli.runs.outputs import OUTPUTS, reserve

if TYPE_CHECKING:
    from repq_cli.report.figures.drawing import Drawing

FORMAT = 1  # of bench.json
Key = TypeVar("Key", bound=Hashable)


def timed(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int,
    what: str,
    clock: Clock = "wall",
    finish: Callable[[], object] = nothing,
) -> dict[Key, list[float]]:
    """Seconds of each call in every round, with a bar on a terminal."""
    with tqdm(total=rounds, desc=what, unit="round", leave=False, disable=no_terminal()) as bar:
        return interleaved(calls, rounds, bar.update, clock=clock, finish=finish)


def no_terminal() -> bool:
    """Whether nobody looks at a bar."""
    return sys.stderr is None or not sys.stderr.isatty()


def made(out: str | None, name: str) -> Path:
    """The folder to write to, made before anything is measured."""
    if out is None:
        return reserve(OUTPUTS / "bench", name, "out=DIR")
    return make_folder(Path(out))


def written(out: Path, figure: str) -> str:
    """What to say of the numbers in ``out`` and of the figure that is drawn of them."""
    return f"written to {', '.join(map(str, [out / BENCH, *drawn(lambda: _drawings(out / BENCH, figure), out)]))}"


def _drawings(file: Path, figure: str) -> list[Drawing]:
    from repq_cli.report.figures.catalogue import drawings

    found, notes = drawings([file], [figure])
    for note in notes:
        print(note)
    names = [figure, *(f"{figure}-{number}" for number in range(2, len(found) + 1))]
    return [replace(drawing, name=name) for drawing, name in zip(found, names, strict=False)]

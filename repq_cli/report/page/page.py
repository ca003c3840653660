"""All that the page holds, in its order."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from repq_cli.report.document import document
from repq_cli.report.page.grid import Grid, grid_of
from repq_cli.report.page.origin import configurations, environments
from repq_cli.report.page.runs import all_runs, not_finished
from repq_cli.report.page.summary import best_results, default_title, facts
from repq_cli.report.runs import Run, compared
from repq_cli.report.sections import sections_of


@dataclass(frozen=True)
class Picture:
    """A figure: what it shows in a few words and in sentences, and its SVG.

    ``source`` is the SVG as an address, so that the page's elements and the figure's cannot meddle with each other.
    """

    title: str
    caption: str
    svg: str

    @property
    def source(self) -> str:
        """A data: address."""
        encoded = base64.b64encode(self.svg.encode(errors="replace")).decode()
        return f"data:image/svg+xml;base64,{encoded}"


@dataclass(frozen=True)
class Making:
    """How the page was made: the command line, repq's version, and the time (UTC)."""

    command: str
    version: str
    time: str


@dataclass(frozen=True)
class Chapter:
    """Tables of one section of runs, and what holds for all of them."""

    title: str
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """The content.

    best: for each section, its title and sentences on the best results. notes: on runs as such.
    picture_notes: on figures that are not there, without what notes say as well.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    best: tuple[tuple[str, tuple[str, ...]], ...]
    chapters: tuple[Chapter, ...]
    pictures: tuple[Picture, ...]
    picture_notes: tuple[str, ...]
    runs: Grid
    not_finished: Grid | None
    notes: tuple[str, ...]
    configurations: tuple[Grid, ...]
    environments: Grid | None
    making: Making


def page_of(
    runs: Sequence[Run],
    notes: Sequence[str],
    pictures: Sequence[Picture],
    picture_notes: Sequence[str],
    title: str | None,
    making: Making,
) -> Page:
    """The page on ``runs``, of which there is at least one; ``notes``: what reading them said."""
    runs = sorted(runs, key=lambda run: run.folder)
    known = compared(runs)
    content = document(runs, notes, [], published=False)
    best = [(section.title, tuple(best_results(section))) for section in sections_of(known)]
    return Page(
        title=title or default_title(runs),
        facts=tuple(facts(runs)),
        best=tuple((name, sentences) for name, sentences in best if sentences),
        chapters=tuple(
            Chapter(chapter.title, tuple(map(grid_of, chapter.tables)), chapter.notes) for chapter in content.chapters
        ),
        pictures=tuple(pictures),
        picture_notes=tuple(note for note in picture_notes if note not in content.notes),
        runs=all_runs(runs),
        not_finished=not_finished(runs),
        notes=content.notes,
        configurations=tuple(configurations(known)),
        environments=environments(runs),
        making=making,
    )

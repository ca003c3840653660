"""A finished figure as bytes: the same content gives the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from repq_cli.report.figures.style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_CONTENT = re.compile(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", re.DOTALL)


@dataclass(frozen=True)
class Drawing:
    """A figure with its words.

    name: unique among those drawn together, and safe as the stem of a file. caption: what is seen, also for those who
    cannot see it.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    def svg(self) -> str:
        """An ``<svg>`` element for a file or a page: text as paths, nothing from elsewhere, ids of its own."""
        text = self._saved("svg", metadata={"Date": None, "Creator": None}).decode()
        text = NOT_CONTENT.sub("", text[text.index("<svg") :])
        text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)
        words = f' role="img" aria-label="{escape(f"{self.title}. {self.caption}")}"'
        return text.replace("<svg", f"<svg{words}", 1)

    def png(self, dpi: int = 200) -> bytes:
        """The same as pixels."""
        return self._saved("png", dpi=dpi, metadata={"Software": None})

    def parts(self, dpi: int) -> Iterator[tuple[str, bytes]]:
        """Each of its panels alone, by title, as a PNG that stays readable where the whole would be small."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self._saved("png", dpi=dpi)  # ticks are made when a figure is drawn
        assert isinstance(self.figure.canvas, FigureCanvasAgg)
        for number, axes in enumerate(self.figure.axes, 1):
            edge = axes.get_tightbbox(self.figure.canvas.get_renderer())
            if edge is not None and axes.axison:
                box = edge.padded(4).transformed(self.figure.dpi_scale_trans.inverted())
                title = axes.get_title("left") or axes.get_title() or str(number)
                yield title, self._saved("png", dpi=dpi, metadata={"Software": None}, bbox_inches=box)

    def _saved(self, form: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        with styled(self.name):
            self.figure.savefig(buffer, format=form, **options)
        return buffer.getvalue()

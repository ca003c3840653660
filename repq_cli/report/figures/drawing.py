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

        canvas, panels = self.figure.canvas, [axes for axes in self.figure.axes if axes.axison]
        assert isinstance(canvas, FigureCanvasAgg)
        for number, axes in enumerate(panels, 1):
            for other in panels:
                other.set_visible(other is axes)
            axes.tick_params(labelleft=True)  # which neighbours may share, as the name of an axis
            axes.set_xlabel(axes.get_xlabel() or panels[-1].get_xlabel())
            with styled(self.name):
                canvas.draw()  # which makes ticks
            edge = axes.get_tightbbox(canvas.get_renderer())
            assert edge is not None
            box = edge.padded(4).transformed(self.figure.dpi_scale_trans.inverted())
            title = axes.get_title("left") or str(number)
            yield title, self._saved("png", dpi=dpi, metadata={"Software": None}, bbox_inches=box)

    def _saved(self, form: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        with styled(self.name):
            self.figure.savefig(buffer, format=form, **options)
        return buffer.getvalue()

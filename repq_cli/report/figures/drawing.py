"""A finished figure as bytes: the same content gives the same bytes."""

from __future__ import annotations

import io
import re
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

    def _saved(self, form: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        with styled(self.name):
            self.figure.savefig(buffer, format=form, **options)
        return buffer.getvalue()

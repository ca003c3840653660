"""From the content to HTML. Every text is escaped by Jinja; none of them is put together here."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from repq_cli.report.page.page import Page

FOLDER = Path(__file__).parent

# Control characters, halves of surrogate pairs, and marks that turn the direction of the text around them.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def render(page: Page) -> str:
    """The page as one HTML document that fetches nothing: a strict policy allows its own style and script alone."""
    style, script = (_own(name) for name in ("style.css", "script.js"))
    ids = count(1)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
            new_id=lambda: f"table-{next(ids)}",
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def visible(text: str) -> str:
    r"""``text`` with what cannot be seen, or would change how its neighbours look, as Python writes it.

    >>> print(visible("a\u202eb\x00"))
    a\u202eb\x00
    """
    return INVISIBLE.sub(lambda found: ascii(found.group())[1:-1], text)


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _own(name: str) -> Markup:
    """A file of ours, which goes into the page as it is."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _hash(content: str) -> str:
    """As a Content-Security-Policy names what it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"

"""From the content to HTML. Every text is escaped by Jinja; none of them is put together here."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from repq_cli.report.page.page import Page
from repq_cli.text import visible

FOLDER = Path(__file__).parent


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


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _own(name: str) -> Markup:
    """A file of ours, which goes into the page as it is."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))  # noqa: S704


def _hash(content: str) -> str:
    """As a Content-Security-Policy names what it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"

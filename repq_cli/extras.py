"""Packages that not every installation has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from repq_cli.errors import DataError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a missing package into a DataError that names the extra of ours which brings it."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"This needs {error.name}: pip install 'repq[{name}]'.") from error

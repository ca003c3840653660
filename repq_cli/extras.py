"""Packages that not every installation has."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repq_cli.errors import DataError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a missing package into a DataError that names the extra of ours which brings it."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"This needs {error.name}: {installing(name)}.") from error


def installing(name: str) -> str:
    """The command that installs an extra where this process looks for packages."""
    found = shutil.which("pip")
    own = found is not None and Path(found).parent == Path(sys.executable).parent
    return f"{'pip' if own else f'{shlex.quote(sys.executable)} -m pip'} install 'repq[{name}]'"

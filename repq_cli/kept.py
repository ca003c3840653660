"""What runs keep for each other in outputs/cache, each under a hash of all that determines it. Needs no torch.

``KEY/about.json``, written last, says that a place is whole; ``KEY.lock`` beside the folder is held by the process that
fills it, and freed by the operating system when that dies.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from repq_cli.files import locked, parsed_json, read_regular, write_json
from repq_cli.sealed import sealed_json, without_json_seal

ABOUT = "about.json"
KEY = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class Kept:
    """A place, which may be empty. A subclass gives its ``root`` and knows its files."""

    key: str
    root: Path
    one: ClassVar[str]  # what lies there, for messages
    many: ClassVar[str]
    done_to: ClassVar[str]  # what happens to it while it is held

    @property
    def folder(self) -> Path:
        """Where it is stored."""
        return self.root / self.key

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.folder.glob("*") if path.is_file())

    def about(self) -> dict[str, Any] | None:
        """What is known of it; None where it is not whole."""
        try:
            found = without_json_seal(parsed_json(read_regular(self.folder / ABOUT)))
        except (OSError, ValueError):
            return None
        return found if self.is_sound(found) else None

    @property
    def is_damaged(self) -> bool:
        """Whether something is said of it that cannot be read, or is not what was written."""
        return os.path.lexists(self.folder / ABOUT) and self.about() is None

    def describe(self, about: dict[str, Any]) -> None:
        """Say what is known of it, as the last step."""
        with contextlib.suppress(OSError):  # a folder in its place
            (self.folder / ABOUT).rmdir()
        write_json(self.folder / ABOUT, sealed_json(about))

    def is_sound(self, about: dict[str, Any]) -> bool:
        """Whether ``about`` has all that is asked of it."""
        raise NotImplementedError

    def last_used(self) -> float:
        """When a run last filled or took it, in seconds as ``time.time()`` counts them."""
        about = self.folder / ABOUT
        return (about if about.exists() else self.folder).stat().st_mtime

    def touch(self) -> None:
        """Note that a run has taken it."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / ABOUT)

    def held(self, wait: Callable[[], None] | None = None) -> AbstractContextManager[None]:
        """Hold its lock, as ``files.locked`` does."""
        return locked(self.root / f"{self.key}.lock", wait)

    def files(self) -> Iterable[Path]:
        """Those that are ours, beside ``about.json``."""
        raise NotImplementedError

    def drop(self) -> None:
        """Forget it. The lock's file stays: a process may be waiting with it open."""
        for path in (self.folder / ABOUT, *self.files(), *self.folder.glob(".*.partial")):
            with contextlib.suppress(OSError):  # a folder in a file's place
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else: that is not ours to remove
            self.folder.rmdir()


Place = TypeVar("Place", bound=Kept)


def places(root: Path, kind: Callable[[str, Path], Place]) -> list[Place]:
    """Every place in ``root`` that holds something, finished or not."""
    return [kind(path.name, root) for path in sorted(root.glob("*")) if path.is_dir() and KEY.fullmatch(path.name)]

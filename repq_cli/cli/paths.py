"""Keys whose values are files or folders."""

from __future__ import annotations

import os
import re

from repq_cli.effects import OF_DATA, Affects

PATHS = {"run", "runs", "resume", "in", "out", "fp.checkpoint", "hydra.run.dir", "hydra.sweep.dir"}
PATHS |= {f"data.{name}" for name, effect in OF_DATA.items() if effect in (Affects.PLACE, Affects.TESTS)}
HOME = re.compile(r"""(^|[=\[,:{\s"'])(~[\w.-]*)(?=/|$|[\],}"'])""")


def is_path(key: str) -> bool:
    """Whether a key's values are files or folders.

    >>> is_path("run"), is_path("+data.root"), is_path("data.test.set5"), is_path("qat.lr")
    (True, True, True, False)
    """
    name = key.lstrip("+")
    return name in PATHS or ".".join(name.split(".")[:2]) in PATHS


def with_home(override: str) -> str:
    """An override with ``~`` at the beginning of its paths as the folder that a shell takes it for.

    >>> with_home("seed=~/a"), with_home("run=~/a") == f"run={os.path.expanduser('~/a')}"
    ('seed=~/a', True)
    """
    key, sign, value = override.partition("=")
    if not sign or "~" not in value or not is_path(key):
        return override
    return f"{key}={HOME.sub(lambda found: found[1] + os.path.expanduser(found[2]), value)}"

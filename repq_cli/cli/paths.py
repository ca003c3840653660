"""Keys whose values are files or folders."""

from __future__ import annotations

import os
import re
import shlex

from repq_cli.effects import OF_DATA, Affects
from repq_cli.text import setting

PATHS = {"run", "runs", "resume", "in", "out", "fp.checkpoint", "hydra.run.dir", "hydra.sweep.dir"}
PATHS |= {f"data.{name}" for name, effect in OF_DATA.items() if effect in (Affects.PLACE, Affects.TESTS)}
# What Hydra's grammar reads as it stands, or has a meaning of its own for: lists, quotes, sweeps, interpolations.
READ = re.compile(r"[\w./:+@%?|* -]*|[\[{\"'].*|.*[,$].*|\w+\(.*", re.ASCII | re.DOTALL)
HOME = re.compile(r"""(^|[=\[,:{\s"'])(~[\w.-]*)(?=/|$|[\],}"'])""")


def is_path(key: str) -> bool:
    """Whether a key's values are files or folders.

    >>> is_path("run"), is_path("+data.root"), is_path("data.test.set5"), is_path("qat.lr")
    (True, True, True, False)
    """
    name = key.lstrip("+")
    return name in PATHS or ".".join(name.split(".")[:2]) in PATHS


def several_values(key: str, value: str, command: str) -> str:
    """What to say of commas where one value is asked for."""
    said = "which is a sweep: add -m" if command == "train" else "and takes one"
    quoted = f"; for one name with commas, quote it: {shlex.quote(setting(key, value))}"
    return f"names several values, {said}{quoted if is_path(key) else ''}"


def with_home(override: str) -> str:
    """An override with ``~`` at the beginning of its paths as the folder that a shell takes it for.

    >>> with_home("seed=~/a"), with_home("run=~/a") == f"run={os.path.expanduser('~/a')}"
    ('seed=~/a', True)
    """
    key, sign, value = override.partition("=")
    if not sign or "~" not in value or not is_path(key):
        return override
    return f"{key}={HOME.sub(lambda found: found[1] + os.path.expanduser(found[2]), value)}"


def quoted(override: str) -> str:
    """An override whose value is one path, in the quotes that Hydra wants around some of its signs.

    ``resume=`` is read without Hydra.

    >>> print(quoted("run=Größe (2)/a=b"), quoted("run=a b"), quoted("run=[a,b]"), quoted("seed==="))
    run="Größe (2)/a=b" run=a b run=[a,b] seed===
    """
    key, _, value = override.partition("=")
    name = key.lstrip("+")
    if not is_path(key) or name == "resume" or READ.fullmatch(value):
        return override
    return setting(key, value)

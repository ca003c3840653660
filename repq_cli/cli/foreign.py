"""What Hydra, OmegaConf and PyYAML have to say of a configuration, in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    InterpolationValidationError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from repq_cli.text import shortened

SAID: list[tuple[type[Exception], str]] = [
    (InterpolationKeyError, "refers to a key that there is not"),
    (InterpolationToMissingValueError, "refers to a key that has no value"),
    (UnsupportedInterpolationType, "holds ${NAME:…} with a NAME that nobody knows"),
    (InterpolationValidationError, "refers to a value of another kind"),
    (GrammarParseError, "holds a ${…} that cannot be read: it takes ${KEY}, with both braces"),
    (RecursionError, "refers to itself"),
    (InterpolationResolutionError, "holds a ${…} that has no value"),
]


def in_our_words(error: BaseException) -> str:
    """Why a configuration cannot be composed, as a sentence's predicate."""
    chain = list(_chain(error))
    for found in chain:
        if isinstance(found, yaml.MarkedYAMLError):
            mark = found.problem_mark or found.context_mark
            where = f"{mark.name}, line {mark.line + 1}" if mark is not None else "a file"
            return f"cannot be composed: {where} is no YAML"
        if isinstance(found, MissingConfigException):
            named = found.missing_cfg_file
            return f"names a file that there is not: {shortened(named)}" if named else "names a file that there is not"
    for kind, predicate in SAID:
        for found in chain:
            if isinstance(found, kind):
                return f"{predicate}{_where(found)}"
    foreign = next((found for found in chain if isinstance(found, (OmegaConfBaseException, HydraException))), None)
    if foreign is not None:
        return f"cannot be composed{_where(foreign)}: repq train --help lists groups and keys"
    return f"cannot be composed: {shortened(error, 200) or type(error).__name__}"


def _where(error: BaseException) -> str:
    """The names that it speaks of, and the key where they stand."""
    quoted = re.findall(r"'([\w./:-]{1,80})'", str(error).partition("\n")[0])
    key = getattr(error, "full_key", None)
    named = f" ({', '.join(dict.fromkeys(quoted))})" if quoted else ""
    return f"{named}, in {key}" if key and key not in quoted else named


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__

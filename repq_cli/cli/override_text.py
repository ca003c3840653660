"""An override of the command line as text, and its values one by one."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override


def values_of(override: Override) -> list[Any]:
    """The values that an override stands for: several in a choice sweep or a list of options."""
    if override.is_sweep_override():
        return [value.strip("'\"") for value in override.sweep_string_iterator()]
    value = override.value()
    return list(value) if isinstance(value, list) else ["null" if value is None else value]


def choices_of(override: Override) -> list[str]:
    """The override as text, once for each value that it sweeps over."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    prefix = (override.input_line or "").partition("=")[0]
    interval = override.value()
    if isinstance(interval, IntervalSweep):  # of which the ends are all that can be listed
        return [f"{prefix}={interval.start!r}", f"{prefix}={interval.end!r}"]
    return [f"{prefix}={value}" for value in override.sweep_string_iterator()]


def text_of(override: Override) -> str:
    """What stands behind its ``=``."""
    return (override.input_line or "").partition("=")[2]


def once(overrides: list[Override]) -> list[Override]:
    """Of overrides with the same key the last one, at the place of the first: as Hydra's sweeper has it."""
    return list({override.get_key_element(): override for override in overrides}.values())

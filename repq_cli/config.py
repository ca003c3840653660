"""The configuration, typed: what is validated becomes one of these once, and is passed on. Neither torch nor Hydra."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from repq_cli.bounds import Range
from repq_cli.effects import OF_DATA, Affects
from repq_cli.modes.catalogue import mode_named
from repq_cli.modes.mode import REP_WITHOUT_BRANCHES
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.targets import DataSection, ModelSection, RepSection, Target
from repq_cli.train.options import OptimOptions, QATOptions, RuntimeOptions, ScheduleOptions, StageOptions
from repq_cli.typecheck import annotations_of, bare

S = TypeVar("S")

Verbosity = Literal["quiet", "normal", "debug"]
Engine = Literal["fp", "fake", "deployed", "integer", "onnx", "xnor"]  # which of a finished run's networks
Rounding = Literal["gemmlowp", "onnxruntime"]  # of engine=integer: by fixed-point factors, or as a runtime's kernels
ImageShape = tuple[Annotated[int, Range(1)], Annotated[int, Range(1)], Annotated[int, Range(1)]]
NO_KEYS = {"arguments", "given"}  # fields that are none of a section's keys
FIELDS = {"in": "in_"}  # of keys that are words of Python's


@dataclass(frozen=True)
class Config:
    """The whole tree. A section with a ``_target_`` also takes that function's arguments.

    What a key affects stands in its annotation; what a whole section is said to affect, all its keys do.

    loss, score: (task=features) functions of plugins, which are given what the network gives and the targets.
    psnr_rounding: (super-resolution) pictures are rounded to 8 bit before they are measured; false: ECBSR's own rule.
    fast_dev_run: two steps of everything on a few images, to see what is broken; nothing of it is kept.
    input_shape: (``repq info`` only) channels, rows and columns of the images to count for, instead of the data's.
    given: the keys that were set, by a file or by hand, in their order; others are at their defaults.
    """

    model: ModelSection
    rep: RepSection
    data: DataSection
    quant: Annotated[QuantOptions, Affects.QAT]
    mode: Annotated[ModeOptions, Affects.QAT]
    fp: StageOptions
    qat: Annotated[QATOptions, Affects.QAT]
    optim: OptimOptions
    schedule: ScheduleOptions
    runtime: RuntimeOptions
    task: Literal["classification", "super_resolution", "features"] = "classification"
    loss: str | None = None
    score: str | None = None
    psnr_rounding: bool = True
    seed: Annotated[int, Range(0)] = 0
    verbosity: Annotated[Verbosity, Affects.NOTHING] = "normal"
    fast_dev_run: Annotated[bool, Affects.NOTHING] = False
    plugins: Annotated[list[str], Affects.PLACE] = field(default_factory=list)
    input_shape: Annotated[ImageShape | None, Affects.NOTHING] = None
    given: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Config:
        """A tree without mistakes, as ``schema.validate`` finds them; a key that it lacks is at its default."""
        return dataclasses.replace(section_of(cls, tree), given=tuple(_paths(tree)))

    def as_dict(self) -> dict[str, Any]:
        """All keys with their values."""
        return {key: _plain(getattr(self, key)) for key in keys_of(Config)}

    def stored(self) -> dict[str, Any]:
        """What config.yaml holds: the keys that were given."""
        everything, found = self.as_dict(), dict[str, Any]()
        for path in self.given:
            section, _, key = path.partition(".")
            if key:
                found.setdefault(section, {})[key] = everything[section][key]
            else:
                found[section] = everything[section]
        return found

    def selected(self, *effects: Affects) -> dict[str, Any]:
        """The keys that affect one of these, with their values; all of a plugin's data affect the FP net."""
        found: dict[str, Any] = {}
        for section, values in self.as_dict().items():
            if not isinstance(values, dict):
                if affected(section) in effects:
                    found[section] = values
                continue
            foreign = section == "data" and not self.data.is_ours
            kept = {
                key: value
                for key, value in values.items()
                if (Affects.FP if foreign else affected(f"{section}.{key}")) in effects
            }
            if kept:
                found[section] = kept
        return found

    @property
    def used_rep(self) -> dict[str, Any]:
        """The keys of ``rep`` that the FP net depends on, to which an identity is the same, split or not."""
        plain = not mode_named(self.mode.name).has_branches(self.rep.name)
        keys = self.rep.keys() | ({"identity": True} if self.rep.splits_identity else {})
        return {key: value for key, value in keys.items() if not plain or key in REP_WITHOUT_BRANCHES}


def keys_of(section: Any) -> dict[str, Any]:
    """The annotations of a section's own keys."""
    keys = {field: key for key, field in FIELDS.items()}
    return {keys.get(name, name): kind for name, kind in annotations_of(section).items() if name not in NO_KEYS}


def required(section: Any) -> list[str]:
    """The keys that have no default."""
    defaults = {key.name: (key.default, key.default_factory) for key in dataclasses.fields(section)}
    return [key for key in keys_of(section) if set(defaults[FIELDS.get(key, key)]) == {dataclasses.MISSING}]


def section_type(annotation: Any) -> Any:
    """The dataclass that an annotation is, alone or as one that may be null; None where it is of another kind."""
    options = (bare(annotation), *typing.get_args(bare(annotation)))
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def section_of(kind: type[S], values: Mapping[str, Any]) -> S:
    """A section of these values, typed; what is no key of its own is an argument of its target."""
    own = keys_of(kind)
    known = {FIELDS.get(key, key): parsed(own[key], value) for key, value in values.items() if key in own}
    if issubclass(kind, Target):
        known["arguments"] = {key: value for key, value in values.items() if key not in own}
    return kind(**known)


def parsed(annotation: Any, value: Any) -> Any:
    """The value of a key: a section as its dataclass, a list that stands for a tuple as one."""
    section, options = section_type(annotation), (bare(annotation), *typing.get_args(bare(annotation)))
    if section is not None and isinstance(value, Mapping):
        return section_of(section, value)
    if isinstance(value, list) and any(typing.get_origin(option) is tuple for option in options):
        return tuple(value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Target):
        return value.keys()
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _paths(tree: Mapping[str, Any]) -> list[str]:
    return [
        path
        for section, values in tree.items()
        for path in ([f"{section}.{key}" for key in values] if isinstance(values, Mapping) else [section])
    ]


@functools.cache
def affected(key: str) -> Affects:
    """What a key such as ``fp.reuse`` affects: what is said of its section, else of itself, else the FP net.

    Of one inside a key's value, such as ``data.test.set5``, what is said of that key.

    >>> affected("runtime.tile"), affected("fp.checkpoint"), affected("data.crop")
    (<Affects.NOTHING: 5>, <Affects.PLACE: 4>, <Affects.FP: 1>)
    """
    section, name, *_ = [*key.split("."), ""]
    annotation = keys_of(Config).get(section)
    said = _said(annotation)
    if said is None and name:
        kind = section_type(annotation)
        said = OF_DATA.get(name) if kind is DataSection else _said(keys_of(kind).get(name)) if kind else None
    return said or Affects.FP


# What a run may go on with another value of.
CHANGEABLE = "verbosity and those keys of runtime that change no result"


def may_change(key: str) -> bool:
    """Whether a run may go on with another value of a key, or of one that is misspelt and is told so later.

    >>> may_change("runtime.threads"), may_change("runtime.precision"), may_change("qat.lr")
    (True, False, False)
    """
    ours = key.startswith("runtime.") and (key not in DEFAULTS or affected(key) is Affects.NOTHING)
    return ours or key == "verbosity"


def _said(annotation: Any) -> Affects | None:
    return next((word for word in getattr(annotation, "__metadata__", ()) if isinstance(word, Affects)), None)


def _defaults(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    fields, without = {found.name: found for found in dataclasses.fields(kind)}, required(kind)
    for key, annotation in keys_of(kind).items():
        section, make = section_type(annotation), fields[key].default_factory
        if section is not None:
            yield from _defaults(section, f"{key}.")
        elif key not in without:
            yield f"{prefix}{key}", fields[key].default if make is dataclasses.MISSING else make()


DEFAULTS: dict[str, Any] = dict(_defaults(Config))  # of keys such as ``fp.head``, where they are left out

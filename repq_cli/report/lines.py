"""What tables are made of: settings, which may be averaged over seeds, and lines of them.

A *setting* is the runs that agree in all but the seed. A *line* is the settings that agree in all but mode and bits. An
*entry* is one mode at one width in a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repq_cli.modes.catalogue import mode_named, mode_order
from repq_cli.modes.catalogue.plain import Plain
from repq_cli.report.cells import Seeds
from repq_cli.report.runs import Bits, Run, bits_label
from repq_cli.runs.folder import CONFIG

FLOAT = Bits(32, 32)
REPS = ("none", "acnet", "dbb", "orepa", "ecb", "repvgg", "qarepvgg", "mobileone", "mobileone_k1", "sesr")
NOT_SET = "not set"  # a key that other runs of the model have
NO_CONFIG = {CONFIG: "missing"}

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """Runs that agree in everything but the seed; ``options`` are those that its mode and bits make use of."""

    model: str
    mode: str
    bits: Bits
    options: Options
    runs: tuple[Run, ...]

    @property
    def uses_branches(self) -> bool:
        """Whether its FP net is that of the block."""
        return mode_named(self.mode).uses_branches


@dataclass(frozen=True)
class Line:
    """Settings that agree in all but mode and bits; ``variant`` tells lines of the same model and rep apart."""

    model: str
    rep: str
    options: Options
    varying: frozenset[str]
    settings: tuple[Setting, ...]

    @property
    def variant(self) -> str:
        """What tells the line from others of its model and block; empty for most."""
        return variant_of(self.options, self.varying)

    @property
    def name(self) -> str:
        """How notes call it."""
        return f"{self.model} {self.rep}" + (f" ({self.variant})" if self.variant else "")

    def runs(self, plain: bool) -> list[Run]:
        """All runs of Plain, or all others: those that start from the same kind of FP net."""
        return [run for setting in self.settings if setting.uses_branches != plain for run in setting.runs]

    def seeds(self, mode: str, bits: Bits) -> Seeds:
        """The runs that count for a mode at a width."""
        return settle(run for setting in self._settings(mode, bits) for run in setting.runs)

    def entries(self) -> Iterator[Entry]:
        """Every mode at every width that was run: wide before narrow, Plain first."""
        for bits in widths([self]):
            for mode in modes([self]):
                options = max((setting.options for setting in self._settings(mode, bits)), key=len, default=None)
                if options is not None:
                    yield Entry(self, mode, bits, options, self.seeds(mode, bits))

    def _settings(self, mode: str, bits: Bits) -> list[Setting]:
        return [setting for setting in self.settings if (setting.mode, setting.bits) == (mode, bits)]


@dataclass(frozen=True)
class Entry:
    """One mode at one width in a line: its runs by seed, and the options that it makes use of."""

    line: Line
    mode: str
    bits: Bits
    options: Options
    seeds: Seeds

    @property
    def folders(self) -> tuple[str, ...]:
        """Where its runs are, which tells it from all others."""
        return tuple(run.folder for run in self.seeds.values())

    @property
    def plain(self) -> Seeds:
        """The runs of Plain at the same width."""
        return self.line.seeds(Plain.name, self.bits)

    @property
    def texts(self) -> tuple[str, str, str, str, str]:
        """Model, rep, bits, mode and variant."""
        variant = variant_of(self.options, self.line.varying)
        return self.line.model, self.line.rep, bits_label(self.bits), mode_named(self.mode).title, variant

    @property
    def texts_of_net(self) -> tuple[str, str, str, str, str]:
        """The same where a mode without branches stands once for all blocks."""
        model, rep, bits, mode, variant = self.texts
        return model, rep if mode_named(self.mode).uses_branches else "none", bits, mode, variant

    @property
    def is_beside_others(self) -> bool:
        """Whether the line has a mode of its block's branches at this width."""
        return any(setting.bits == self.bits and setting.uses_branches for setting in self.line.settings)


def settle(runs: Iterable[Run]) -> Seeds:
    """The run that counts for each seed: the newest finished one, else the last of those that did not finish."""
    ordered = sorted(runs, key=lambda run: (run.status == "done", run.finished, run.folder))
    chosen = {run.seed: run for run in ordered}
    return dict(sorted(chosen.items(), key=lambda item: (item[0] is None, item[0])))


def widths(lines: Iterable[Line]) -> list[Bits]:
    """Every width in ``lines``, wide before narrow."""
    return sorted({setting.bits for line in lines for setting in line.settings}, reverse=True)


def modes(lines: Iterable[Line]) -> list[str]:
    """Every mode in ``lines``, in the papers' order."""
    return sorted({setting.mode for line in lines for setting in line.settings}, key=mode_order)


def entries_of(lines: Sequence[Line], share_plain: bool) -> list[Entry]:
    """The entries of all lines, those of a model and block together, wide before narrow.

    Plain stands beside each block that was run at its width; with ``share_plain`` once for its model.
    """
    entries = [entry for line in lines for entry in line.entries()]
    baselines = {entry.folders for entry in entries if entry.is_beside_others}
    found: dict[object, Entry] = {}
    for entry in sorted(entries, key=_entry_order):
        if entry.is_beside_others or entry.folders not in baselines:
            once = not mode_named(entry.mode).uses_branches and (share_plain or not entry.is_beside_others)
            rep = "" if once else entry.line.rep
            found.setdefault((entry.line.model, rep, entry.mode, entry.bits, entry.folders), entry)
    return list(found.values())


def _entry_order(entry: Entry) -> tuple[object, ...]:
    widths = tuple(-width for width in entry.bits)
    return entry.line.model, rep_order(entry.line.rep), widths, mode_order(entry.mode), entry.texts[-1]


def rep_order(rep: str) -> tuple[int, str]:
    """What sorts blocks: ordinary convolutions first, QARepVGG behind RepVGG."""
    return (REPS.index(rep) if rep in REPS else len(REPS), rep)


def method(options: Options) -> str:
    """How weights and activations are quantized, in a word; empty where nothing is.

    >>> method({"quant.weight_method": "bwn", "quant.act_method": "sign"})
    'bwn/sign'
    """
    methods = (options.get("quant.weight_method"), options.get("quant.act_method"))
    return "/".join(str(name) for name in dict.fromkeys(methods) if name is not None)


def variant_of(options: Options, varying: frozenset[str], with_method: bool = True) -> str:
    """The quantizer's method unless it is LSQ, and the keys in which its like differ.

    >>> variant_of({"quant.weight_method": "affine", "fp.epochs": 8}, frozenset({"fp.epochs"}))
    'affine, fp.epochs=8'
    """
    words = [method(options)] if with_method and method(options) not in ("", "lsq") else []
    shown = sorted(key for key in varying if key in options)
    if NO_CONFIG.items() <= options.items():
        return ", ".join([*words, "no config.yaml"])
    return ", ".join([*words, *(option_text(key, options[key]) for key in shown)])


def option_text(key: str, value: Any) -> str:
    """``key=value`` as on the command line."""
    return f"{key} not set" if value == NOT_SET else f"{key}={value_text(value)}"


def value_text(value: Any) -> str:
    """A configuration's value as YAML writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)

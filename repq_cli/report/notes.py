"""What a reader has to know beside the numbers, in sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence

from repq_cli.modes.catalogue import mode_named
from repq_cli.report.lines import NO_CONFIG, Line, method, settle, value_text
from repq_cli.report.runs import Measured, Run, bits_label, compared
from repq_cli.report.sections import UNKNOWN, Section
from repq_cli.runs.quality import ENGINES

NAMED = 4  # lines or runs that a note names before it says how many more there are
MOST = 8  # notes of one kind

HEADINGS = {
    "warned": "Done, but not of use",
    "absent": "In no table or figure, since they ended before their first step of training",
    "failed": "Failed",
    "interrupted": "Interrupted (go on by repq train resume=DIR)",
    "pruned": "Stopped early by the sweep that tried them, since others promised more",
    "unfinished": "Unfinished (still running, or killed)",
}
FATES = {
    "failed": "failed",
    "interrupted": "was interrupted",
    "pruned": "was stopped early",
    "unfinished": "is unfinished",
}


def notes_on(section: Section) -> list[str]:
    """Unlike training, seeds that are not in a mean, runs passed over, metrics that are missing, pictures left out."""
    lines = section.lines
    finders = (
        _unlike(lines),
        _unknown(lines),
        _other_images(section),
        _partial(lines),
        _fp_differs(section),
        _fp_given(lines),
        _passed_over(lines),
        _without_metric(section),
        _identical(section),
    )
    return [note for found in finders for note in _first_few(list(found))]


def _first_few(notes: list[str]) -> list[str]:
    more = len(notes) - MOST
    return [*notes[:MOST], f"{more} more of this kind."] if more > 0 else notes


def notes_on_failures(runs: Sequence[Run]) -> list[str]:
    """A sentence for each way in which runs did not finish, or finished without being of use."""
    reasons: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    shown = {id(run) for run in compared(runs)}
    for run in runs:
        for warning in run.warnings:
            reasons["warned"][warning].append(run.name)
        if run.status != "done":
            reason = run.error.partition("\n")[0] if run.status == "failed" else ""
            reasons[run.status if id(run) in shown else "absent"][reason].append(run.name)
    return [
        note
        for status, found in sorted(reasons.items())
        for note in _first_few([_fate(HEADINGS[status], *item) for item in sorted(found.items())])
    ]


def _fate(heading: str, reason: str, names: Sequence[str]) -> str:
    said = f"{heading}: {_listed(names)}{': ' if reason else ''}{reason}"
    return said.rstrip(".") + "."


def _unlike(lines: Sequence[Line]) -> Iterator[str]:
    """Keys that differ between lines, but for those in which they are meant to differ."""
    for key in sorted({key for line in lines for key in line.options if key not in NO_CONFIG}):
        names: dict[Hashable, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for line in lines:
            if key in line.options:
                names[_family(key, line)][value_text(line.options[key])].append(line.name)
        for values in names.values():
            if len(values) > 1:
                said = [f"{value} in {_listed(found)}" for value, found in sorted(values.items())]
                yield f"Lines that are not set up alike: {key} is {'; '.join(said)}."


def _family(key: str, line: Line) -> Hashable:
    """Lines within which a key should be the same: models have their own, so have blocks and quantizers."""
    families = {
        "model": line.model,
        "rep": (line.model, line.rep),
        "quant": method(line.options),
        "mode": method(line.options),
    }
    return families.get("rep" if key == "fp.merged_training" else key.partition(".")[0])


def _unknown(lines: Sequence[Line]) -> Iterator[str]:
    names = [line.name for line in lines if NO_CONFIG.items() <= line.options.items()]
    if names:
        yield f"How the runs of {_listed(names)} were trained is not known: their folders hold no config.yaml."


def _other_images(section: Section) -> Iterator[str]:
    """Runs on other images under the same configuration of data, and runs whose images changed on their way."""
    folders: dict[Hashable, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run in section.runs:
        if run.data_hash is not None:
            asked = {key: value for key, value in run.options.items() if key.startswith(("data.", "model.scale"))}
            folders[frozenset(asked.items())][run.data_hash].append(run.folder)
    for found in folders.values():
        if len(found) > 1:
            said = "; others in ".join(_listed(names) for names in found.values())
            yield f"Not on the same images, though configured alike: some in {said}. They do not compare."
    changed = [run.folder for run in section.runs if run.data_changed]
    if changed:
        how = "runtime.changed_data=accept"
        yield f"Went on over images that had changed since they began ({how}): {_listed(changed)}."


def _partial(lines: Sequence[Line]) -> Iterator[str]:
    """Means over fewer seeds than were run."""
    for line in lines:
        for entry in line.entries():
            lost = [run for run in entry.seeds.values() if run.status != "done"]
            if 0 < len(lost) < len(entry.seeds):
                what = ", ".join(f"seed {run.seed} {FATES[run.status]}" for run in lost)
                kept = len(entry.seeds) - len(lost)
                yield (
                    f"{line.name}, {mode_named(entry.mode).title}, {bits_label(entry.bits)}: the mean is over "
                    f"{kept} of {len(entry.seeds)} seeds; {what}."
                )


def _fp_differs(section: Section) -> Iterator[str]:
    """Runs of one line and seed share the FP net, so that its metric is the same, unless something changed."""
    for line in section.lines:
        for plain in (True, False):
            values = defaultdict(set)
            for seed, run in _counting(line, plain):
                if run.status == "done" and "metric.fp" in run.numbers:
                    values[seed].add(section.form(run.numbers["metric.fp"]))
            for seed, found in values.items():
                if len(found) > 1:
                    who = f"{line.name}{', Plain' if plain else ''}, seed {seed}"
                    yield (
                        f"{who}: the FP metric is not the same in all runs ({', '.join(sorted(found))}), "
                        f"so that they did not start from the same weights; the FP column shows the newest."
                    )


def _fp_given(lines: Sequence[Line]) -> Iterator[str]:
    """Files in place of FP training make no line of their own: several of them, or some runs without, have to be said.

    One file for each seed is what such runs are meant to have.
    """
    for line in lines:
        for plain in (True, False):
            files: dict[int | None, set[str | None]] = defaultdict(set)
            for seed, run in _counting(line, plain):
                files[seed].add(run.fp_file)
            found = sorted({file for of_seed in files.values() for file in of_seed if file is not None})
            if any(None in of_seed for of_seed in files.values()) and found:
                yield f"{line.name}: FP nets come from files in some runs ({_listed(found)}), and not in others."
            elif any(len(of_seed) > 1 for of_seed in files.values()):
                yield f"{line.name}: FP nets of one seed come from different files: {_listed(found)}."


def _counting(line: Line, plain: bool) -> Iterator[tuple[int | None, Run]]:
    """The runs that count, Plain's or all others, with their seeds."""
    for setting in line.settings:
        if setting.uses_branches != plain:
            yield from settle(setting.runs).items()


def _passed_over(lines: Sequence[Line]) -> Iterator[str]:
    """Several runs of one configuration. Copies of identical runs, and Plain's for other blocks, are none."""
    settings = {id(setting): setting for line in lines for setting in line.settings}
    for setting in settings.values():
        for seed, chosen in settle(setting.runs).items():
            others = [
                run.folder
                for run in setting.runs
                if run.seed == seed
                and run is not chosen
                and run.rep == chosen.rep
                and not (run.linked or chosen.linked)
            ]
            if others:
                rule = "the newest finished one" if chosen.status == "done" else "the last one; none is done"
                if len({run.fp_file for run in setting.runs if run.seed == seed}) > 1:
                    rule += " (fp.checkpoint is not the same in all)"
                yield (
                    f"{len(others) + 1} runs of the same configuration and seed: {chosen.folder} counts, {rule}, "
                    f"and {_listed(sorted(others))} not."
                )


def _without_metric(section: Section) -> Iterator[str]:
    names = [run.name for run in section.runs if run.status == "done" and "metric.deployed" not in run.numbers]
    if names and section.metric != UNKNOWN:
        yield f"Done, but without {section.metric.name} of the deployed net: {_listed(sorted(names))}."


def _identical(section: Section) -> Iterator[str]:
    """Pictures that a net gives back exactly have no PSNR, and means over different pictures do not compare."""
    names: dict[tuple[Measured, float], list[str]] = defaultdict(list)
    for run in section.runs:
        for key, count in run.identical.items():
            if key.name == section.metric.name:
                names[key, count].append(run.name)
    for (key, count), found in names.items():
        yield (
            f"{key.name} on {key.set}: {count:g} identical to the original and no part of the mean, "
            f"{ENGINES.get(key.engine, key.engine)} in {_listed(found)}."
        )


def _listed(names: Iterable[str]) -> str:
    """A few of them and how many more.

    >>> _listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more

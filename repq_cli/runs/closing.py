"""The table that a run ends with."""

from __future__ import annotations

from repq_cli.modes.catalogue import mode_named
from repq_cli.modes.mode import Mode
from repq_cli.runs.quality import ENGINES, UNITS, shown
from repq_cli.runs.row import Row
from repq_cli.text import file_size, scaled

MUCH_WAITING = 0.05  # of the time of training; less is not worth a word


def closing_table(row: Row) -> str:
    """FP, QAT and deployed metric, size, cost and time of a finished run, as text."""
    mode, size, cost = mode_named(row["mode"]), row["size"], row["cost"]
    quant = row["quant"]
    bits = f"weights {_bits(quant['weight_bits'])}, activations {_bits(quant['act_bits'])}"
    lines = [
        ("net", f"{row['model']}, rep {row['rep']}, mode {row['mode']}, {bits}"),
        *_qualities(row, mode),
        ("size", f"{file_size(size['bytes_packed'])} deployed, {file_size(size['bytes_fp32'])} in float32"),
        ("parameters", f"{size['params_train']:,} in training, {size['params_deployed']:,} deployed"),
        ("cost", f"{scaled(cost['macs'])}MACs, {scaled(cost['bops'])}BOPs for one image"),
        ("time", closing_time(row)),
        (f"deployed = {mode.ships}", _proof(row["checks"])),
    ]
    lines[2:2] = mode.closing_lines(row)
    lines += [("WARNING", warning) for warning in row.get("warnings", [])]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in lines)


def _bits(bits: int) -> str:
    return "float" if bits == 32 else f"{bits} bit"


def _qualities(row: Row, mode: Mode) -> list[tuple[str, str]]:
    """The run's metric by every engine, a line for each evaluation set."""
    metric, engines = row["metric"]["name"], ENGINES | ({} if mode.trains else {"fake": mode.title})
    lines: dict[str, list[str]] = {}
    for found in row["metrics"]:
        if found["name"] == metric and ("value" in found or "identical" in found):
            word = f"{engines[found['engine']]} {shown(found, f' {UNITS[metric]}'.rstrip())}"
            name = found["set"] if "scale" in found else found["set"].rpartition("/")[2]
            lines.setdefault(name, []).append(word)
    return [(f"{metric} ({name})", "   ".join(words)) for name, words in lines.items()]


def closing_time(row: Row) -> str:
    """How long both stages took, and that much of it was waiting for data, where it was."""
    time, parts = row["time"], []
    earlier = " in an earlier run" if row["lineage"].get("fp_run") else ""
    for key, name, where in (("fp", "FP", earlier), ("qat", "QAT", "")):
        if f"{key}_seconds" in time:
            waited = time.get(f"{key}_input_share", 0.0)  # of a run of an earlier version unknown
            waiting = f", {100 * waited:.0f} % of the time waiting for data" if waited >= MUCH_WAITING else ""
            step = f" ({time[f'{key}_step_ms']:.0f} ms a step{waiting})" if f"{key}_step_ms" in time else ""
            epochs = time.get(f"{key}_stopped_after")
            stopped = f", stopped after {epochs:.0f} epochs" if epochs is not None else ""
            parts.append(f"{name} {time[f'{key}_seconds']:.0f} s{step}{stopped}{where}")
    return ", ".join(parts) or "no training"


def _proof(checks: Row) -> str:
    largest = checks["freeze_max_abs"]
    whats = {"pixel": "pixels", "feature": "outputs", "top1": "answers"}
    answers = next(
        f"{checks[key]:.0f} % of {what}"
        for word, what in whats.items()
        if (key := f"freeze_{word}_agreement") in checks
    )
    return f"exactly: largest difference 0, {answers} equal" if largest == 0 else f"no: {largest:g}, {answers} equal"

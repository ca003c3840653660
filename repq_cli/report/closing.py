"""The table that a run ends with."""

from __future__ import annotations

from repq_cli.report.row import Row

UNITS = {"top1": "%", "psnr_y": "dB"}


def closing_table(row: Row) -> str:
    """FP, QAT and deployed metric, size, cost and time of a finished run, as text."""
    metric, size, cost, time = row["metric"], row["size"], row["cost"], row["time"]
    unit = UNITS[metric["name"]]
    quant = row["quant"]
    bits = f"weights {_bits(quant['weight_bits'])}, activations {_bits(quant['act_bits'])}"
    lines = [
        ("net", f"{row['model']}, rep {row['rep']}, mode {row['mode']}, {bits}"),
        (f"{metric['name']} ({metric['split']})", _three(metric, unit, row["mode"])),
        ("size", f"{_bytes(size['bytes_packed'])} deployed, {_bytes(size['bytes_fp32'])} in float32"),
        ("parameters", f"{size['params_train']:,} in training, {size['params_deployed']:,} deployed"),
        ("cost", f"{_scaled(cost['macs'])}MACs, {_scaled(cost['bops'])}BOPs for one image"),
        ("time", _time(time)),
        (f"deployed = {'requantized' if 'branchwise' in row else 'trained'}", _proof(row["checks"])),
    ]
    if "branchwise" in row:
        lines.insert(2, ("merging would need", _merging(row["branchwise"])))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in lines)


def _bits(bits: int) -> str:
    return "float" if bits == 32 else f"{bits} bit"


def _three(metric: Row, unit: str, mode: str) -> str:
    names = {"fp": "FP", "qat": "PTQ" if mode == "ptq" else "QAT", "deployed": "deployed"}
    return "   ".join(f"{name} {metric[key]:.2f} {unit}" for key, name in names.items() if key in metric)


def _scaled(count: float) -> str:
    """Three significant digits and the SI prefix.

    >>> _scaled(1_361_451_000), _scaled(999)
    ('1.36 G', '999 ')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {prefix}"
    return f"{count:g} "


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _merging(needs: Row) -> str:
    return f"{needs['table_bits']} bits with a look-up table, {needs.get('uniform_bits') or 'more than 24'} as integers"


def _time(time: Row) -> str:
    parts = []
    for key, name in (("fp", "FP"), ("qat", "QAT")):
        if f"{key}_seconds" in time:
            step = f" ({time[f'{key}_step_ms']:.0f} ms a step)" if f"{key}_step_ms" in time else ""
            parts.append(f"{name} {time[f'{key}_seconds']:.0f} s{step}")
    return ", ".join(parts) or "no training"


def _proof(checks: Row) -> str:
    largest = checks["freeze_max_abs"]
    answers = f"{checks['freeze_top1_agreement']:.0f} % of answers equal"
    return f"exactly: largest difference 0, {answers}" if largest == 0 else f"no: {largest:g}, {answers}"

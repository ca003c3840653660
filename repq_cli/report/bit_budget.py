"""What a budget of bit operations buys, as a table and as the key that a run takes."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from typing import Any

from repq_cli.report.diagnosis import shortened
from repq_cli.text import columns

Numbers = dict[str, Any]

WIDTH = 120  # columns


def budget_text(diagnosis: Numbers) -> str:
    """The noise of each layer by width and the width chosen, what all together costs, and the override."""
    budget = diagnosis["budget"]
    widths = list(budget["same_bits"])
    lines = [["layers that read one tensor", "MMACs", *(f"dB at {width}" for width in widths), "bits"]]
    for group in budget["groups"]:
        name = " ".join(map(shortened, group["layers"]))
        noises = [_db(group["noise_db"][width]) for width in widths]
        lines.append([name, f"{group['macs'] / 1e6:.3f}", *noises, str(group["bits"])])
    same = ", ".join(
        f"{width} bit {numbers['gbops']:.3g} GBOPs {_db(numbers['noise_db'])} dB"
        for width, numbers in budget["same_bits"].items()
    )
    chosen = budget["chosen"]
    spent = (
        f"{chosen['gbops']:.3g} of {budget['gbops']:g} GBOPs, {_db(chosen['noise_db'])} dB if noises add up; the same "
        f"bits for all: {same}."
    )
    return "\n".join(
        [
            columns(lines, 1),
            "dB: the FP net's outputs over their noise with only these layers quantized, before QAT.\n",
            textwrap.fill(spent, WIDTH),
            shlex.join(_overrides(budget)),
        ]
    )


def _overrides(budget: Numbers) -> list[str]:
    """The keys of a run with these bits: the most frequent width, and the layers of another one."""
    bits = {name: group["bits"] for group in budget["groups"] for name in group["layers"]}
    (usual, _), *_ = Counter(bits.values()).most_common(1)
    others = ", ".join(f"{name}: {width}" for name, width in bits.items() if width != usual)
    return [
        f"quant.weight_bits={usual}",
        f"quant.act_bits={usual}",
        *([f"quant.layers={{{others}}}"] if others else []),
    ]


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"

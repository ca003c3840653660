"""A diagnosis as tables: the network as a whole, and its layers, worst first."""

from __future__ import annotations

from typing import Any

from repq_cli.runs.quality import measured
from repq_cli.text import columns

Numbers = dict[str, Any]

IMAGES, POINTS, DECIBELS = 2, 0.2, 0.05  # differences up to so many images, points or dB are taken for chance
LONGEST_NAME = 22
QUIET = 1000.0  # dB, where there is no noise at all

SETTINGS = {
    "fp": "FP net",
    "nothing": "nothing quantized",
    "weights": "only weights quantized",
    "activations": "only activations quantized",
    "everything": "everything quantized",
}


def by_harm(diagnosis: Numbers) -> list[Numbers]:
    """The layers, worst first: by what is lost with only this one quantized, then by the noise of the output.

    In a network that is better with its codes than without, by what is gained with only this one float, then by the
    noise of its weights. What chance explains counts as nothing.
    """
    least, fitted = chance(diagnosis), is_fitted(diagnosis)

    def harm(layer: Numbers) -> tuple[float, float]:
        change = gain(diagnosis, layer) if fitted else layer["alone"]["drop"]
        noise = (layer.get("weights") or {}).get("sqnr") if fitted else layer["alone"]["output_sqnr"]
        return -change if change > least else 0.0, QUIET if noise is None else noise

    return sorted(diagnosis["layers"], key=harm)


def is_fitted(diagnosis: Numbers) -> bool:
    """Whether QAT has made weights that are better quantized than not, so that a layer alone says little."""
    return bool(diagnosis["network"]["everything"]["drop"] < -chance(diagnosis))


def gain(diagnosis: Numbers, layer: Numbers) -> float:
    """By how much the metric of the quantized network is better with only this layer float."""
    return float(diagnosis["network"]["everything"]["drop"] - layer["spared"]["drop"])


def chance(diagnosis: Numbers) -> float:
    """The largest difference that says nothing."""
    if diagnosis["metric"]["unit"] == "dB":
        return DECIBELS
    return max(IMAGES * 100 / diagnosis["data"]["images"], POINTS)


def guess(diagnosis: Numbers) -> float:
    """Up to which metric a network may have learned nothing; minus infinity where that is not known."""
    return float(diagnosis["metric"].get("guess", -float("inf")))


def value_of(diagnosis: Numbers, setting: str) -> float:
    """The metric of the whole network in one of ``SETTINGS``."""
    found = diagnosis["network"][setting]
    return found["value"] if isinstance(found, dict) else found


def gap_unit(diagnosis: Numbers) -> str:
    """The unit of differences of the metric."""
    unit = diagnosis["metric"]["unit"]
    return "points" if unit == "%" else str(unit)


def summary(diagnosis: Numbers) -> str:
    """The metric of the whole network in every setting."""
    lines = [["", diagnosis["metric"]["name"], "drop", "output SQNR"]]
    for setting, name in SETTINGS.items():
        found = diagnosis["network"][setting]
        more = ["", ""]
        if isinstance(found, dict):
            more = [f"{drop_text(found['drop'])} {gap_unit(diagnosis)}", f"{_tenth(found['output_sqnr'])} dB"]
        lines.append([name, measured(value_of(diagnosis, setting), diagnosis["metric"]["name"]), *more])
    return columns(lines, 1)


def layer_table(diagnosis: Numbers) -> str:
    """A line for each layer, worst first, in at most 120 columns."""
    header = ["layer", "bits", "drop", "gain", "out dB", "range", "branches"]
    lines = [[*header, "weight dB", "clip", "zero", "input dB", "clip", "zero"]]
    for layer in by_harm(diagnosis):
        weights, tensor = layer.get("weights"), layer.get("input")
        ratios = layer.get("range_ratio", {"merged": None, "branches": {}})
        branches = [ratio["largest"] for ratio in ratios["branches"].values() if ratio]
        lines.append(
            [
                shortened(layer["name"]),
                f"{weights['bits'] if weights else 32}/{tensor['bits'] if tensor else 32}",
                drop_text(layer["alone"]["drop"]),
                drop_text(gain(diagnosis, layer)),
                _tenth(layer["alone"]["output_sqnr"]),
                f"{ratios['merged']['largest']:.1f}" if ratios["merged"] else "",
                f"{max(branches):.1f}" if branches else "",
                *_noise(weights),
                *_noise(tensor),
            ]
        )
    return columns(lines, 1)


LEGEND = """\
drop, out dB: of the metric, and over the output's noise, with only this layer (weights and input) quantized, against
none. gain: of the metric with only this layer float, against none. range: max over rms of the merged kernel, and the
largest of its branches', both in the worst channel. dB: signal to quantization noise. clip, zero: percent of values
beyond the codes, and of codes that are zero."""


def _noise(numbers: Numbers | None) -> list[str]:
    if numbers is None:
        return ["float", "", ""]
    clipped = "" if numbers["clipped"] is None else f"{100 * numbers['clipped']:.1f}"
    return [_tenth(numbers["sqnr"]), clipped, f"{100 * numbers['zero']:.1f}"]


def _tenth(decibels: float | None) -> str:
    return "exact" if decibels is None else f"{decibels:.1f}"


def drop_text(value: float) -> str:
    """Two digits; what rounds to zero has no sign."""
    return f"{value:.2f}" if round(value, 2) else "0.00"


def shortened(name: str) -> str:
    """The end of a long name."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"

"""What to try, by stated rules from the numbers of a diagnosis."""

from __future__ import annotations

from collections.abc import Sequence

from repq_cli.modes.catalogue import mode_named
from repq_cli.report.diagnosis import (
    SETTINGS,
    Numbers,
    by_harm,
    chance,
    drop_text,
    gain,
    gap_unit,
    guess,
    is_fitted,
    value_of,
)
from repq_cli.targets import HAVE_IDENTITY

WIDER = {1: 2, 2: 4, 3: 4, 4: 8}  # the next width worth trying
NARROWER = {8: 4, 7: 4, 6: 4, 5: 4, 4: 2, 3: 2}
UGLY = 1.5  # times the largest range ratio of its branches: a merged kernel that is much worse than they are
MANY_ZEROS = 0.5
WORST = 3  # layers that are looked at for a remedy
MOST_OF_IT = 0.5  # of the whole drop: a layer that costs this much alone explains it
# dB over the noise that a uniform quantizer of so many bits leaves of a normal distribution, at its best step.
BEST = {1: 4.4, 2: 9.25, 3: 14.27, 4: 19.38, 5: 24.57, 6: 29.83, 7: 35.13, 8: 40.34}
GROWN = 9.0  # dB below that: steps of more than twice the best size
FEW = 0.001  # of the weights
FEW_CODES = (
    "sign",
    "bwn",
    "twn",
)  # methods of one or two bits that have no wider form; their range is not in the codes
WIDER_SYSTEM = "quant=w2a2"


def advice(diagnosis: Numbers) -> list[str]:
    """Two sentences: what hurts and what to try, then which layer it is in.

    The rules, in their order: there is nothing to lose, where no net is better than a guess; it is not the codes, where
    more than half of what is missing to the FP net stays missing with nothing quantized; nothing hurts, where
    everything quantized is as good as nothing quantized, up to what chance explains; else weights or activations,
    whichever lose more by themselves.
    """
    value = {setting: value_of(diagnosis, setting) for setting in SETTINGS}
    sign = 1 if diagnosis["metric"]["higher_is_better"] else -1
    missing = sign * (value["fp"] - value["everything"])
    drop = diagnosis["network"]["everything"]["drop"]
    least, unit = chance(diagnosis), diagnosis["metric"]["unit"]
    mode = mode_named(diagnosis["mode"])
    if all(value[net] <= guess(diagnosis) for net in ("fp", "everything")):
        return [_untrained(diagnosis, value), _noisiest(diagnosis)]
    if missing > least and (mode.known_loss or diagnosis["quant"]["weight_method"] in FEW_CODES):
        return [_by_design(diagnosis, value), _noisiest(diagnosis)]
    if missing > least and drop < missing / 2 and mode.trains:
        fitted = is_fitted(diagnosis)
        return [_training(diagnosis, value, fitted), _spared(diagnosis, least) if fitted else _noisiest(diagnosis)]
    if drop <= least:
        than = "the FP net" if is_fitted(diagnosis) else "nothing quantized"
        other = value["fp" if is_fitted(diagnosis) else "nothing"]
        return [
            f"Nothing hurts: everything quantized has {value['everything']:.2f} {unit}, {than} {other:.2f} {unit}, and "
            f"up to {least:.2g} {gap_unit(diagnosis)} would be chance. {_narrower(diagnosis)}",
            _noisiest(diagnosis),
        ]
    return [_cause(diagnosis, drop, least), _where(diagnosis, drop, least)]


def _untrained(diagnosis: Numbers, value: Numbers) -> str:
    """Why a net that knows nothing says nothing of quantization."""
    unit = diagnosis["metric"]["unit"]
    return (
        f"There is nothing that quantization could take away: the FP net has {value['fp']:.2f} {unit}, and a guess has "
        f"up to {guess(diagnosis):.2f} {unit}: train the FP stage longer, or with another fp.lr."
    )


def _by_design(diagnosis: Numbers, value: Numbers) -> str:
    """What is lost by a method for which the network without codes says nothing."""
    unit, method = diagnosis["metric"]["unit"], diagnosis["quant"]["weight_method"]
    said = f"The FP net has {value['fp']:.2f} {unit} and the network with its codes {value['everything']:.2f} {unit}"
    if reason := mode_named(diagnosis["mode"]).known_loss:
        return f"{said}, since {reason}: try mode=auto."
    return (
        f"{said}; weights behind codes of quant.weight_method={method} are not meant to be used as they are, so that "
        f"the network without codes tells nothing: try more qat.epochs, or {WIDER_SYSTEM}."
    )


def _training(diagnosis: Numbers, value: Numbers, fitted: bool) -> str:
    """What QAT has lost. ``fitted``: the network is better with its codes than without them."""
    unit = diagnosis["metric"]["unit"]
    remedy = _for_range(diagnosis, diagnosis["layers"]) or "a lower qat.lr or more qat.epochs"
    if fitted:
        return (
            f"QAT has fitted the weights to their codes ({value['everything']:.2f} {unit} with them, "
            f"{value['nothing']:.2f} {unit} without) and has not come back to the {value['fp']:.2f} {unit} of the FP "
            f"net: try {remedy}."
        )
    return (
        f"It is not the codes: the FP net has {value['fp']:.2f} {unit}, and the network after QAT "
        f"{value['nothing']:.2f} {unit} with nothing quantized, so QAT itself lost it: try {remedy}."
    )


def _spared(diagnosis: Numbers, least: float) -> str:
    """The layer that is better float, if there is one."""
    worst = by_harm(diagnosis)[0]
    gained = gain(diagnosis, worst)
    if gained <= least:
        return _noisiest(diagnosis)
    return f"With {worst['name']} alone left float it gains {gained:.2f} {gap_unit(diagnosis)}: more bits belong there."


def _noisiest(diagnosis: Numbers) -> str:
    """The layer whose weights are noisiest for their width."""
    named = _weighted(diagnosis)
    if not named:
        return "No layer's weights have any noise."
    layer = max(named, key=_lacking)
    weights = layer["weights"]
    said = (
        f"Its noisiest weights, for their width, are those of {layer['name']}: {weights['sqnr']:.1f} dB, where "
        f"{weights['bits']} bit can give normally distributed ones {BEST[weights['bits']]:.0f} dB"
    )
    if _lacking(layer) > GROWN and weights["clipped"] is not None and weights["clipped"] < FEW:
        return f"{said}; next to none is clipped, so that its steps have grown too large: try a lower qat.lr."
    return f"{said}; {100 * weights['zero']:.0f} % of its codes are zero."


def _weighted(diagnosis: Numbers) -> list[Numbers]:
    """The layers whose weights have any noise."""
    return [layer for layer in diagnosis["layers"] if layer.get("weights") and layer["weights"]["sqnr"] is not None]


def _lacking(layer: Numbers) -> float:
    """How many dB a layer's weights have less than normally distributed ones can have."""
    weights = layer["weights"]
    return float(BEST[weights["bits"]] - weights["sqnr"])


def _narrower(diagnosis: Numbers) -> str:
    """Fewer bits, unless the network bears its codes only because the task forgives them."""
    quant = diagnosis["quant"]
    spoilt = [layer for layer in _weighted(diagnosis) if _lacking(layer) > GROWN]
    if 2 * len(spoilt) > len(diagnosis["layers"]):
        return (
            f"But the weights of {len(spoilt)} of {len(diagnosis['layers'])} layers are nearly noise, which other data "
            f"would not forgive: try {_for_weights(diagnosis, by_harm(diagnosis))}."
        )
    bits = {key: NARROWER[quant[key]] for key in ("weight_bits", "act_bits") if quant[key] in NARROWER}
    if not bits:
        return "Fewer bits are hardly to be had: ship it."
    return f"Fewer bits may do: try {' '.join(f'quant.{key}={width}' for key, width in bits.items())}."


def _cause(diagnosis: Numbers, drop: float, least: float) -> str:
    """Weights or activations, and the first remedy that the numbers point to."""
    network, quant, unit = diagnosis["network"], diagnosis["quant"], gap_unit(diagnosis)
    weights, activations = network["weights"], network["activations"]
    both = max(weights["drop"], activations["drop"]) <= least
    key = _loudness if both else _loss
    worse = "activations" if key(activations) > key(weights) else "weights"
    less = "weights" if worse == "activations" else "activations"
    lost = [f"{network[name]['drop']:.2f} {unit}" for name in (worse, less)]
    which = f"{worse} and {less} alike" if lost[0] == lost[1] else f"{worse} more than {less}"
    said = f"Quantization costs {drop:.2f} {unit}, {which} ({lost[0]} against {lost[1]} by themselves)"
    mode = mode_named(diagnosis["mode"])
    if not mode.trains:
        return f"{said}, and mode={mode.name} trains nothing: try QAT, mode=auto."
    worst = by_harm(diagnosis)
    return (
        f"{said}: try {_for_activations(quant, worst) if worse == 'activations' else _for_weights(diagnosis, worst)}."
    )


def _loss(found: Numbers) -> float:
    return float(found["drop"])


def _loudness(found: Numbers) -> float:
    return -float("inf") if found["output_sqnr"] is None else -float(found["output_sqnr"])


def _for_activations(quant: Numbers, worst: Sequence[Numbers]) -> str:
    if quant["act_method"] in FEW_CODES:
        return WIDER_SYSTEM
    offset = quant["act_method"] == "lsq" and any(
        layer["input"] and layer["input"]["signed"] for layer in worst[:WORST]
    )
    wider = WIDER.get(quant["act_bits"])
    remedies = [f"quant.act_bits={wider}"] if wider else []
    remedies += ["quant.act_method=lsqplus, since the worst layers read values of both signs"] if offset else []
    return " or ".join(remedies) or "more qat.epochs"


def _for_range(diagnosis: Numbers, layers: Sequence[Numbers]) -> str | None:
    """The remedy for a merged kernel whose range is far above those of its branches; None where all are tame."""

    def excess(layer: Numbers) -> float:
        ratios = layer.get("range_ratio", {"merged": None, "branches": {}})
        largest = max((ratio["largest"] for ratio in ratios["branches"].values() if ratio), default=None)
        return ratios["merged"]["largest"] / largest if ratios["merged"] and largest else 0.0

    worst = max(layers, key=excess)
    if excess(worst) <= UGLY:
        return None
    merged = worst["range_ratio"]["merged"]["largest"]
    merges_first = mode_named(diagnosis["mode"]).merges_first
    remedies = ["mode=auto, which keeps the branches in QAT,"] if merges_first else []
    splits = diagnosis["quant"]["weight_method"] == "lsq" and 1 < diagnosis["quant"]["weight_bits"] < 8
    if diagnosis["rep"] in HAVE_IDENTITY and splits:
        remedies += ["rep.identity=split"]
    elif diagnosis["rep"] == "repvgg":
        remedies += ["rep=qarepvgg"]
    remedies += [] if len(remedies) == 2 else ["more qat.epochs"]
    return (
        f"{' or '.join(remedies)}, since the merged kernel of {worst['name']} reaches {merged:.1f} times its rms, and "
        f"those of its branches at most {merged / excess(worst):.1f}"
    )


def _for_weights(diagnosis: Numbers, worst: Sequence[Numbers]) -> str:
    quant = diagnosis["quant"]
    remedy = _for_range(diagnosis, worst[:WORST])
    if remedy:
        return remedy
    if quant["granularity"] == "tensor":
        return "quant.granularity=channel, since all output channels of a layer share one step"
    wider = WIDER.get(quant["weight_bits"])
    bits = f"quant.weight_bits={wider}" if wider else "more qat.epochs"
    zeros = [layer for layer in worst[:WORST] if layer.get("weights") and layer["weights"]["zero"] > MANY_ZEROS]
    if zeros:
        share = 100 * zeros[0]["weights"]["zero"]
        return f"{bits}, since {share:.0f} % of the codes of {zeros[0]['name']} are zero"
    return f"{bits} or more qat.epochs" if wider else bits


def _where(diagnosis: Numbers, drop: float, least: float) -> str:
    """Whether one layer explains the drop."""
    unit, worst, count = gap_unit(diagnosis), by_harm(diagnosis)[0], len(diagnosis["layers"])
    alone = worst["alone"]["drop"]
    if alone <= least or alone < MOST_OF_IT * drop:
        return (
            f"No layer explains it alone ({worst['name']}, the worst, costs {drop_text(alone)} {unit}): what is lost "
            f"adds up over the {count} layers, and exceptions for single ones would not bring it back."
        )
    said = f"{worst['name']} alone costs {alone:.2f} {unit}"
    widths = [numbers["bits"] for numbers in (worst.get("weights"), worst.get("input")) if numbers]
    if worst["edge"] and min(widths) < 8:
        return f"{said}; it is the first or the last layer, which quant.first_last=8 keeps at 8 bit."
    return f"{said}: more bits, or a longer QAT, have to help this layer first."

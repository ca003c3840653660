"""The ``mode`` section of the configuration. No torch here, so that a mistake is reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from repq_cli.bounds import Range

ModeName = Literal["auto", "plain", "merged", "repq", "repq_bn", "repq_bnest", "ptq", "branchwise"]


@dataclass(frozen=True)
class ModeOptions:
    """When branches are merged, before or inside QAT, and what the papers leave open about it.

    name: ``plain`` (no branches at all), ``merged`` (merge, then QAT), ``repq`` (quantize the merged kernel in QAT;
        batch norm frozen to its running statistics), ``repq_bn`` (batch statistics), ``repq_bnest`` (estimated);
        and what RepQ argues against: ``ptq`` (merge, calibrate, no QAT: qat.* is not used) and ``branchwise``
        (quantize each branch's kernels in QAT, merge afterwards, quantize the merged kernel again).
    stats_input: statistics of the tensor before its quantizer (``fp``) or of its codes (``quant``).
    detach_stats: stop gradients through the statistics; cheaper, but no longer batch norm.
    freeze_bn_after: QAT epochs after which running statistics are used and kept; null: never.
    estimator: moments of what each tap sees (``offset``: exact mean) or of whole channels (``channel``).
    bnest_init: ``rescale`` makes the switch to estimated statistics keep the network's function; ``none`` does not.
    plain_bn: batch norm behind the quantized convolution (``unfolded``, as LSQ) or inside its weight (``folded``).
    merged_bn: ``none``, or ``reinsert`` a batch norm behind each merged convolution, keeping the function.
    """

    name: ModeName = "auto"
    stats_input: Literal["fp", "quant"] = "fp"
    detach_stats: bool = False
    freeze_bn_after: Annotated[int, Range(0)] | None = None
    estimator: Literal["offset", "channel"] = "offset"
    bnest_init: Literal["rescale", "none"] = "rescale"
    plain_bn: Literal["unfolded", "folded"] = "unfolded"
    merged_bn: Literal["none", "reinsert"] = "none"


def resolve_mode(name: str, rep: str, has_batch_norm: bool, weight_bits: int) -> str:
    """What ``auto`` stands for: the mode that the RepQ paper found best for these blocks and bits.

    >>> resolve_mode("auto", "repvgg", True, 4), resolve_mode("auto", "repvgg", True, 8)
    ('repq_bnest', 'repq_bn')
    """
    if name != "auto":
        return name
    if rep == "none":
        return "plain"
    if not has_batch_norm:
        return "repq"
    return "repq_bnest" if weight_bits <= 4 else "repq_bn"

"""The ``mode`` section of the configuration. No torch here, so that a mistake is reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from repq_cli.bounds import Range

ModeName = Literal["auto", "plain", "merged", "repq", "repq_bn", "repq_bnest", "ptq", "branchwise"]

POST_BN_BITS = 2


@dataclass(frozen=True)
class ModeOptions:
    """When branches are merged, before or inside QAT, and what the papers leave open about it.

    name: ``plain`` (no branches at all), ``merged`` (merge, then QAT), ``repq`` (quantize the merged kernel in QAT;
        batch norm frozen to its running statistics), ``repq_bn`` (batch statistics), ``repq_bnest`` (estimated);
        and what RepQ argues against: ``ptq`` (merge, calibrate, no QAT: qat.* is not used) and ``branchwise``
        (quantize each branch's kernels in QAT, merge afterwards, quantize the merged kernel again).
    stats_input: statistics of the tensor before its quantizer (``fp``) or of its codes (``quant``).
    detach_stats: stop gradients through the statistics; cheaper, but no longer batch norm. ``auto``: where another
        one follows (post_bn), whose gradients go through its own statistics.
    freeze_bn_after: QAT epochs after which running statistics are used and kept; null: never.
    estimator: moments of what each tap sees (``offset``: exact mean) or of whole channels (``channel``).
    bnest_init: ``rescale`` makes the switch to estimated statistics keep the network's function; ``none`` does not.
    plain_bn: batch norm behind the quantized convolution (``unfolded``, as LSQ) or inside its weight (``folded``).
    merged_bn: ``none``, or ``reinsert`` a batch norm behind each merged convolution, keeping the function.
    post_bn: a batch norm behind each quantized convolution as well, whose codes change mean and variance; it ships as
        one more multiplier per channel. ``auto``: at one and two bits, where folded blocks do not train without it.
        Never in ptq and branchwise; always behind weights without a scale. Ours, not the papers'.
    """

    name: ModeName = "auto"
    stats_input: Literal["fp", "quant"] = "fp"
    detach_stats: Literal["auto", True, False] = "auto"
    freeze_bn_after: Annotated[int, Range(0)] | None = None
    estimator: Literal["offset", "channel"] = "offset"
    bnest_init: Literal["rescale", "none"] = "rescale"
    plain_bn: Literal["unfolded", "folded"] = "unfolded"
    merged_bn: Literal["none", "reinsert"] = "none"
    post_bn: Literal["auto", True, False] = "auto"

    def has_post_bn(self, weight_bits: int) -> bool:
        """Whether a layer with weights of so many bits gets a batch norm behind it."""
        if self.name in ("ptq", "branchwise") or weight_bits == 32:
            return False
        return weight_bits <= POST_BN_BITS if self.post_bn == "auto" else self.post_bn

    def detaches(self, post_bn: bool) -> bool:
        """Whether statistics are constants for the gradient, given a batch norm behind."""
        return post_bn if self.detach_stats == "auto" else self.detach_stats


def resolve_mode(name: str, rep: str, has_batch_norm: bool, weight_bits: int) -> str:
    """What ``auto`` stands for: the mode that the RepQ paper found best for these blocks and bits.

    At one and two bits the paper says nothing that we could find; there a batch norm follows each convolution anyway
    (``post_bn``), and kernels that do not change with every batch train best.

    >>> [resolve_mode("auto", "repvgg", True, bits) for bits in (8, 4, 2)]
    ['repq_bn', 'repq_bnest', 'repq']
    """
    if name != "auto":
        return name
    if rep == "none":
        return "plain"
    if not has_batch_norm or weight_bits <= POST_BN_BITS:
        return "repq"
    return "repq_bnest" if weight_bits <= 4 else "repq_bn"

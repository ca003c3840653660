"""The ``mode`` section of the configuration. No torch here, so that a mistake is reported at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from repq_cli.bounds import Range
from repq_cli.errors import ConfigError
from repq_cli.modes.catalogue import AUTO, MODES
from repq_cli.modes.mode import Mode

if TYPE_CHECKING:
    ModeName = str  # a type checker wants names written out
else:
    NAMES = (AUTO, *MODES)
    ModeName = Literal[NAMES]

POST_BN_BITS = 2


@dataclass(frozen=True)
class ModeOptions:
    """When branches are merged, before or inside QAT, and what the papers leave open about it.

    name: one of ``modes/catalogue``, or ``auto``; which of the other keys it makes use of is said there.
    stats_input: statistics of the tensor before its quantizer (``fp``) or of its codes (``quant``).
    stats_fraction: the part of the batch that statistics are taken of: its first ``ceil(stats_fraction * batch)``
        images, whatever is convolved; with less of it a step is cheaper, and the statistics are noisier.
    detach_stats: stop gradients through the statistics; cheaper, but no longer batch norm. ``auto``: where another
        one follows (post_bn), whose gradients go through its own statistics.
    freeze_bn_after: QAT epochs after which running statistics are used and kept; null: never.
    estimator: moments of what each tap sees (``offset``: exact mean) or of whole channels (``channel``).
    bnest_init: ``rescale`` makes the switch to estimated statistics keep the network's function; ``none`` does not.
    plain_bn: batch norm behind the quantized convolution (``unfolded``, as LSQ) or inside its weight (``folded``).
    merged_bn: ``none``, or ``reinsert`` a batch norm behind each merged convolution, keeping the function.
    post_bn: a batch norm behind each quantized convolution as well, whose codes change mean and variance; it ships as
        one more multiplier per channel. ``auto``: at one and two bits, where folded blocks do not train without it.
        Never where nothing is trained or the merged kernel has no codes; always behind weights without a scale. Ours,
        not the papers'.
    """

    name: ModeName = AUTO
    stats_input: Literal["fp", "quant"] = "fp"
    stats_fraction: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    detach_stats: Literal["auto", True, False] = "auto"
    freeze_bn_after: Annotated[int, Range(0)] | None = None
    estimator: Literal["offset", "channel"] = "offset"
    bnest_init: Literal["rescale", "none"] = "rescale"
    plain_bn: Literal["unfolded", "folded"] = "unfolded"
    merged_bn: Literal["none", "reinsert"] = "none"
    post_bn: Literal["auto", True, False] = "auto"

    @property
    def rule(self) -> Mode:
        """The mode itself. Raises ConfigError for ``auto``, which depends on blocks and bits."""
        if self.name not in MODES:
            raise ConfigError(
                f"mode={self.name} does not say how a network is composed: use one of {', '.join(MODES)}, or have "
                f"repq_cli.modes.auto.resolve_mode decide."
            )
        return MODES[self.name]

    def statistics_images(self, batch: int) -> int:
        """How many of so many images statistics are taken of.

        >>> [ModeOptions(stats_fraction=fraction).statistics_images(30) for fraction in (1.0, 0.5, 0.1, 0.01)]
        [30, 15, 3, 1]
        """
        return math.ceil(self.stats_fraction * batch - 1e-6)  # 0.1 * 30 is more than 3

    def has_post_bn(self, weight_bits: int) -> bool:
        """Whether a layer with weights of so many bits gets a batch norm behind it."""
        if not self.rule.trains or weight_bits == 32:
            return False
        return weight_bits <= POST_BN_BITS if self.post_bn == "auto" else self.post_bn

    def detaches(self, post_bn: bool) -> bool:
        """Whether statistics are constants for the gradient, given a batch norm behind."""
        return post_bn if self.detach_stats == "auto" else self.detach_stats

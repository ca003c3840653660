"""Branches merged before QAT: trained on as one convolution, or only calibrated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from repq_cli.modes.mode import Mark, Mode, Site

if TYPE_CHECKING:
    from torch import Tensor, nn

    from repq_cli.modes.mode import KernelAndNorm
    from repq_cli.modes.options import ModeOptions


class Merged(Mode):
    """Merge, then QAT; a batch norm may be reinserted behind the merged convolution."""

    name, title, order = "merged", "Merged", 1
    mark = Mark("#d55e00", "v", (0, (5, 1.2, 1, 1.2)))
    options = Mode.options | {"merged_bn", "freeze_bn_after"}
    needs_branches = "has nothing to merge"
    merges_first = True

    def starting_net(self, fp_net: nn.Module, batches: Iterable[Tensor], options: ModeOptions) -> nn.Module:
        from repq_cli.modes.restated_norms import with_reinserted_norms

        return with_reinserted_norms(fp_net, batches, by_batch=True) if options.merged_bn == "reinsert" else fp_net

    shaped_net = starting_net

    def kernel(self, site: Site) -> KernelAndNorm:
        from repq_cli.modes.kernels import unfolded_kernel

        if site.options.merged_bn == "reinsert":
            return unfolded_kernel(site.block)
        return super().kernel(site)


class PTQ(Mode):
    """What RepQ argues against: merge and calibrate, nothing is trained; qat.* is not used."""

    name, title, order = "ptq", "PTQ", 5
    mark = Mark("#cc79a7", "X", (0, (2, 1)))
    options = frozenset()
    merges_first = True
    trains = False

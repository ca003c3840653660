"""RepQ: the merged kernel is quantized, rebuilt from its branches at every training step (arXiv 2311.05317)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from repq_cli.modes.mode import STATISTICS_KEYS, Mark, Mode, Site

if TYPE_CHECKING:
    from torch import Tensor, nn

    from repq_cli.modes.kernels import Source
    from repq_cli.modes.mode import KernelAndNorm
    from repq_cli.modes.options import ModeOptions


class RepQ(Mode):
    """Batch norm frozen to its running statistics: the paper's pure form, for blocks without any."""

    name, title, order = "repq", "RepQ", 2
    mark = Mark("#e69f00", "D", (0, (1, 1)))
    statistics: Source = "running"

    def kernel(self, site: Site) -> KernelAndNorm:
        from repq_cli.modes.kernels import BranchKernel

        return BranchKernel(site.block, self.statistics, site.options, site.post_bn), None


class RepQBN(RepQ):
    """Batch statistics, with gradients through them: exactly batch norm."""

    name, title, order = "repq_bn", "RepQ-BN", 3
    mark = Mark("#009e73", "o", (0, (8, 1.5)))
    statistics: Source = "batch"
    options = RepQ.options | STATISTICS_KEYS
    needs_batch_norm = True

    def starting_net(self, fp_net: nn.Module, batches: Iterable[Tensor], options: ModeOptions) -> nn.Module:
        from repq_cli.modes.restated_norms import with_fitting_statistics

        return with_fitting_statistics(fp_net, batches)


class RepQBNEst(RepQBN):
    """Statistics estimated from the input's moments, without the extra convolution."""

    name, title, order = "repq_bnest", "RepQ-BNEst", 4
    mark = Mark("#0072b2", "^", "solid")
    statistics: Source = "estimated"
    options = RepQBN.options | {"estimator", "bnest_init"}

    def starting_net(self, fp_net: nn.Module, batches: Iterable[Tensor], options: ModeOptions) -> nn.Module:
        from repq_cli.modes.restated_norms import to_estimated_statistics

        if options.bnest_init == "none":
            return fp_net
        return to_estimated_statistics(fp_net, batches, options.estimator)

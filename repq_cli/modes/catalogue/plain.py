"""Plain: ordinary convolutions in both stages, the baseline without branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repq_cli.modes.mode import STATISTICS_KEYS, Mark, Mode, Site

if TYPE_CHECKING:
    from repq_cli.modes.mode import KernelAndNorm


class Plain(Mode):
    """An ordinary convolution; batch norm behind it, as LSQ has it, or inside its weight."""

    name, title, order = "plain", "Plain", 0
    mark = Mark("#4d4d4d", "s", (0, (4, 1.5)))
    options = Mode.options | STATISTICS_KEYS | {"plain_bn"}
    uses_branches = False

    def kernel(self, site: Site) -> KernelAndNorm:
        from repq_cli.modes.kernels import BranchKernel, unfolded_kernel

        if site.options.plain_bn == "folded":
            return BranchKernel(site.block, "batch", site.options, site.post_bn), None
        return unfolded_kernel(site.block)

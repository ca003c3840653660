"""The option that RepQ argues against: quantize every layer of every branch, merge afterwards, quantize again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from repq_cli.modes.mode import STATISTICS_KEYS, Mark, Mode, Row, Site
from repq_cli.quant.options import QuantOptions

if TYPE_CHECKING:
    from torch import nn

    from repq_cli.modes.mode import KernelAndNorm
    from repq_cli.quant.init import Initialiser


class Branchwise(Mode):
    """Kernels of branches are fake-quantized, each with its own steps; what ships has steps of the merged kernels."""

    name, title, order = "branchwise", "Branchwise", 6
    mark = Mark("#56b4e9", "P", (0, (3, 1, 1, 1, 1, 1)))
    options = STATISTICS_KEYS
    needs_branches = "has no branches to quantize"
    quantizes_merged = False
    ships = "requantized"
    known_loss = "merged kernels of quantized branches were quantized again"

    def misfit_of_quantizer(self, quant: QuantOptions) -> str | None:
        if quant.weight_bits == 32:
            return "has nothing to quantize at quant.weight_bits=32; use 8 or less"
        if quant.signs_of_weights:
            return (
                "merges branches by their scales, which quant.weight_method=sign has none of; use weight_method=bwn "
                "or lsq"
            )
        return None

    def kernel(self, site: Site) -> KernelAndNorm:
        from repq_cli.modes.branchwise import BranchwiseKernel

        return BranchwiseKernel(site.block, site.options, site.make_quantizer), None

    def shipped_net(self, net: nn.Module, initialiser: Initialiser) -> nn.Module:
        from repq_cli.modes.branchwise import requantize

        return requantize(net, initialiser)

    def findings(self, net: nn.Module, quant: QuantOptions) -> Row:
        """The bits that the merged kernels would have needed."""
        from repq_cli.modes.branchwise import merged_bits

        layers = merged_bits(net)
        tables = max(bits.table_bits for bits in layers.values())
        uniform = [bits.uniform_bits for bits in layers.values()]
        logging.getLogger("repq").info(
            "Merged from quantized branches, the kernels hold up to %d different values in a channel (%d bits with a "
            "look-up table), and %d of %d lie on no integer grid of 24 bits. They are quantized to %s again.",
            max(bits.levels for bits in layers.values()),
            tables,
            uniform.count(None),
            len(uniform),
            quant.label,
        )
        found = {
            "table_bits": tables,
            "uniform_bits": max((bits for bits in uniform if bits), default=None) if all(uniform) else None,
            "layers": {name: bits._asdict() for name, bits in layers.items()},
        }
        return {self.name: found}

    def closing_lines(self, row: Row) -> list[tuple[str, str]]:
        needs = row.get(self.name)
        if needs is None:
            return []
        integers = needs.get("uniform_bits") or "more than 24"
        return [("merging would need", f"{needs['table_bits']} bits with a look-up table, {integers} as integers")]

"""What a mode is. No torch here, so that tables and checks can ask; methods import it where networks are composed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Size, Tensor, nn

    from repq_cli.modes.options import ModeOptions
    from repq_cli.quant.init import Initialiser
    from repq_cli.quant.kernel_source import KernelSource
    from repq_cli.quant.options import QuantOptions
    from repq_cli.quant.quantizer import Quantizer
    from repq_cli.reparam.block import Block

    KernelAndNorm = tuple[KernelSource, nn.BatchNorm2d | None]

Row = dict[str, Any]
REP_WITHOUT_BRANCHES = frozenset({"batch_norm"})  # what ordinary convolutions have of a block's keys
# Of statistics that change in QAT.
STATISTICS_KEYS = frozenset({"stats_input", "stats_fraction", "detach_stats", "freeze_bn_after"})


class Mark(NamedTuple):
    """What tells one of several lines or points from the others, in colour and in grey."""

    colour: str
    marker: str
    line: Any


class Site(NamedTuple):
    """A block that becomes a quantized convolution.

    post_bn         whether a batch norm that QAT adds follows
    make_quantizer  makes one for a weight of the given shape
    """

    block: Block
    options: ModeOptions
    post_bn: bool
    make_quantizer: Callable[[Size], Quantizer]


class Mode:
    """A composition rule: when the branches of a block become one kernel, and what is quantized.

    name           the one on the command line and in rows
    title          the papers' name; ``order``: among the columns of a table; ``mark``: in figures, whose colours are
                   those of Okabe and Ito, which the colour-blind can tell apart
    options        the keys of ``mode.*`` that it makes use of
    uses_branches  else both stages have ordinary convolutions, whatever ``rep`` says
    needs_branches what it cannot do without any, as a predicate; empty: nothing
    needs_batch_norm   inside the blocks
    merges_first   the branches are gone when QAT begins
    trains         else QAT is calibration alone
    quantizes_merged   else the kernel's own parts are quantized, and the merged kernel is not
    ships          what is proven to be equal to the files, as an adjective of the net
    known_loss     why it deploys worse than it trains, as a clause; empty where it does not
    """

    name: str
    title: str
    order: int
    mark: Mark
    options: frozenset[str] = frozenset({"post_bn"})
    uses_branches = True
    needs_branches = ""
    needs_batch_norm = False
    merges_first = False
    trains = True
    quantizes_merged = True
    ships = "trained"
    known_loss = ""

    def has_branches(self, rep: str) -> bool:
        """Whether the FP net has blocks of branches, given the name of the block that was asked for."""
        return self.uses_branches and rep != "none"

    def makes_use_of(self, key: str) -> bool:
        """Whether a key such as ``rep.name`` can have an effect: without branches those of blocks have none."""
        section, _, name = key.partition(".")
        if not self.uses_branches:
            used = {"rep": REP_WITHOUT_BRANCHES, "mode": self.options}
            if key == "fp.merged_training" or (section in used and name not in used[section]):
                return False
        return self.trains or section != "qat"

    def misfit_of_block(self, rep: str, batch_norm: bool) -> str | None:
        """Why the block of this name, with batch norm or without, does not go with it, as a predicate, or None."""
        if self.needs_branches and rep == "none":
            return f"{self.needs_branches} with rep=none; use mode=plain, or a block such as rep=repvgg"
        if self.needs_batch_norm and not batch_norm:
            return f"needs batch norm, which rep={rep} has none of; use mode=repq"
        return None

    def misfit_of_quantizer(self, quant: QuantOptions) -> str | None:
        """Why a ``quant`` section does not go with it, as a predicate, or None."""
        return None

    def starting_net(self, fp_net: nn.Module, batches: Iterable[Tensor], options: ModeOptions) -> nn.Module:
        """What QAT starts from: a net with the function of ``fp_net``. ``batches``: for batch-norm statistics."""
        return fp_net

    def shaped_net(self, fp_net: nn.Module, batches: Iterable[Tensor], options: ModeOptions) -> nn.Module:
        """A net with the parameters of ``starting_net``, whatever their values: for weights that are loaded."""
        return fp_net

    def kernel(self, site: Site) -> KernelAndNorm:
        """Where a block's kernel comes from in QAT, and the block's own batch norm if that stays behind it.

        By default the branches are merged once and for all.
        """
        from repq_cli.modes.kernels import FixedKernel

        return FixedKernel(site.block.to_conv()), None

    def shipped_net(self, net: nn.Module, initialiser: Initialiser) -> nn.Module:
        """What is frozen, made of the net after QAT."""
        return net

    def findings(self, net: nn.Module, quant: QuantOptions) -> Row:
        """What the net after QAT has to say, for the row."""
        return {}

    def closing_lines(self, row: Row) -> list[tuple[str, str]]:
        """What the table at the end of a run says of these findings: names and texts."""
        return []


class UnknownMode(Mode):
    """One that a row names and this version does not have, or one that is not decided yet."""

    order = 99
    mark = Mark("#000000", "*", (0, (1, 2)))

    def __init__(self, name: str) -> None:
        self.name = self.title = name

"""What ``mode=auto``, ``rep.identity=auto`` and ``qat.steps_within=auto`` stand for."""

from __future__ import annotations

from typing import Literal

from repq_cli.modes.catalogue import AUTO
from repq_cli.modes.catalogue.plain import Plain
from repq_cli.modes.catalogue.repq import RepQ, RepQBN, RepQBNEst
from repq_cli.modes.options import POST_BN_BITS


def resolve_mode(name: str, rep: str, has_batch_norm: bool, weight_bits: int) -> str:
    """The mode that the RepQ paper found best for these blocks and bits, where ``name`` leaves it open.

    At one and two bits the paper says nothing that we could find; there a batch norm follows each convolution anyway
    (``post_bn``), and kernels that do not change with every batch train best.

    >>> [resolve_mode("auto", "repvgg", True, bits) for bits in (8, 4, 2)]
    ['repq_bn', 'repq_bnest', 'repq']
    """
    if name != AUTO:
        return name
    if rep == "none":
        return Plain.name
    if not has_batch_norm or weight_bits <= POST_BN_BITS:
        return RepQ.name
    return RepQBNEst.name if weight_bits <= 4 else RepQBN.name


def resolve_identity(mode: str, weight_method: str, weight_bits: int) -> Literal[True, "split"]:
    """``rep.identity`` where it is left open: apart from the rest of the kernel where the mode is left open, too.

    A mode that is named is that of its paper, with one grid for all. That splitting wins is ours: docs/RESULTS.md. At 8
    bit it has no wider codes to give, at one bit no grid to give them on.

    >>> resolve_identity("auto", "lsq", 4), resolve_identity("repq_bnest", "lsq", 4), resolve_identity("auto", "lsq", 8)
    ('split', True, True)
    """
    return "split" if mode == AUTO and weight_method == "lsq" and 1 < weight_bits < 8 else True


def resolve_steps_within(mode: str, weight_method: str, weight_bits: int) -> float | None:
    """``qat.steps_within`` where it is left open: 1.75 for learned steps where the mode is left open, too, else none.

    In a channel that has died the merged kernel grows with its batch norm's ``1 / sigma``, and no gradient tells its
    step: the kernel is clipped to nothing. Elsewhere steps rarely drift that far. Source: ours; docs/ablation.md.

    >>> [resolve_steps_within(mode, "lsq", bits) for mode, bits in (("auto", 4), ("auto", 32), ("repq_bnest", 4))]
    [1.75, None, None]
    """
    return 1.75 if mode == AUTO and weight_method == "lsq" and weight_bits < 32 else None

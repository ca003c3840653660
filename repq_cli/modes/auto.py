"""What ``mode=auto`` stands for."""

from __future__ import annotations

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

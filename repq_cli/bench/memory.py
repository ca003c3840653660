"""What a training step keeps in memory from its forward to its backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_bytes(call: Callable[[], object], net: nn.Module) -> int:
    """Bytes that autograd saves for the backward pass during ``call``, each storage once.

    Parameters and buffers of ``net`` do not count, which are there anyway. What a function keeps beside autograd's own
    ``save_for_backward`` is not seen.
    """
    own = {_place(tensor) for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[tuple[torch.device, int], Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(_place(tensor), tensor.detach())  # held, so that no other tensor gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """The most memory of a CUDA device during ``call`` beyond what was held before; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before

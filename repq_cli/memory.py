"""Whether what is asked for fits into this machine's memory: said before any of it is taken."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from repq_cli.errors import ConfigError

COPIES = 3  # of a network's weights, at least: the quantized net has its own, and training their gradients
LIMITS = (  # of a container: what it may take, and what it has taken
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available() -> int | None:
    """Bytes that a process may still take, as far as the system tells; None where it does not."""
    free = [_number(limit) - _number(used) for limit, used in LIMITS if _number(limit) and _number(used)]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    if not free and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free)) if free else None


def _number(path: str) -> int:
    """What a file says; 0 where there is none, or it says ``max``."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return 0


def fits(size: float) -> bool:
    """Whether there is memory for so many bytes, as far as the system tells."""
    free = available()
    return free is None or size <= free


def require_memory(size: int, what: str, fix: str) -> None:
    """Raise ConfigError where ``size`` bytes for ``what`` are more than there are; ``fix`` says what to do then."""
    free = available()
    if free is not None and size > free:
        raise ConfigError(f"{what} takes {_gigabytes(size)} of memory, and {_gigabytes(free)} are free: {fix}.")


@contextmanager
def holding(name: str) -> Iterator[None]:
    """While a network is built: ConfigError as soon as its weights, on ``meta`` too, are more than memory holds."""
    free, sizes = available(), [0]

    def count(module: nn.Module, _: str, parameter: nn.Parameter | None) -> None:
        sizes.append(sizes[-1] + (0 if parameter is None else COPIES * parameter.numel() * parameter.element_size()))
        if free is not None and sizes[-1] > free:
            raise ConfigError(_too_large(name, free))

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except RuntimeError as error:  # of a tensor that the system refuses at once
        if "memory" in str(error):
            raise ConfigError(_too_large(name, free)) from error
        raise
    finally:
        hook.remove()


def surely_below(net: nn.Module, shape: Sequence[int]) -> float:
    """A number of bytes that ``kept_by_a_step`` does not exceed, found at once: no forward pass has to be followed.

    As if every kernel of the network gave a map as large as the image, or as what layers enlarge it to, and what is
    behind it another one. Infinite where that is not known.
    """
    pixels = float(math.prod(shape[1:]))
    for module in net.modules():
        if isinstance(module, nn.ConvTranspose2d | nn.Upsample):
            factor = getattr(module, "scale_factor", None)
            pixels *= factor**2 if isinstance(factor, int | float) else math.inf
    kernels = sum(parameter.shape[0] for parameter in net.parameters() if parameter.dim() == 4)
    return 4 * (shape[0] + 2 * kernels) * pixels


def kept_by_a_step(net: nn.Module, shape: Sequence[int]) -> int:
    """Bytes in float32 that the forward pass of a training step keeps of one image; of a network on ``meta``.

    Of a network of another package that does not run there, those of the image alone.
    """
    two, three = (_kept(net, (images, *shape)) for images in (2, 3))  # merged kernels are the same of any number
    return max(4 * math.prod(shape), three - two)


def _kept(net: nn.Module, shape: Sequence[int]) -> int:
    """Bytes that a forward pass of such a batch keeps beside parameters and buffers."""
    own = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor.detach())  # held, so that no other gets its place
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with contextlib.suppress(RuntimeError, NotImplementedError), hooks:
        net(torch.empty(*shape, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


def _too_large(name: str, free: int | None) -> str:
    known = "" if free is None else f" ({_gigabytes(free)} are free)"
    return f"model={name} with these keys does not fit into memory{known}: choose a smaller one, as by model.width."


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"

"""Where tensors live: the device that a user names, and what makes its arithmetic repeatable."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from repq_cli.errors import ConfigError

CPU = torch.device("cpu")


def pick_device(name: str, key: str = "runtime.device") -> torch.device:
    """``auto`` is an accelerator if there is one, else the CPU. Raises ConfigError for a device that is not there.

    key: of the configuration, for the error.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or CPU
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # a backend that is not there raises what it likes
        raise ConfigError(f"{key}={name} is not available here: use {key}=auto or cpu.") from error
    return device


def device_of_rank(device: torch.device, local_rank: int, local_size: int) -> torch.device:
    """The device of one of ``local_size`` processes on this machine. Raises ConfigError where there are too few."""
    if device.type == "cpu":
        return device
    count = torch.accelerator.device_count()
    if ":" in str(device) or local_size > count:
        raise ConfigError(
            f"{local_size} processes on this machine want a device each, and runtime.device={device} of {count} is "
            f"not that: use runtime.device=auto and as many processes as there are devices, or runtime.device=cpu."
        )
    torch.accelerator.set_device_index(local_rank)
    return torch.device(device.type, local_rank)


def use_device(name: str, key: str = "runtime.device") -> torch.device:
    """``pick_device``, with the same algorithms at every call and float32 that is not rounded to TF32 from now on.

    On CUDA some operations have no repeatable form; torch then warns by name and goes on. Random numbers need no care:
    every training step seeds all devices anew.
    """
    device = pick_device(name, key)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's matrix products are first used
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    _set_precisions(["ieee"] * 3)
    return device


def full_float32() -> AbstractContextManager[None]:
    """Float32 products and convolutions without TF32 inside: what a proof of equality, or a code, rests on."""
    return _products_in("ieee")


def tf32() -> AbstractContextManager[None]:
    """Inside, CUDA multiplies float32 with the ten bits of TF32, and adds in float32."""
    return _products_in("tf32")


@contextmanager
def _products_in(precision: str) -> Iterator[None]:
    before = [place.fp32_precision for place in _precisions()]
    _set_precisions([precision] * len(before))
    try:
        yield
    finally:
        _set_precisions(before)


def _set_precisions(values: list[str]) -> None:
    for place, value in zip(_precisions(), values, strict=True):
        place.fp32_precision = value


def _precisions() -> list[Any]:
    """All places together: torch refuses to tell its older flag where convolutions and recurrent layers differ."""
    cudnn: Any = torch.backends.cudnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on the device; to a GPU from pinned memory, so that nobody waits for it."""
    if device.type == "cuda" and not tensor.is_cuda and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def is_waited_for(device: torch.device) -> bool:
    """Whether reading a value means waiting until the device has done all that it was asked for."""
    return device.type != "cpu"


def in_float64(tensor: Tensor) -> Tensor:
    """``tensor`` in float64, on the CPU where its device has none (MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def all_finite(tensor: Tensor) -> bool:
    """Whether all of its numbers are, by its ends, for which none is copied."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that the process (CPU) or the device (CUDA) has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

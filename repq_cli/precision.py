"""What stays in float32 inside a training step of lower precision (``runtime.precision``, or anybody's autocast).

Convolutions and products of activations are cheap in 16 bits and hardly care. What a kernel is made of does: a folded
``gamma / sigma`` of a tiny variance overflows float16, and a step that is rounded to eight bits moves every code.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
AUTOCAST = ("cpu", "cuda", "mps", "xpu")  # kinds of devices


def in_float32(values: Tensor) -> Tensor:
    """``values``, in float32 where they have 16 bits."""
    return values.float() if values.dtype in HALF else values


def full_precision() -> AbstractContextManager[object]:
    """Inside, autocast rounds nothing: what is float32 is multiplied as float32."""
    for kind in AUTOCAST:
        if torch.is_autocast_enabled(kind):
            return torch.autocast(kind, enabled=False)
    return nullcontext()

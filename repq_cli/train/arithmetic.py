"""How the steps of training compute: in how many bits, in which layout. Everything else computes in float32.

Validation, tests, freezing and proofs are left as they are: what ships is float32 steps and integers, the best epoch is
the one whose *shipped* form is best, and files that equal the trained net exactly can only be proven where both compute
alike.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from repq_cli.devices import CPU, tf32
from repq_cli.errors import ConfigError
from repq_cli.train.options import RuntimeOptions

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Arithmetic:
    """``runtime.precision``, ``runtime.matmul`` and ``runtime.channels_last`` on one device.

    Raises ConfigError where the device cannot do what is asked.
    """

    def __init__(self, options: RuntimeOptions, device: torch.device = CPU) -> None:
        self.device, self.rounds_products = device, options.matmul == "high"
        self.dtype = DTYPES.get(options.precision)
        asked = options.channels_last
        self.channels_last = device.type in ("cpu", "cuda") if asked == "auto" else asked
        _refuse_what_is_not_there(options, device)
        # Gradients of float16 vanish below 6e-8: the loss is scaled up. Without it all its methods pass things on.
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        """Inside, convolutions and products are those of ``precision``; for the forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def products(self) -> AbstractContextManager[object]:
        """Inside, float32 is multiplied as ``matmul`` says; for a whole step."""
        return tf32() if self.rounds_products else nullcontext()

    def lay_out(self, net: nn.Module, training: bool) -> None:
        """Bring the net's kernels, in place, into the layout of training, or back into that of everything else."""
        if self.channels_last:
            net.to(memory_format=torch.channels_last if training else torch.contiguous_format)

    def images(self, x: Tensor) -> Tensor:
        """A batch in the layout of training."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold: empty unless gradients are scaled."""
        return self.scaler.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        if state:
            self.scaler.load_state_dict(state)


def _refuse_what_is_not_there(options: RuntimeOptions, device: torch.device) -> None:
    if options.precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"runtime.precision=fp16 needs a CUDA GPU, and this run is on {device}: use runtime.precision=bf16 or fp32."
        )
    if options.matmul == "high" and device.type != "cuda":
        raise ConfigError(
            f"runtime.matmul=high is the TF32 of a CUDA GPU, and this run is on {device}: use runtime.matmul=highest."
        )
    if (
        options.precision == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ConfigError(
            f"runtime.precision=bf16 is more than {torch.cuda.get_device_name(device)} can do: use "
            f"runtime.precision=fp16 or fp32."
        )

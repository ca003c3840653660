"""``runtime.compile``: the forward and backward passes of training steps as torch's compiler makes them.

Only training is compiled. Evaluation, calibration and checks run operation by operation, as what ships does: the
compiler may round otherwise, and codes would differ from those of the files in places.
"""

from __future__ import annotations

import functools
import time
import types
from collections.abc import Callable

import torch
from torch import Tensor, nn

from repq_cli.errors import DataError
from repq_cli.train.log import logger

BACKEND = "inductor"


@functools.cache
def require_compiler(device: torch.device) -> None:
    """Compile and run a trifle. Raises DataError, before anything is trained, where this machine cannot."""
    numbers = torch.ones(64, device=device, requires_grad=True)
    try:
        torch.compile(_trifle, backend=BACKEND, fullgraph=True)(numbers).backward()
    except Exception as error:  # whatever torch, its code generator or a compiler of the system raise
        raise DataError(
            f"runtime.compile=true, and torch.compile does not work here ({_said(error)}): install what it needs (for "
            f"the CPU a C++ compiler and Python's headers, on Debian apt install g++ python3-dev), or use "
            f"runtime.compile=false."
        ) from error


def _trifle(numbers: Tensor) -> Tensor:
    return numbers.mul(2).round().add(numbers).sum()


class CompiledForward:
    """``net(x)`` in training, compiled at the first call, of which a line tells.

    All calls want one shape of ``x``, as training batches have; another one, and whatever else changes what is to be
    computed (``mode.freeze_bn_after``), compiles once more. The network itself stays as it is: its names, its state,
    and what it does in eval mode.
    """

    def __init__(self, net: nn.Module, stage: str) -> None:
        self.net, self.stage = net, stage
        self._run = torch.compile(alone(net), backend=BACKEND, fullgraph=True, dynamic=False)
        self._seconds: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._seconds is not None:
            return self._run(x)
        start = time.perf_counter()
        try:
            outputs = self._run(x)
        except RuntimeError as error:
            if not type(error).__module__.startswith("torch._dynamo"):
                raise
            raise DataError(
                f"runtime.compile=true, and the forward pass of {type(self.net).__name__} cannot be compiled "
                f"({_said(error)}): use runtime.compile=false."
            ) from error
        self._seconds = time.perf_counter() - start
        logger.info("%s: its training step was compiled in %.0f s, once.", self.stage.upper(), self._seconds)
        return outputs


def alone(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """``net(x)`` by a code object of its own.

    The compiler counts recompilations by code, networks of one class share theirs, and a sweep in one process has many
    of them. (``isolate_recompiles`` does the same in the newest versions of torch.)
    """

    def forward(x: Tensor) -> Tensor:
        outputs: Tensor = net(x)
        return outputs

    code = forward.__code__.replace()
    return types.FunctionType(code, forward.__globals__, forward.__name__, None, forward.__closure__)


def _said(error: BaseException) -> str:
    """The first line that says what went wrong; those before it, ending in a colon, say where."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), type(error).__name__)

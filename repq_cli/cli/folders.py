"""Run folders: named by a resolver that reserves a free one, so that two runs never share a folder."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from repq_cli.errors import DataError
from repq_cli.modes.options import resolve_mode
from repq_cli.quant.options import QuantOptions

OUTPUTS = Path("outputs")


def reserve(parent: Path, name: str) -> Path:
    """Make ``parent/name``, or ``name-2``, ``name-3``, … where that is taken; making it is what reserves it."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("", *(f"-{number}" for number in range(2, 10_000))):
            folder = parent / f"{stamp}-{name}{suffix}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise DataError(
            f"The run folder below {parent.absolute()} cannot be made ({error.strerror}): "
            f"run repq elsewhere, or name a folder with hydra.run.dir=DIR."
        ) from error
    raise AssertionError("ten thousand runs in one second")


def run_dir(model: str, rep: str, batch_norm: bool, mode: str, weight_bits: int, act_bits: int) -> str:
    """``outputs/train/<stamp>-<model>-<mode>-<bits>``, with ``mode=auto`` resolved."""
    resolved = resolve_mode(mode, rep, batch_norm, weight_bits)
    bits = QuantOptions(weight_bits=weight_bits, act_bits=act_bits).label  # type: ignore[arg-type]
    return str(reserve(OUTPUTS / "train", f"{model}-{resolved}-{bits}"))


def sweep_dir() -> str:
    """``outputs/sweep/<stamp>-train``."""
    return str(reserve(OUTPUTS / "sweep", "train"))


def register_resolvers() -> None:
    """Cached, so that every look at the configuration of one run gives the same folder."""
    OmegaConf.register_new_resolver("repq_run_dir", run_dir, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("repq_sweep_dir", sweep_dir, use_cache=True, replace=True)

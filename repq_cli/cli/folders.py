"""Run folders: named by a resolver that reserves a free one."""

from __future__ import annotations

from omegaconf import OmegaConf, __version__

from repq_cli.modes.auto import resolve_mode
from repq_cli.quant.options import QuantOptions
from repq_cli.runs.outputs import OUTPUTS, reserve


def run_dir(model: str, rep: str, batch_norm: bool, mode: str, weight_bits: int, act_bits: int) -> str:
    """``outputs/train/<stamp>-<model>-<mode>-<bits>``, with ``mode=auto`` resolved."""
    resolved = resolve_mode(mode, rep, batch_norm, weight_bits)
    bits = QuantOptions(weight_bits=weight_bits, act_bits=act_bits).label  # type: ignore[arg-type]
    return str(reserve(OUTPUTS / "train", f"{model}-{resolved}-{bits}"))


def sweep_dir() -> str:
    """``outputs/sweep/<stamp>-train``."""
    return str(reserve(OUTPUTS / "sweep", "train", "hydra.sweep.dir=DIR"))


def register_resolvers() -> None:
    """Cached, so that every look at the configuration of one run gives the same folder."""
    name = "register_new_resolver" if __version__.startswith("2.3.") else "register_resolver"
    register = getattr(OmegaConf, name)  # the older of the second name is another function
    register("repq_run_dir", run_dir, use_cache=True, replace=True)
    register("repq_sweep_dir", sweep_dir, use_cache=True, replace=True)

"""What a run was made with: env.json."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from repq_cli.errors import ConfigError

PACKAGES = (
    "repq",
    "torch",
    "torchvision",
    "numpy",
    "hydra-core",
    "omegaconf",
    "scikit-learn",
    "scikit-image",
    "safetensors",
)


def environment() -> dict[str, Any]:
    """Versions, hardware and, in a source checkout, its git state."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "git": git_state(),
    }


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that the code runs from and whether it has changes; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    """The processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def pick_device(name: str) -> torch.device:
    """``auto`` is an accelerator if there is one, else the CPU. Raises ConfigError for a device that is not there."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"runtime.device={name} is not available here: use runtime.device=auto or cpu.") from error
    return device


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that the process (CPU) or the device (CUDA) has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

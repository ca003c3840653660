"""What a run was made with: env.json."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

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
        "packages": dict(_packages()),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "git": git_state(),
    }


@functools.cache
def _packages() -> tuple[tuple[str, str], ...]:
    return tuple((name, metadata.version(name)) for name in PACKAGES)


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that the code runs from and whether it has changes; None for an installed package.

    As they are when a process first asks, which is nearest to when it imported the code.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603 - fixed words

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

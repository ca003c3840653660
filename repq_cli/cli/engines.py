"""The networks of a finished run by the names that ``engine=`` takes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from repq_cli.config import Engine, Rounding
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.runtime_rounding import RuntimeNet
from repq_cli.deploy.xnor_chain import require_binary
from repq_cli.errors import ConfigError, DataError
from repq_cli.extras import extra
from repq_cli.finished_run import FinishedRun
from repq_cli.runs.folder import RunFolder
from repq_cli.text import command, setting

TRAINED = ("fp", "fake")


def networks(
    run: FinishedRun,
    engine: Engine | None,
    device: torch.device,
    threads: int | None,
    rounding: Rounding = "gemmlowp",
) -> Iterator[tuple[str, nn.Module]]:
    """Names and networks, on the device: that of ``engine``, or those of full precision, QAT, and the deployed one.

    Raises ConfigError for an engine that the device does not have, DataError for one whose file is not there.
    """
    if engine is None or engine in TRAINED:
        trained = run.trained(run.inputs)
        yield from ((name, trained[name].to(device)) for name in TRAINED if engine in (None, name))
    if engine in (None, "deployed"):
        yield "deployed", run.deployed.to(device)
    elif engine == "integer":
        _require_cpu(engine, device)
        yield engine, (RuntimeNet if rounding == "onnxruntime" else IntegerNet)(run.deployed)
    elif engine == "onnx":
        yield engine, _onnx_net(run.folder, run.deployed, threads)
    elif engine == "xnor":
        _require_cpu(engine, device)
        require_binary(run.deployed)
        with extra("xnor"):
            from repq_cli.deploy.xnor_net import XnorNet
        yield engine, XnorNet(run.deployed)


def _require_cpu(engine: str, device: torch.device) -> None:
    if device.type != "cpu":
        raise ConfigError(f"engine={engine} runs on the CPU, and {device} is asked for: set the device to cpu.")


def _onnx_net(folder: RunFolder, deployed: DeployedNet, threads: int | None) -> nn.Module:
    with extra("export"):
        from repq_cli.deploy.onnx_run import OnnxNet
    path = folder.onnx
    if not path.is_file():
        raise DataError(f"There is no {path}: make it by {command('export', setting('run', folder))}.")
    net = OnnxNet(path, deployed.halo, threads)
    if net.about.get("deployed") != deployed.digest():
        raise DataError(f"{path} was not made of this run's network: make it again by repq export.")
    return net

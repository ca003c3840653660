"""From a quantization-aware network to the integers that ship, with the proofs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from repq_cli.answers import tensors
from repq_cli.bounds import Range
from repq_cli.deploy import check as proof
from repq_cli.deploy import freeze as deploy
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_form import Form
from repq_cli.deploy.same import too_many_others
from repq_cli.devices import full_float32
from repq_cli.errors import CheckError, ConfigError
from repq_cli.extras import extra
from repq_cli.files import write_atomically
from repq_cli.library.given import Batches, answering, inputs_of, require_fit, require_json, typed
from repq_cli.modes.compose import composition_of


class Shipped:
    """The network that ships: called with images it runs as the trained one does; its files are ``save``'s.

    Equal networks give equal bytes.
    """

    def __init__(self, deployed: DeployedNet) -> None:
        self.deployed = deployed

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Any:
        if not isinstance(x, Tensor):
            raise ConfigError(f"A shipped network takes a batch of inputs as a tensor, and this is {type(x).__name__}.")
        with answering("The shipped network", x.shape):
            return self.deployed.to(x.device)(x)

    @property
    def channels(self) -> int:
        """Of its inputs."""
        return int(self.deployed.graph["input_shape"][0])

    @typed
    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` (packed codes, steps, biases) and ``model.json`` (the graph)."""
        self.deployed.save(Path(folder))

    def integer(self) -> IntegerNet:
        """The same network in integers alone, on the CPU. Raises ConfigError where it keeps floating-point numbers."""
        return _Integers(self.deployed.cpu())

    def digest(self) -> str:
        """Of all that its files hold."""
        return self.deployed.digest()


class _Integers(IntegerNet):
    """ConfigError for what is no batch of its inputs: integers would be taken for codes."""

    def forward(self, x: Tensor) -> Any:
        shape = self.graph["input_shape"]
        x = inputs_of(x, shape[0], self.deployed.dtype)
        if x.dim() != 1 + len(shape):
            raise ConfigError(f"A batch has the shape {list(x.shape)}, and the network reads one like {[1, *shape]}.")
        with answering("The network in integers", x.shape):
            return super().forward(x)


@typed
def freeze(qat: nn.Module, example: Tensor, description: dict[str, Any] | None = None) -> Shipped:
    """The integers of a network that ``prepare`` made, by its running statistics.

    example      a batch of inputs: their shape goes into the files
    description  what else whoever runs the files must know: ``mean``, ``std``, ``classes``, …

    Raises ConfigError for a layer without a deployed form.
    """
    composition = composition_of(qat)
    require_fit(qat, example)
    require_json(description or {})
    shipped = composition.mode.rule.shipped_net(qat, composition.quant.init)
    task = "super_resolution" if enlarges(qat, example) else "classification"
    told = {"task": task, **(description or {}), "input_shape": list(example.shape[1:])}
    try:
        return Shipped(deploy.freeze(shipped, told))
    except ValueError as error:
        raise ConfigError(str(error)) from error


@typed
def load(folder: str | Path) -> Shipped:
    """What ``Shipped.save`` wrote, or the ``deploy/`` of a run. Raises DataError for damaged files."""
    return Shipped(DeployedNet.load(Path(folder)))


@typed
def check(qat: nn.Module, shipped: Shipped, batches: Batches) -> proof.Agreement:
    """Run both on all ``batches``, which are as ``prepare``'s. Raises CheckError unless every output is equal."""
    composition = composition_of(qat)
    trained = composition.mode.rule.shipped_net(qat, composition.quant.init)
    like = next(qat.parameters())
    inputs = (inputs_of(batch, shipped.channels, like.dtype).to(like.device) for batch in batches)
    first = next(inputs, None)
    if first is None:
        raise ConfigError("batches is empty: nothing is proven without images.")
    every = itertools.chain([first], inputs)
    with full_float32(), answering("One of the two networks", first.shape):
        agreement = proof.compare(trained, shipped.deployed.to(like.device), every, _same_answers)
    if math.isnan(agreement.max_abs):
        raise CheckError(
            "The network's answers are not numbers: training has diverged. Train it again with a smaller learning rate "
            "or with clipped gradients (torch.nn.utils.clip_grad_norm_)."
        )
    if agreement.max_abs != 0:
        raise CheckError(
            f"The frozen network differs from the trained one by {agreement.max_abs:g} ({agreement.answers:.2f} % of "
            f"answers equal): freeze it again after the last training step, and ship nothing before they agree."
        )
    return agreement


@torch.no_grad()
def enlarges(qat: nn.Module, example: Tensor) -> bool:
    """Whether a network shuffles pixels and gives one larger image for each: super-resolution of any size."""
    if not any(isinstance(module, nn.PixelShuffle) for module in qat.modules()):
        return False
    training, answer = qat.training, qat.eval()(example)
    qat.train(training)
    return isinstance(answer, Tensor) and answer.dim() == 4 and answer.shape[2] > example.shape[2]


class Report(NamedTuple):
    """What ONNX Runtime makes of an exported file.

    biases   ``int32`` or ``float``: the latter run in floating point, slowly
    answers  percent of answers equal to the shipped network's, and ``max_abs`` the largest difference of outputs, over
             ``compared`` answers; None where no batches were given: nothing is proven then
    """

    path: Path
    biases: str
    compared: int
    answers: float | None
    max_abs: float | None


@typed
@torch.no_grad()
def export_onnx(
    shipped: Shipped,
    path: str | Path,
    *,
    batches: Batches | None = None,
    biases: Literal["auto", "int32", "float"] = "auto",
    reduce_range: bool = False,
    weights: Literal["int8", "int4"] = "int8",
    zero_points: Literal["auto", "none"] = "auto",
    opset: Literal[17, 21] | None = None,
    threads: Annotated[int, Range(1)] | None = None,
) -> Report:
    """Write the network as ONNX in QDQ form and compare it, in ONNX Runtime, on ``batches``.

    biases        int32, or unrounded; ``auto``: int32 unless that changes too many answers (``deploy/same.py``)
    reduce_range  for processors without VNNI, whose int8 kernels saturate
    weights       ``int4``: those of 4 bits and fewer take half a byte in the file, and become int8 when it is loaded
    zero_points   ``none``: activations int8 around zero, as TensorRT reads them
    opset         None: 17, of INT4 21

    Needs the extra ``export``. Raises CheckError, and leaves no file, where more answers change.
    """
    with extra("export"):
        from repq_cli.deploy.onnx_graph import to_onnx
        from repq_cli.deploy.onnx_run import OnnxNet
    deployed = shipped.deployed.cpu()
    inputs = None
    if batches is not None:
        inputs = [inputs_of(batch, shipped.channels, deployed.dtype).cpu() for batch in batches]
        if not inputs:
            raise ConfigError("batches is empty: give some images to compare answers on, or None.")
    for kind in ("int32", "float") if biases == "auto" else (biases,):
        form = Form.of(kind, reduce_range=reduce_range, weights=weights, zero_points=zero_points, opset=opset)
        content = to_onnx(deployed, form).SerializeToString()
        report = Report(Path(path), kind, 0, None, None)
        if inputs is not None:
            net = OnnxNet(content, deployed.halo, threads)
            pairs = [pair for x in inputs for pair in zip(tensors(net(x.float())), tensors(deployed(x)), strict=True)]
            same = torch.cat([_same_answers(found, expected) for found, expected in pairs])
            difference = torch.stack([(found - expected).abs().max() for found, expected in pairs]).max().item()
            report = Report(Path(path), kind, len(same), same.mean().item(), difference)
        problem = _problem(report)
        if problem is None:
            write_atomically(Path(path), content)
            return report
    raise CheckError(
        f"{problem} (exported against shipped, largest difference {report.max_abs:g}): no file is written. "
        f"biases=float may help, or training with quant=repq.QuantOptions(int32_bias=True)."
    )


def _problem(report: Report) -> str | None:
    """What is wrong with an exported network; nothing is known where nothing was compared."""
    if report.answers is None:
        return None
    if not math.isfinite(report.max_abs or 0.0):
        return "Outputs are not numbers"
    return too_many_others(round(report.compared * (1 - report.answers / 100)), report.compared)


def _same_answers(outputs: Tensor, reference: Tensor) -> Tensor:
    """Per answer 100 where both agree, else 0: the class of ``[B, classes]``, of other outputs each image's values.

    Those agree where what differs is 40 dB below what is there.
    """
    if outputs.dim() == 2:
        return (outputs.argmax(1) == reference.argmax(1)).float() * 100
    noise, signal = ((part.flatten(1).square().sum(1)) for part in (outputs - reference, reference))
    return (noise <= 1e-4 * signal).float() * 100

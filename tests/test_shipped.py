"""Trained networks of every kind as integers and in ONNX Runtime: what ships is what was trained. Minutes each.

With ``-s`` it prints the rows that docs/shipping.md has.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from repq_cli import build
from repq_cli.cli import main
from repq_cli.deploy.check import agreeing, compare_integers
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.onnx_kernels import kernels
from repq_cli.deploy.onnx_run import OnnxNet
from repq_cli.deploy.runs_as import INT8, runs_as
from repq_cli.finished_run import FinishedRun
from repq_cli.train.engine import EVAL_BATCH

CLASSIFIERS = ["model.width=0.25", "fp.epochs=12", "qat.epochs=8"]
PICTURES = ["quant.residual=int", "quant.output=int8", "fp.epochs=2", "qat.epochs=2"]
NETS = {
    "resnet18": ["+model=resnet18_cifar", "rep=none", *CLASSIFIERS],
    "resnet18 acnet": ["+model=resnet18_cifar", "rep=acnet", *CLASSIFIERS],
    "resnet18 orepa": ["+model=resnet18_cifar", "rep=orepa", *CLASSIFIERS],
    "repvgg": ["+model=repvgg_a0", *CLASSIFIERS],
    "qarepvgg": ["+model=repvgg_a0", "rep=qarepvgg", *CLASSIFIERS],
    "mobilenet_v2": [
        "+model=mobilenet_v2",
        "seed=1",
        *CLASSIFIERS,
    ],  # with seed 0 some processors' FP net stays at 65 %
    "ecbsr": ["+model=ecbsr_m4c8", *PICTURES],
}
QUANTS = {
    "w8a8": [],
    "w4a4": [],
    "w2a2": [],
    "int8_affine": [],
    "twn": ["quant.act_bits=8"],  # its own activations are floating-point numbers
    "bnn": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that FP stages are shared."""
    return tmp_path_factory.mktemp("shipped")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("net", NETS)
def test_what_ships_is_what_was_trained(
    net: str, quant: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    run = Path(f"{net} {quant}".replace(" ", "-"))
    quick = ["runtime.threads=1", "runtime.tensorboard=false", "verbosity=quiet", f"hydra.run.dir={run}"]
    assert main(["train", *NETS[net], f"quant={quant}", *QUANTS[quant], *quick]) == 0
    done = FinishedRun(run)
    deployed, sets, agreement = done.deployed, done.tests(done.config), build.task(done.config).agreement
    images = [x for split in sets.values() for x, _ in split.batches(EVAL_BATCH, torch.device("cpu"))]
    found = compare_integers(deployed, IntegerNet(deployed), images, agreement)
    assert found.max_lsb is not None and found.max_lsb <= 1
    assert found.answers >= 99.9 and ("ecbsr" in net or found.others == 0)
    rounded = all(node["bias_step"] for node in deployed.nodes if node.get("bias"))  # in training
    biases = "int32" if rounded else "auto"
    assert main(["export", f"run={run}", "threads=1", f"biases={biases}"]) == 0, capsys.readouterr().err
    shipped = OnnxNet(done.folder.onnx, deployed.halo, 1)
    shares = torch.cat([agreeing(shipped(x), deployed(x), agreement) for x in images])
    assert (shares == 100).all() or "ecbsr" in net
    proven = "no rule"
    if all(way == INT8 for way in runs_as(deployed).values()):
        assert main(["eval", f"run={run}", "engine=integer", "rounding=onnxruntime", "runtime.threads=1"]) == 0
        proven = "bit for bit"
    assert main(["export", f"run={run}", "threads=1", f"biases={biases}", "weights=int4", "out=small"]) == 0
    fp, qat, unit = done.row["metric"]["fp"], done.row["metric"]["deployed"], "dB" if "ecbsr" in net else "%"
    content = done.folder.onnx.read_bytes()
    found_kernels, small = kernels(content), (Path("small") / done.folder.onnx.name).stat().st_size
    cells = [
        *(net if " " in net else f"{net} -").split(), quant, done.row["mode"], f"{fp:.2f} {unit}", f"{qat:.2f} {unit}",
        f"{found.max_lsb:.0f}", f"{found.answers:.2f} %", shipped.about["biases"], f"{shares.mean():.2f} %", proven,
        f"{found_kernels.integer_layers} of {found_kernels.layers}",
        f"{found_kernels.integer}, {found_kernels.floating}, {found_kernels.conversions}",
        f"{len(content) / 1e3:.0f} kB", f"{small / 1e3:.0f} kB",
    ]  # fmt: skip
    with capsys.disabled():
        print(f"\n| {' | '.join(cells)} |")

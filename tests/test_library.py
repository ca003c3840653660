"""The door for Python: the program of docs/library.md, what each function refuses, and what importing costs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK, row_of
from torch import Tensor, nn

import repq_cli as repq
from repq_cli.deploy.freeze import freeze
from repq_cli.modes.catalogue import MODES
from repq_cli.quant.quantizer import NoQuantizer, quantizers
from repq_cli.reparam.block import Block
from repq_cli.reparam.dbb import dbb_block

PAGE = Path(__file__).parents[1] / "docs" / "library.md"
X = torch.linspace(-1, 1, 8 * 3 * 12 * 11).view(8, 3, 12, 11).sin()


def net(rep: str = "repvgg", **keys: Any) -> nn.Module:
    found = repq.models.resnet18_cifar(5, rep=rep, width=0.125, blocks=[1, 1, 1, 1], **keys)
    assert isinstance(found, nn.Module)
    return found.eval()


def test_the_page_says_what_runs(in_folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    program, foreign = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(program.splitlines()) < 40
    names: dict[str, Any] = {}
    shorter = program.replace("epochs=2", "epochs=1").replace("epochs=3", "epochs=2")
    assert shorter.count("epochs=1") == shorter.count("epochs=2") == 1
    exec(shorter, names)
    assert names["accuracy"](names["shipped"]) > 80
    assert {"deploy", "net.onnx"} <= {path.name for path in in_folder.iterdir()}
    others: dict[str, Any] = {}
    exec(foreign, others)
    assert repq.check(others["qat"], others["shipped"], others["batches"]).max_abs == 0


def test_the_door_offers_its_functions_and_loads_nothing_before_one_is_used() -> None:
    code = "import sys, repq_cli as repq; print(*dir(repq)); assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    offered = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(offered) == {*repq.__all__, "__version__"}
    for name in repq.__all__:
        assert getattr(repq, name) is not None
    with pytest.raises(AttributeError, match=r"it offers CheckError, .*, prepare, run"):
        repq.quantise  # noqa: B018


def test_every_mode_is_prepared_frozen_and_checked(tmp_path: Path) -> None:
    for mode in MODES.values():
        fp = net("repvgg" if mode.uses_branches else "none")
        before = {key: value.clone() for key, value in fp.state_dict().items()}
        qat = repq.prepare(fp, X, mode=mode.name, weight_bits=4, act_bits=4, batches=[(X, None)])
        assert qat.training and all(torch.equal(before[key], value) for key, value in fp.state_dict().items())
        shipped = repq.freeze(qat, X, {"classes": list("abcde")})
        assert repq.check(qat, shipped, [X]).max_abs == 0
        shipped.save(tmp_path / mode.name)
        again = repq.load(tmp_path / mode.name)
        assert torch.equal(again(X), shipped(X)) and again.digest() == shipped.digest()
        assert again.integer()(X).shape == (8, 5)
        loaded = repq.prepare(fp, X, mode=mode.name, weight_bits=4, act_bits=4)
        loaded.load_state_dict(qat.state_dict())
        assert repq.check(loaded, shipped, [X]).answers == 100


def test_merging_gives_a_plain_network_of_the_same_function() -> None:
    fp = net("acnet").double()
    merged = repq.merge(fp, X.double())
    torch.testing.assert_close(merged(X.double()), fp(X.double()), atol=1e-10, rtol=1e-10)
    assert {block.kind for block in merged.modules() if isinstance(block, Block)} == {"conv"}
    assert repq.prepare(merged, X.double(), mode="repq", batches=[X.double()])(X.double()).dtype == torch.float64


def test_networks_by_name() -> None:
    made = repq.models.repvgg_a0(7, 1, rep=dbb_block, width=0.125)
    assert made.blocks[0].kind == "dbb" and made(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert repq.models.ecbsr_m4c8(scale=3)(torch.rand(1, 1, 5, 6)).shape == (1, 1, 15, 18)
    for name in ("ecbsr", "sesr"):
        importlib.import_module(f"repq_cli.models.{name}")  # a file of a network's name does not hide it
        assert callable(getattr(repq.models, name))
    assert "repvgg_a0" in dir(repq.models)
    refused("repq.models has no network 'repvgg_a7': did you mean 'repvgg_a0'", lambda: repq.models.repvgg_a7)
    refused("has no key 'widht': did you mean 'width'", lambda: net(widht=1))
    refused("width=-1 must be a number, above 0", lambda: repq.models.resnet18(width=-1))
    refused("rep=repvg must be one of acnet, .*, or a function", lambda: net("repvg"))


def test_layers_are_kept_float_with_the_tensors_that_only_they_read() -> None:
    qat = repq.prepare(net(), X, batches=[X], keep_float=["classifier", "stages.1"])
    assert isinstance(qat.classifier.quantizer, NoQuantizer) and isinstance(qat.classifier_tap, NoQuantizer)
    assert not [name for name in quantizers(qat) if name.startswith(("classifier", "stages.1"))]
    assert repq.check(qat, repq.freeze(qat, X), [X]).max_abs == 0


def test_explanation_says_what_every_layer_becomes() -> None:
    fp = net()
    found = repq.explain(fp, X, 4, 4)
    assert found.refusals == [] and found.mode == "repq_bnest"
    layers = {layer.name: layer for layer in found.layers}
    assert layers["stages.0.0.conv1"][1:6] == ("repvgg", 3, 4, 4, "conv")
    assert layers["classifier"][3:6] == (8, 8, "linear") and layers["add"].becomes == "add"
    assert re.search(r"stem +repvgg +2 +8 bit +8 bit +conv", str(found))
    fp.stages[0][0].conv1.activation = nn.Softshrink()
    fp.max_pool = nn.Conv2d(8, 8, 1)
    assert [sentence.split()[0:3] for sentence in repq.explain(fp, X).refusals] == [
        ["max_pool", "is", "a"],
        ["The", "Softshrink", "of"],
    ]


def refused(sentence: str, call: Callable[[], object]) -> None:
    with pytest.raises(repq.ConfigError, match=sentence):
        call()


def test_misuse_is_refused_in_a_sentence() -> None:
    fp, qat = net(), repq.prepare(net(), X)
    twn = repq.QuantOptions(weight_method="twn")
    four = repq.QuantOptions(weight_bits=4)
    bare = net()
    bare.max_pool = nn.Conv2d(8, 8, 1)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def edges(self) -> frozenset[str]:
            return frozenset()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x if x.sum() > 0 else -x)

    refused(
        "quant.weight_bits=4 does not go with quant.weight_method=twn",
        lambda: repq.prepare(fp, X, weight_bits=4, quant=twn),
    )
    refused("weight_bits=8 and quant.weight_bits=4 disagree", lambda: repq.prepare(fp, X, quant=four))
    refused("weight_bits=5.5 must be one of", lambda: repq.prepare(fp, X, weight_bits=5.5))  # type: ignore[arg-type]
    refused("mode=repqbn must be one of auto, plain", lambda: repq.prepare(fp, X, mode="repqbn"))
    refused("mode=plain is for ordinary convolutions", lambda: repq.prepare(fp, X, mode="plain"))
    refused("mode=merged has nothing to merge", lambda: repq.prepare(net("none"), X, mode="merged"))
    refused("max_pool would stay in floating point", lambda: repq.prepare(bare, X))
    refused("has no convolution and no linear layer", lambda: repq.prepare(nn.Sequential(nn.PReLU()), X))
    refused("keep_float names nothing, which", lambda: repq.prepare(fp, X, keep_float=["nothing"]))
    refused("batches is empty", lambda: repq.prepare(fp, X, batches=[]))
    refused("A batch is dict", lambda: repq.prepare(fp, X, batches=[{}]))  # type: ignore[list-item]
    refused("The example is torch.float64 on cpu", lambda: repq.prepare(fp, X.double()))
    refused("quantization-aware already", lambda: repq.prepare(qat, X))
    refused("not quantization-aware", lambda: repq.freeze(fp, X))
    refused("described by at least input_shape", lambda: freeze(qat, {"classes": []}))
    refused("cannot be followed", lambda: repq.explain(Branching(), X))
    for function in (repq.after_step, repq.freeze_statistics, repq.parameter_groups):
        refused("takes a network that repq.prepare has made", lambda function=function: function(fp))  # type: ignore[misc]
    shipped = repq.freeze(qat, X)
    refused("merge was given net=str x, which must be a torch.nn.Module", lambda: repq.merge("x", X))  # type: ignore[arg-type]
    refused(
        "given quant=str w4a4, which must be a repq.QuantOptions or None", lambda: repq.prepare(fp, X, quant="w4a4")
    )  # type: ignore[arg-type]
    refused("given keep_float=str stem, which must be a list", lambda: repq.prepare(fp, X, keep_float="stem"))
    refused("given batches=Tensor, which must be batches", lambda: repq.prepare(fp, X, batches=X))
    refused("given shipped=ResNet, which must be a Shipped, as repq.freeze", lambda: repq.check(qat, qat, [X]))  # type: ignore[arg-type]
    refused("given biases=str int8, which must be one of auto", lambda: repq.export_onnx(shipped, "x", biases="int8"))  # type: ignore[arg-type]
    refused("given overrides=str seed=1, which must be a list", lambda: repq.run("seed=1"))
    refused("Shipped.save was given folder=NoneType, which must be", lambda: shipped.save(None))  # type: ignore[arg-type]
    refused(r"ResNet cannot take a batch of shape \[8, 2, 12, 11\] \(Given groups", lambda: repq.explain(fp, X[:, :2]))
    refused(r"The example has the shape \[3, 12, 11\]: a batch", lambda: repq.freeze(qat, X[0]))
    refused(r"A batch has the shape \[8, 1, 12, 11\], and", lambda: repq.prepare(fp, X, batches=[X[:, :1]]))
    refused("A batch is torch.uint8 and the network", lambda: repq.check(qat, shipped, [X.byte()]))
    refused("batches is empty: nothing is proven", lambda: repq.check(qat, shipped, []))
    refused("The shipped network cannot take a batch", lambda: shipped(X[:, :1]))
    refused("The description is no JSON", lambda: repq.freeze(qat, X, {"mean": [float("nan")]}))
    refused("num_classes=int 0, which must be a whole number, at least 1", lambda: repq.models.resnet18(0))
    refused(
        "rep=<lambda> gives NoneType: it has to make a repq block", lambda: repq.models.resnet18(rep=lambda *_: None)
    )
    refused("models.ecbsr_m4c8 enlarges images, and num_classes=3 is for", lambda: repq.models.ecbsr_m4c8(3))
    spoilt = X.clone()
    for value in (torch.nan, -torch.inf):
        spoilt[1, 2, 3, 4] = value
        for call in (repq.merge, repq.explain, repq.prepare, repq.freeze):
            net_of_it = qat if call is repq.freeze else fp
            refused("The example holds NaN or infinity", lambda call=call, net=net_of_it: call(net, spoilt))
        refused("A batch holds NaN or infinity", lambda: repq.prepare(fp, X, batches=[spoilt]))
        refused("A batch holds NaN or infinity", lambda: repq.check(qat, shipped, [X, spoilt]))
    integers = shipped.integer()
    for batch, sentence in (
        (X[:, :2], r"the shape \[8, 2, 12, 11\], and the network reads \[B, 3"),
        (X.double(), "is torch.float64 and the network torch.float32"),
        ((X * 9).int(), "is torch.int32 and the network torch.float32"),
        (X[..., 0], r"the shape \[8, 3, 12\], and the network reads one like \[1, 3, 12, 11\]"),
        (X.numpy(), "A batch is ndarray"),
    ):
        refused(sentence, lambda batch=batch: integers(batch))
    with torch.no_grad():
        qat.classifier.linear.bias.add_(1)
    with pytest.raises(repq.CheckError, match="differs from the trained one by 1"):
        repq.check(qat, shipped, [X])


def test_a_run_is_what_the_command_line_makes(in_folder: Path) -> None:
    row = repq.run([*QUICK, "quant=w4a4", "hydra.run.dir=a run"])
    assert row == row_of(Path("a run")) and row["status"] == "done"
    assert row["command_line"].endswith("'hydra.run.dir=a run'")
    refused("did you mean 'mode'", lambda: repq.run([*QUICK, "mod=merged"]))
    refused("asks for something else", lambda: repq.run(["-m", *QUICK]))

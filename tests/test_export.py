"""Files to ship: ONNX against the deployed network in ONNX Runtime, packed files, and what is refused or rejected."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from test_integer import CASES, FEW_CASES, NETS, QUANTS, frozen
from torch import Tensor, nn

from repq_cli.cli import evaluate, export, main
from repq_cli.cli.jobs import compose_plain
from repq_cli.deploy import onnx_graph
from repq_cli.deploy.check import Agreement
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_form import PLAIN, Form
from repq_cli.deploy.onnx_graph import to_onnx
from repq_cli.deploy.onnx_kernels import kernels
from repq_cli.deploy.onnx_run import OnnxNet
from repq_cli.deploy.operations.base import Node
from repq_cli.errors import ConfigError, DataError
from repq_cli.runs.row import Row
from repq_cli.tasks.classification import Classification

pytestmark = pytest.mark.xdist_group("frozen")  # the worker that has made the networks of test_integer.py


def in_runtime(deployed: DeployedNet, folder: Path, float_biases: bool) -> OnnxNet:
    path = folder / "model.onnx"
    path.write_bytes(to_onnx(deployed, Form(float_biases)).SerializeToString())
    return OnnxNet(path, deployed.halo, threads=1)


@pytest.mark.no_cover  # many cases of lines that the tests below cover as well
@pytest.mark.parametrize(
    ("net", "quant"),
    [case if case in FEW_CASES else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_with_float_biases_the_graph_is_the_deployed_network(net: str, quant: str, tmp_path: Path) -> None:
    """Every operation, kernel, padding and quantizer; what differs is the order of float32 sums."""
    deployed, x = frozen(*NETS[net], f"quant={quant}", *QUANTS[quant])
    expected = deployed(x)
    found = in_runtime(deployed, tmp_path, float_biases=True)(x)
    assert found.shape == expected.shape
    close = (found - expected).abs().flatten(1).amax(1) <= 1e-4 * expected.abs().max()
    assert close.float().mean() >= 0.5  # of the images; in one a code at an edge may fall to its other side


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize("net", ["resnet18 acnet", "repvgg", "mobilenet_v2"])
def test_with_int32_biases_answers_are_the_same_at_eight_bits(net: str, tmp_path: Path) -> None:
    deployed, x = frozen(*NETS[net], "quant=w8a8")
    expected = deployed(x)
    found = in_runtime(deployed, tmp_path, float_biases=False)(x)
    assert (found - expected).abs().max() <= 0.2 * expected.std()


def weight_value(deployed: DeployedNet, node: Node) -> NDArray[np.float64]:
    """A layer's weight, the multiplier of its batch norm included."""
    zero = deployed.stored[node["weight_zero_point"]] if node["weight_zero_point"] else 0
    value = (deployed.codes(node) - zero) * deployed.stored[node["weight_step"]].double()
    if node["multiplier"]:
        value = value * deployed.stored[node["multiplier"]].view(-1, *[1] * (value.dim() - 1))
    return value.numpy()


@pytest.mark.parametrize(("quant", "largest", "step"), [("w8a8", 128, 1), ("w4a4", 128, 16), ("w2a2", 128, 64)])
def test_weights_are_int8_spread_over_its_range_and_exact(quant: str, largest: int, step: int) -> None:
    deployed, _ = frozen(*NETS["repvgg"], f"quant={quant}")
    model = to_onnx(deployed)
    constants = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    assert model.opset_import[0].version == PLAIN
    node = [node for node in deployed.nodes if node["op"] == "conv" and node["bits"] == int(quant[1])][-1]
    codes, steps = (constants[f"{node['name']}.weight.{key}"] for key in ("codes", "step"))
    assert codes.dtype == np.int8 and np.abs(codes.astype(int)).max() <= largest and not (codes % step).any()
    value = codes.astype(np.float32) * steps.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(value, weight_value(deployed, node), rtol=1e-6)
    assert constants[f"{node['name']}.bias.codes"].dtype == np.int32


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize("quant", ["w8a8", "int8_affine", "w4a4", "w2a2"])
def test_a_reduced_range_keeps_sums_of_two_products_in_16_bits(quant: str) -> None:
    """Exact below 8 bits; at 8 each weight moves by at most half of the doubled step, and zero by nothing."""
    deployed, _ = frozen(*NETS["resnet18"], f"quant={quant}")
    constants = {
        item.name: numpy_helper.to_array(item) for item in to_onnx(deployed, Form(reduce_range=True)).graph.initializer
    }
    for node in deployed.nodes:
        if "weight" in node:
            codes, step, zero = (constants[f"{node['name']}.weight.{key}"] for key in ("codes", "step", "zero_point"))
            assert np.abs(codes.astype(int)).max() <= 64 and codes.dtype == np.int8
            if codes.shape != tuple(node["shape"]):
                continue  # the image's pixels are grouped
            per_channel = (-1, *[1] * (codes.ndim - 1))
            found = (codes.astype(float) - zero.astype(float).reshape(per_channel)) * step.reshape(per_channel)
            exact = weight_value(deployed, node)
            off = np.abs(found - exact) / step.reshape(per_channel)
            assert off.max() <= (0.5 if node["bits"] == 8 else 0) + 1e-5
            assert (found[exact == 0] == 0).all()


def test_metadata_say_what_the_codes_are() -> None:
    deployed, _ = frozen(*NETS["resnet18"], "quant=w4a4")
    model = to_onnx(deployed)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["bits"] == "4, 8" and "tighter clip" in about["codes"]
    tensors, layers = json.loads(about["activations"]), json.loads(about["layers"])
    assert tensors["stem_tap"] == "8 bit, codes from -128 to 127" and layers["stages_0_0_conv1"] == "4 bit"
    said = {node.name: node.doc_string for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert said["stages_0_0_tap2.codes"] == tensors["stages_0_0_tap2"] == "4 bit, codes from 0 to 15"


def test_a_full_folder_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="INVALID_PROTOBUF"):
        kernels(b"no graph")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: (_ for _ in ()).throw(full))
    with pytest.raises(DataError, match=r"No space left on device\): free some space there, .* TMPDIR"):
        kernels(b"no graph")


def test_codes_without_zero_points_are_int8_around_zero() -> None:
    """With activation functions and clips of numbers; refused where a code has no place there."""
    around_zero = Form(symmetric=True)
    for overrides in (["quant=w8a8", "quant.signed_codes=true"], ["quant=w4a4", "quant.first_last=same"]):
        deployed, x = frozen(*NETS["resnet18"], *overrides)
        model = to_onnx(deployed, around_zero)
        constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        zeros = [array for name, array in constants.items() if name.endswith("zero_point")]
        assert zeros and all(array.dtype == np.int8 and not array.any() for array in zeros)
        makers = {node.output[0]: node for node in model.graph.node}
        clipped = [makers.get(node.input[0]) for node in model.graph.node if node.op_type == "Clip"]
        assert not any(node is not None and node.op_type == "QuantizeLinear" for node in clipped)
        expected, found = deployed(x), OnnxNet(model.SerializeToString(), 0, 1)(x)
        close = (found - expected).abs().flatten(1).amax(1) <= 1e-4 * expected.abs().max()
        assert close.float().mean() >= 0.5  # of the images; in one a code at an edge may fall to its other side
    for overrides, why in ((["quant=w8a8"], "codes from 0 to 255"), (["quant=int8_affine"], "have a zero-point")):
        with pytest.raises(ConfigError, match=f"zero_points=none: .*{why}"):
            to_onnx(frozen(*NETS["resnet18"], *overrides)[0], around_zero)


def test_xnors_k_has_no_place_in_onnx() -> None:
    deployed, _ = frozen("+model=resnet18_cifar", "quant=xnor", "quant.input_scale=true")
    with pytest.raises(ConfigError, match="XNOR-Net's K"):
        to_onnx(deployed)


def test_export_writes_proves_and_compares(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"run={finished}", "biases=float"]) == 0
    shown = capsys.readouterr().out
    assert (
        f"opset {PLAIN}" in shown
        and "codes of 4 bits are those of 8 with a tighter clip" in shown
        and "359 of 359 answers equal" in shown
    )
    assert main(["eval", f"run={finished}", "engine=onnx"]) == 0
    assert "ONNX" in capsys.readouterr().out
    onnx.checker.check_model(str(finished / "export/model.onnx"), full_check=True)
    about = {entry.key: entry.value for entry in onnx.load(finished / "export/model.onnx").metadata_props}
    assert about["run"] == finished.name and about["repq"]
    assert about["deployed"] == DeployedNet.load(finished / "deploy").digest()
    assert main(["export", f"run={finished}", "weights=int4", "out=small"]) == 0
    assert "ONNX opset 21" in capsys.readouterr().out
    assert Path("small/model.onnx").stat().st_size < (finished / "export/model.onnx").stat().st_size
    assert main(["export", f"run={finished}", "format=packed", "out=shipped"]) == 0
    assert "largest difference 0, 359 of 359 answers equal" in capsys.readouterr().out
    for name in ("model.safetensors", "model.json"):
        assert Path("shipped", name).read_bytes() == (finished / "deploy" / name).read_bytes()


def test_biases_are_not_rounded_where_that_changes_answers(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Biases that int32 would move by some four steps of the next codes are written as they are."""

    def coarse(graph: onnx_graph.OnnxGraph, node: Node, bias: Tensor, multiplier: Tensor | None) -> str:
        return constant(graph, node | {"bias_step": None}, bias.sign() * bias.abs().max(), multiplier)

    constant = onnx_graph.OnnxGraph.bias_constant
    monkeypatch.setattr(onnx_graph.OnnxGraph, "bias_constant", coarse)
    assert main(["export", f"run={finished}", "biases=int32"]) == 4
    assert "(biases=float may help)" in capsys.readouterr().err
    assert main(["export", f"run={finished}"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"of 359 answers differ, and 0 may: .*\.\nONNX .* float biases(.|\n)*359 of 359 answers equal", shown
    )


def test_the_way_to_fast_files_is_named_and_leads_there() -> None:
    def advice(*overrides: str) -> str:
        return export._way_to_integers(frozen(*overrides)[0], compose_plain(list(overrides)))

    key = "quant.int32_bias=false"
    for overrides in (["quant=w4a4"], ["quant=twn", "quant.act_bits=8"], ["quant=w4a4", "quant.first_last=fp"]):
        assert "training with quant.int32_bias=true gives integers" in advice(*NETS["resnet18"], *overrides, key)
        assert advice(*NETS["resnet18"], *overrides) == ""
    assert advice(*NETS["resnet18"], "quant=w1a32", key) == ""  # inputs are floating-point numbers


def test_a_file_that_does_not_agree_is_rejected(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(deployed: DeployedNet, form: Form) -> onnx.ModelProto:
        model = to_onnx(deployed, form)
        first = next(item for item in model.graph.initializer if item.name.endswith("weight.step"))
        first.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(first), first.name))
        return model

    monkeypatch.setattr(onnx_graph, "to_onnx", broken)
    assert main(["export", f"run={finished}"]) == 4
    shown = capsys.readouterr()
    assert "answers differ" in shown.err and "int32 biases" in shown.out and "float biases" in shown.out
    assert [path.name for path in (finished / "export").iterdir()] == ["model.onnx.rejected"]


def test_nothing_unproven_has_the_name_of_a_file_to_ship(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped before the proof, or rejected: the file that was proven before stays."""
    assert main(["export", f"run={finished}"]) == 0
    file = finished / "export/model.onnx"
    proven = file.read_bytes()

    def stop(*arguments: object) -> None:
        assert [path.name for path in file.parent.glob("unproven-*/*")] == ["model.onnx"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "measure", stop)
        assert main(["export", f"run={finished}", "biases=float"]) == 130
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"] and file.read_bytes() == proven
    with monkeypatch.context() as patch:
        patch.setattr(export, "_difference", lambda *arguments: "answers differ")
        assert main(["export", f"run={finished}", "biases=float"]) == 4
    assert file.read_bytes() == proven and file.with_name("model.onnx.rejected").is_file()
    capsys.readouterr()


def test_another_networks_file_is_not_measured(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"run={finished}"]) == 0
    file = finished / "export/model.onnx"
    model = onnx.load(file)
    next(entry for entry in model.metadata_props if entry.key == "deployed").value = "another"
    onnx.save(model, file)
    assert main(["eval", f"run={finished}", "engine=onnx"]) == 3
    assert "is damaged" in capsys.readouterr().err  # by its seal
    del model.metadata_props[-1]
    onnx.save(model, file)
    assert main(["eval", f"run={finished}", "engine=onnx"]) == 3
    assert "was not made of this run's network" in capsys.readouterr().err
    file.write_bytes(b"no graph")
    assert main(["eval", f"run={finished}", "engine=onnx"]) == 3
    assert "cannot be run by ONNX Runtime" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "allowed"), [(24, 0), (999, 0), (1000, 1), (2500, 2)])
def test_one_answer_in_a_thousand_may_be_another(
    count: int, allowed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of fewer, for what is exported and for what is said of the integers."""
    images = torch.eye(10)[torch.arange(count) % 10].view(count, 10, 1, 1)

    class Images:
        def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, None]]:
            return ((batch, None) for batch in images.split(size))

        def __len__(self) -> int:
            return count

    split = Images()
    deployed = DeployedNet(
        {"input": "x", "output": "y", "nodes": [{"op": "flatten", "name": "y", "inputs": ["x"]}]}, {}
    )

    def shipped(others: int) -> Callable[[Tensor], Tensor]:
        left = [others]

        def answer(x: Tensor) -> Tensor:
            wrong = min(left[0], len(x))
            left[0] -= wrong
            return torch.cat([x[:wrong].flip(1), x[wrong:]]).flatten(1)

        return answer

    def problem(others: int) -> str | None:
        return export._difference(deployed, shipped(others), {"test": split}, Classification(), [])  # type: ignore[dict-item]

    assert problem(allowed) is None and f"{count - allowed} of {count} answers equal" in capsys.readouterr().out
    sentence = f"on test {allowed + 1} of {count} answers differ, and {allowed} may: one in a thousand"
    assert problem(allowed + 1) == sentence
    monkeypatch.setattr(evaluate, "compare_integers", lambda *given: Agreement(1, 0.5, 0, count, allowed + 1))
    said = evaluate._integer_proof(deployed, None, {"test": split}, Classification(), False)
    assert f"{count - allowed - 1} of {count} answers equal" in said and said.endswith(sentence)


def test_a_large_set_excuses_no_answer_of_a_small_one() -> None:
    sets = {
        name: SimpleNamespace(batches=lambda size, device, x=images: [(x, None)])
        for name, images in {"large": torch.eye(10).repeat(500, 1), "small": torch.eye(10) * 2}.items()
    }

    def shipped(x: Tensor) -> Tensor:
        return torch.cat([x[:1].flip(1), x[1:]]) if len(x) == 10 else x

    found = export._difference(nn.Identity(), shipped, sets, Classification(), [])  # type: ignore[arg-type]
    assert found == "on small 1 of 10 answers differ, and 0 may: one in a thousand"


@pytest.mark.parametrize(
    ("deployed", "shipped", "agree"),
    [
        ({"value": 36.0}, {"value": 36.04}, True),
        ({"value": 36.0}, {"value": 36.06}, False),
        ({"value": 36.0}, {"value": math.nan}, False),
        ({"value": math.nan}, {"value": math.nan}, False),
        ({"identical": 2}, {"identical": 2}, True),
        ({"identical": 2}, {"value": 60.0}, False),
        ({"identical": 1, "value": 36.0}, {"identical": 1, "value": 36.0}, True),
        ({"identical": 1, "value": 36.0}, {"value": 36.0}, False),  # the mean of another number of pictures
    ],
)
def test_every_set_of_pictures_has_to_agree(deployed: Row, shipped: Row, agree: bool) -> None:
    rows = [
        {"set": name, "scale": 2, "name": "psnr_y", "engine": engine, **found}
        for name, both in (("set5", ({"value": 32.0}, {"value": 32.0})), ("set14", (deployed, shipped)))
        for engine, found in zip(("deployed", "onnx"), both, strict=True)
    ]
    found = export._worse_pictures("psnr_y", rows)
    assert found is None if agree else found is not None and found.startswith("psnr_y on set14 is ")


def test_what_is_said_of_a_set_of_pictures_that_differs() -> None:
    rows = [
        {"set": "set5", "scale": 2, "name": "psnr_y", "engine": engine, "value": value}
        for engine, value in (("deployed", 36.0), ("onnx", 36.2))
    ]
    assert (
        export._worse_pictures("psnr_y", rows) == "psnr_y on set5 is 36.00 dB and 36.20 dB, and 0.05 dB may lie between"
    )


def test_what_cannot_be_exported_says_why(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", f"run={finished}", "format=tflite"]) == 2
    assert main(["export", f"run={finished}", "format=packed", "reduce_range=true"]) == 2
    assert "With format=packed leave reduce_range out" in capsys.readouterr().err
    assert main(["export", f"run={finished}", "weights=int4", "opset=17"]) == 2
    assert "ONNX has INT4 from opset 21 on" in capsys.readouterr().err
    assert main(["export", f"run={finished}", "zero_points=none"]) == 2
    assert "train with quant.signed_codes=true" in capsys.readouterr().err
    assert not [*(finished / "export").glob("*")]
    assert main(["export", "run=nowhere"]) == 3
    assert main(["eval", f"run={finished}", "engine=onnx"]) == 3
    assert "make it by repq export" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        patch.delitem(sys.modules, "repq_cli.deploy.onnx_run", raising=False)
        assert main(["export", f"run={finished}"]) == 3
        assert "pip install 'repq[export]'" in capsys.readouterr().err
    row = json.loads((finished / "summary.json").read_text())
    (finished / "summary.json").write_text(json.dumps(row | {"status": "interrupted"}))
    assert main(["export", f"run={finished}"]) == 3
    assert "is not done" in capsys.readouterr().err

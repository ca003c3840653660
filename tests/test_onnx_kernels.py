"""What ONNX Runtime makes of an exported graph: int8 kernels, also of the convolution that reads the image."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from test_export import in_runtime
from test_integer import NETS, frozen
from torch.nn import functional as F

from repq_cli import build
from repq_cli.cli.jobs import compose_plain
from repq_cli.deploy import onnx_graph
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_form import Form
from repq_cli.deploy.onnx_graph import to_onnx
from repq_cli.deploy.onnx_kernels import note_kernels
from repq_cli.deploy.onnx_run import OnnxNet
from repq_cli.deploy.onnx_stem import grouped, groups
from repq_cli.deploy.packing import pack
from repq_cli.deploy.runs_as import INT8, floating, runs_as
from repq_cli.train.exported import will_be_floating

pytestmark = pytest.mark.xdist_group("frozen")  # the worker that has made the networks of test_integer.py


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """How many nodes of each kind the optimised graph has."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3  # the file is for this machine, it would warn
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


QUANTS = (
    "w8a8",
    "w4a4 rep.identity=split",
    "w4a4 quant.first_last=same",
    "w4a4 quant.first_last=inputs8",
    "int8_affine",
)


def test_every_convolution_and_the_pool_are_int8_kernels(subtests: pytest.Subtests, tmp_path: Path) -> None:
    """Unsigned codes after ReLU, signed ones of the image; weights of half a byte in the file are int8 in memory."""
    for quant in QUANTS:
        with subtests.test(quant):
            deployed, x = frozen(*NETS["repvgg"], *f"quant={quant}".split())
            models = [to_onnx(deployed, form) for form in (Form(), Form(opset=21), Form(int4=True, opset=21))]
            for model in models:
                found = kernels(model, tmp_path)
                assert found["QLinearConv"] == 5 and found["QLinearGlobalAveragePool"] == found["QGemm"] == 1
                assert found["Conv"] == found["FusedConv"] == found["DequantizeLinear"] == found["Cast"] == 0
            first, *others = (OnnxNet(model.SerializeToString(), deployed.halo, 1)(x) for model in models)
            assert all(torch.equal(first, other) for other in others)
            small = {item.name: item for item in models[2].graph.initializer if item.data_type == onnx.TensorProto.INT4}
            layers = [node for node in deployed.nodes if "weight" in node and node["bits"] <= 4]
            assert set(small) == {f"{node['name']}.weight.small" for node in layers}
            assert bool(small) == ("w4a4" in quant)
            assert all(len(item.raw_data) == math.prod(item.dims) / 2 for item in small.values())


def test_how_layers_will_run_is_known_before(subtests: pytest.Subtests) -> None:
    """As many in int8 as ONNX Runtime then has, and a reason for each of the others."""
    cases = [
        ("repvgg", "w4a4", None),
        ("repvgg", "w4a4 quant.int32_bias=false", "biases are no int32"),
        ("resnet18", "bnn", "signs are taken of its sums"),
        ("ecbsr rgb with int8 output", "w8a8", "prelu before its codes"),
        ("mobilenet_v2", "int8_affine", "a zero-point for each channel of a depthwise kernel"),
    ]
    for net, quant, reason in cases:
        with subtests.test(net=net, quant=quant):
            deployed, x = frozen(*NETS[net], *f"quant={quant}".split())
            ways = runs_as(deployed)
            said, found = " ".join(floating(ways)), note_kernels(to_onnx(deployed, Form("false" in quant)))
            assert (reason in said) if reason else not said
            assert (found.integer_layers, found.layers) == ([*ways.values()].count(INT8), len(ways))
            if quant == "bnn" or "ecbsr" in net:  # floats behind integers
                assert torch.equal(OnnxNet(to_onnx(deployed).SerializeToString(), deployed.halo, 1)(x), deployed(x))


def test_training_says_first_what_will_be_float() -> None:
    small = [*NETS["repvgg"], "model.width=0.125"]
    (sentence,) = will_be_floating(build.experiment(compose_plain([*small, "quant.int32_bias=false"])))
    assert re.match(r"\d of 6 layers will run in floating point: biases are no int32 \(quant.int32_bias\)", sentence)
    for silent in ("w8a8", "w2a2", "fp32"):
        assert not [*will_be_floating(build.experiment(compose_plain([*small, f"quant={silent}"])))]


@pytest.mark.parametrize("quant", ["w8a8", "w4a4"])
def test_signed_codes_that_two_nodes_read_are_int8_kernels_too(quant: str, tmp_path: Path) -> None:
    """MobileNetV2's sums are read by the next layer and the next sum; what the sums read has no codes, and is float."""
    deployed, _ = frozen(*NETS["mobilenet_v2"], "mode.plain_bn=folded", f"quant={quant}")
    summed = {name for node in deployed.nodes if node["op"] == "add" for name in node["inputs"]}
    convs = [node for node in deployed.nodes if node["op"] == "conv"]
    found = kernels(to_onnx(deployed), tmp_path)
    assert found["QLinearConv"] == sum(node["name"] not in summed for node in convs) > len(convs) / 2
    assert found["Conv"] + found["FusedConv"] == sum(node["name"] in summed for node in convs)


def test_depthwise_layers_with_a_zero_point_per_channel_are_float(tmp_path: Path) -> None:
    """ONNX Runtime has int8 for one zero-point of all channels only. (Weights in float32 it would round to int8.)"""
    deployed, x = frozen(*NETS["mobilenet_v2"], "mode.plain_bn=folded", "quant=int8_affine")
    depthwise = sum(node["op"] == "conv" and node["groups"] > 1 for node in deployed.nodes)
    model = to_onnx(deployed)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert len(metadata["float_layers"].split(", ")) == depthwise
    found = kernels(model, tmp_path)
    summed = {name for node in deployed.nodes if node["op"] == "add" for name in node["inputs"]}
    in_sums = sum(node["op"] == "conv" and node["name"] in summed for node in deployed.nodes)
    assert found["Conv"] + found["FusedConv"] == depthwise + in_sums
    expected = deployed(x)
    close = (in_runtime(deployed, tmp_path, float_biases=False)(x) - expected).abs() <= 1e-4 * expected.abs().max()
    assert close.all(1).float().mean() >= 0.5  # of the images; in one a code at an edge may fall to its other side


def test_pixels_in_groups_give_the_same_sums(subtests: pytest.Subtests) -> None:
    """Exactly, as integers are; a weight's zero-point is no weight."""
    for channels in [1, 2, 3]:
        for size, stride, padding in [(3, 1, 1), (3, 2, 1), (5, 1, 2), (7, 2, 3), (2, 2, 0), (4, 4, 0)]:
            with subtests.test(channels=str(channels), size=str(size), stride=str(stride), padding=str(padding)):
                columns = 16
                by = groups(channels, size, stride, padding, columns)
                assert by is not None and by.pixels * channels % 4 == 0
                draw = torch.Generator().manual_seed(0)
                image = torch.randint(-128, 128, (2, channels, columns, columns), generator=draw).double()
                codes = torch.randint(-100, 100, (5, channels, size, size), generator=draw)
                zero = torch.randint(-3, 4, (5,), generator=draw)
                expected = F.conv2d(image, (codes - zero.view(-1, 1, 1, 1)).double(), stride=stride, padding=padding)
                wide = torch.from_numpy(grouped(codes.numpy(), zero.numpy(), stride, padding, by))
                wide = (wide - zero.repeat(by.outputs).view(-1, 1, 1, 1)).double()
                rows = image.permute(0, 2, 3, 1).reshape(2, columns, columns // by.pixels, -1).permute(0, 3, 1, 2)
                padded = F.pad(rows, (by.before, by.after, padding, padding))
                found = F.conv2d(padded, wide, stride=(stride, 1)).permute(0, 2, 3, 1)
                assert torch.equal(found.reshape(2, found.shape[1], -1, 5).permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("case", [(4, 3, 2, 1, 16), (3, 3, 2, 1, 18), (3, 3, 2, 0, 16), (3, 3, 1, 0, 16)])
def test_rows_that_do_not_fit_are_left(case: tuple[int, int, int, int, int]) -> None:
    assert groups(*case) is None


@pytest.mark.parametrize("net", ["repvgg", "resnet18", "resnet18 imagenet stem", "mobilenet_v2"])
def test_grouping_changes_no_answer(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed, x = frozen(*NETS[net], "mode.plain_bn=folded", "quant=int8_affine", "quant.first_last=8")
    found = in_runtime(deployed, tmp_path, float_biases=False)(x)
    stem = next(node for node in to_onnx(deployed).graph.node if node.op_type == "Conv")
    assert stem.input[0].endswith(".groups")
    with monkeypatch.context() as patch:
        patch.setattr(onnx_graph, "group_pixels", lambda *arguments: None)
        plain = in_runtime(deployed, tmp_path, float_biases=False)(x)
    assert torch.equal(found, plain)


def group_names(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output if name.endswith(".groups")}


def test_what_has_no_codes_is_not_grouped() -> None:
    for overrides in (["quant=w8a8", "quant.first_last=fp"], ["quant=bnn"], ["quant=w1a32"]):
        assert not group_names(to_onnx(frozen(*NETS["repvgg"], *overrides)[0]))
    unrounded = to_onnx(frozen(*NETS["repvgg"], "quant=w8a8")[0], Form(float_biases=True))
    conv = next(node for node in unrounded.graph.node if node.op_type == "Conv")
    shape = next(helper.get_attribute_value(item) for item in conv.attribute if item.name == "kernel_shape")
    assert list(shape) == [3, 3]


def test_pictures_of_any_size_are_not_grouped() -> None:
    assert not group_names(to_onnx(frozen(*NETS["ecbsr"], "quant=w8a8")[0]))


@pytest.mark.parametrize("channel_groups", [1, 2])
@pytest.mark.parametrize("float_biases", [False, True])
def test_a_convolution_without_bias_and_one_of_groups(channel_groups: int, float_biases: bool, tmp_path: Path) -> None:
    """By hand, since no model of the project begins with either."""
    weight = torch.randint(-8, 8, (2, 2 // channel_groups, 3, 3), generator=torch.Generator().manual_seed(0))
    shape = list(weight.shape)
    signed = {"bits": 8, "low": -128, "high": 127, "by_sign": False, "zero_point": None, "step": "step"}
    conv = {"op": "conv", "name": "conv", "inputs": ["codes"], "shape": shape, "activation": "none"} | {
        "bits": 4, "low": -8, "high": 7, "by_sign": False, "weight": "weight", "weight_step": "weight_step",
        "weight_zero_point": None, "bias": None, "bias_step": None, "multiplier": None, "stride": 1, "padding": 1,
        "groups": channel_groups, "pad_value": 0, "input_scale": False,
    }  # fmt: skip
    nodes = [
        signed | {"op": "quantize", "name": "codes", "inputs": ["x"]},
        conv,
        signed | {"op": "quantize", "name": "more codes", "inputs": ["conv"]},
        {"op": "global_average_pool", "name": "pool", "inputs": ["more codes"]},
        {"op": "flatten", "name": "answer", "inputs": ["pool"]},
    ]
    stored = {"step": torch.tensor(1.0), "weight_step": torch.tensor([0.125]), "weight": pack(weight, 4, -8)}
    graph = {"task": "classification", "input_shape": [2, 8, 8], "input": "x", "output": "answer", "nodes": nodes}
    deployed = DeployedNet(graph, stored)
    assert bool(group_names(to_onnx(deployed, Form(float_biases)))) == (channel_groups == 1 and not float_biases)
    x = torch.randint(-60, 60, (3, 2, 8, 8), generator=torch.Generator().manual_seed(1)).float()
    torch.testing.assert_close(in_runtime(deployed, tmp_path, float_biases)(x), deployed(x), rtol=1e-6, atol=1e-6)

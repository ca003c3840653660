"""The integer executor: fixed-point arithmetic against plain Python, layers against the reference's codes, refusals."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path

import pytest
import torch
from conftest import row_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from repq_cli import build
from repq_cli.cli import main
from repq_cli.cli.jobs import compose_plain
from repq_cli.data.base import Inputs
from repq_cli.deploy.check import compare_integers
from repq_cli.deploy.fixed_point import INT32_MAX, high_product, quantize_multiplier, rescale, rounding_shift
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_graph import to_onnx
from repq_cli.deploy.onnx_run import OnnxNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.runtime_rounding import RuntimeNet
from repq_cli.errors import CheckError, ConfigError
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.restated_norms import with_reinserted_norms
from repq_cli.tasks.classification import Classification

pytestmark = pytest.mark.xdist_group("frozen")  # one worker makes the networks that these files share

INT32 = st.integers(-(2**31), 2**31 - 1)


def python_high_product(a: int, b: int) -> int:
    """Gemmlowp's SaturatingRoundingDoublingHighMul, on Python's integers: truncation towards zero, as C divides."""
    if a == b == -(2**31):
        return INT32_MAX
    product = a * b
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    return nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)


def python_rounding_shift(x: int, n: int) -> int:
    """Gemmlowp's RoundingDivideByPOT, on Python's integers."""
    remainder, threshold = x & (2**n - 1), ((2**n - 1) >> 1) + (x < 0)
    return (x >> n) + (remainder > threshold)


@given(INT32, INT32)
def test_the_high_product_is_gemmlowps(a: int, b: int) -> None:
    assert high_product(torch.tensor(a), torch.tensor(b)).item() == python_high_product(a, b)


@given(INT32, st.integers(0, 31))
def test_the_rounding_shift_is_gemmlowps(x: int, n: int) -> None:
    assert rounding_shift(torch.tensor(x), torch.tensor(n)).item() == python_rounding_shift(x, n)


def test_corners_of_the_high_product() -> None:
    low = torch.tensor(-(2**31))
    assert high_product(low, low).item() == INT32_MAX
    assert [high_product(torch.tensor(x), torch.tensor(2**30)).item() for x in (1, -1, 3, -3)] == [1, 0, 2, -1]


def test_what_is_shifted_out_is_zero() -> None:
    far = torch.tensor([40, 62, 63, 64, 100])
    assert rounding_shift(torch.tensor([[0], [5], [-5]]), far).unique().tolist() == [0]
    assert rescale(torch.tensor([0, 7]), quantize_multiplier(torch.tensor(1e-25, dtype=torch.float64))).tolist() == [
        0,
        0,
    ]


@given(st.floats(1e-9, 1e6), st.booleans())
def test_a_multiplier_is_its_factor(factor: float, negative: bool) -> None:
    exact = -factor if negative else factor
    multiplier = quantize_multiplier(torch.tensor([exact], dtype=torch.float64))
    assert 2**30 <= multiplier.mantissa.abs().item() < 2**31
    assert multiplier.value.item() == pytest.approx(exact, rel=2**-31)


def test_a_factor_just_below_one_does_not_overflow_its_mantissa() -> None:
    multiplier = quantize_multiplier(torch.tensor([1 - 2**-40, 0.0], dtype=torch.float64))
    assert multiplier.mantissa.tolist() == [2**30, 0] and multiplier.shift.tolist() == [-1, 0]


@given(INT32, st.floats(1e-6, 2000))
def test_rescaling_is_off_by_less_than_one(x: int, factor: float) -> None:
    """At most 0.75 for two roundings (METHODS: 0.75), 0.5 for one."""
    multiplier = quantize_multiplier(torch.tensor(factor, dtype=torch.float64))
    exact = x * multiplier.mantissa.item() / 2.0 ** (31 + multiplier.shift.item())
    assert abs(rescale(torch.tensor(x), multiplier).item() - exact) <= 0.75


NETS = {
    "resnet18": ["+model=resnet18_cifar", "rep=none", "mode=plain"],
    "resnet18 acnet": ["+model=resnet18_cifar", "rep=acnet", "mode=repq_bn"],
    "resnet18 orepa": ["+model=resnet18_cifar", "rep=orepa", "mode=repq_bnest"],
    "resnet18 imagenet stem": ["+model=resnet18", "data=digits", "rep=none", "mode=plain"],
    "repvgg": ["+model=repvgg_a0", "model.blocks=[1,1,1,1]", "mode=merged"],
    "qarepvgg": ["+model=repvgg_a0", "model.blocks=[1,1,1,1]", "rep=qarepvgg", "mode=repq_bn"],
    "mobilenet_v2": ["+model=mobilenet_v2", "mode=plain"],
    "ecbsr": ["+model=ecbsr_m4c8", "quant.residual=int"],
    "ecbsr rgb with int8 output": ["+model=ecbsr_m4c8", "quant.residual=int", "model.colour=rgb", "quant.output=int8"],
}
QUANTS = {
    "w8a8": [],
    "w4a4": [],
    "w2a2": [],
    "int8_affine": [],
    "twn": ["quant.act_bits=8"],  # its own activations are floating-point numbers
    "bnn": [],
}
CASES = [(net, quant) for net in NETS for quant in QUANTS if not ("ecbsr" in net and quant in ("twn", "bnn"))]
# Every network, every quantizer; each pair where minutes do not count.
FEW_CASES = [case for case in CASES if case[0] == "resnet18 acnet" or case[1] == "w4a4"]


def frozen(*overrides: str) -> tuple[DeployedNet, Tensor]:
    """A deployed network with random weights and statistics, and images for it; copies of one that is made once."""
    return copy.deepcopy(_frozen(*overrides))


@functools.cache
def _frozen(*overrides: str, size: int = 16) -> tuple[DeployedNet, Tensor]:
    torch.manual_seed(0)
    config = compose_plain([*overrides, "model.width=0.125"] if "ecbsr" not in overrides[0] else list(overrides))
    channels = 3 if config.model.arguments.get("colour") == "rgb" else 1
    inputs = Inputs("random", (channels, size, size), 10)
    net = build.network_maker(config, inputs)()
    x = torch.rand(4, channels, size, size) * 255 if "ecbsr" in overrides[0] else torch.randn(4, channels, size, size)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.2)
    for _ in range(3):
        net.train()(x)  # running statistics
    mode, quant = config.mode, config.quant
    start = with_reinserted_norms(net, [x]) if mode.merged_bn == "reinsert" else net.eval()
    composed = compose(start, mode, quant)
    calibrate(composed, x, quant.init, net)
    return freeze(composed.eval(), {"task": config.task, "input_shape": list(x.shape[1:])}), x


@pytest.mark.no_cover  # many cases of lines that other tests cover as well
@pytest.mark.parametrize("cases", [FEW_CASES, pytest.param(CASES, marks=pytest.mark.slow)], ids=["few", "all"])
def test_every_layer_is_within_one_step_of_the_reference(
    cases: list[tuple[str, str]], subtests: pytest.Subtests
) -> None:
    for net, quant in cases:
        with subtests.test(net=net, quant=quant):
            deployed, x = frozen(*NETS[net], f"quant={quant}", *QUANTS[quant])
            integers = IntegerNet(deployed)
            reference = deployed.run(x)
            own = integers.run(x, reference)
            quantizers = [node for node in deployed.nodes if node["op"] == "quantize"]
            spacing = {node["name"]: 2 if node["by_sign"] else 1 for node in quantizers}  # between codes -1 and 1
            differences = {node["name"]: (own[node["name"]] - reference[node["name"]]).abs() for node in quantizers}
            assert max(difference.max().item() / spacing[name] for name, difference in differences.items()) <= 1
            unequal = sum(difference.count_nonzero().item() for difference in differences.values())
            assert unequal <= 0.002 * sum(difference.numel() for difference in differences.values())
            assert all(tensor.dtype == torch.int32 for name, tensor in own.items() if name != deployed.graph["input"])


def test_the_whole_network_answers_as_the_reference() -> None:
    """End to end, on a network whose codes are fine enough that its answers do not hang on a single one."""
    deployed, x = frozen(*NETS["repvgg"], "quant=w8a8")
    found = compare_integers(deployed, IntegerNet(deployed), [x, x[:1]], Classification().agreement)
    spread = deployed(x).std().item()
    assert found.answers == 100 and found.max_lsb is not None and found.max_lsb <= 1
    assert found.max_abs <= 0.1 * spread


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_rounding_as_the_runtime_gives_its_numbers(subtests: pytest.Subtests) -> None:
    """Bit for bit: layers, sums, pools, with zero-points and without; whose layers are float there is refused."""
    cases = {"resnet18": "w8a8", "resnet18 imagenet stem": "int8_affine", "repvgg": "w4a4", "mobilenet_v2": "w8a8"}
    for net, quant in cases.items():
        with subtests.test(net=net, quant=quant):
            deployed, _ = frozen(*NETS[net], f"quant={quant}")
            x = torch.randn(24, *deployed.graph["input_shape"])
            shipped = OnnxNet(to_onnx(deployed).SerializeToString(), 0, 1)
            assert torch.equal(RuntimeNet(deployed)(x), shipped(x))
    with pytest.raises(ConfigError, match=r"rounding=onnxruntime follows kernels of int8, and .* point: biases"):
        RuntimeNet(frozen(*NETS["repvgg"], "quant.int32_bias=false")[0])


def test_results_do_not_hang_on_threads_or_order() -> None:
    deployed, x = frozen(*NETS["resnet18"], "quant=w4a4")
    integers = IntegerNet(deployed)
    together = integers(x)
    assert torch.equal(together, torch.cat([integers(x[i : i + 1]) for i in range(len(x))]))
    torch.set_num_threads(2)
    assert torch.equal(together, integers(x))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+model=resnet18_cifar", "quant.residual=fp"], "quant.residual=fp"),
        (["+model=ecbsr_m4c8"], "quant.residual=fp"),
        (["+model=resnet18_cifar", "quant=fp32"], "activations are not quantized"),
        (["+model=resnet18_cifar", "quant=w1a32"], "activations are not quantized"),
        (["+model=resnet18_cifar", "quant.first_last=fp"], "stem"),
        (["+model=resnet18_cifar", "quant=xnor", "quant.input_scale=true", "quant.first_last=8"], "XNOR-Net's K"),
    ],
)
def test_networks_with_floating_point_inside_are_refused(overrides: list[str], message: str) -> None:
    deployed, _ = frozen(*overrides)
    with pytest.raises(ConfigError, match=message):
        IntegerNet(deployed)


def test_sums_that_could_overflow_are_refused_with_their_layer() -> None:
    """Some 66,000 weights of 127 on inputs of 255 would do it; here a bias of as much as that."""
    deployed, x = frozen(*NETS["repvgg"], "quant=w8a8")
    node = next(node for node in deployed.nodes if node["op"] == "conv" and node["bias"])
    deployed.stored[node["bias"]].fill_(INT32_MAX)
    with pytest.raises(CheckError, match=f"The layer {node['name']} could reach integers of 2"):
        IntegerNet(deployed)
    deployed.stored[node["bias"]].fill_(2**30)
    assert IntegerNet(deployed)(x).isfinite().all()


def test_channels_that_a_batch_norm_switched_off_keep_their_bias() -> None:
    """With a multiplier of next to nothing the bias is far above 2**31 of the sums' units."""
    deployed, x = frozen(*NETS["resnet18"], "quant=bnn")
    node = next(node for node in deployed.nodes if node["op"] == "conv" and node["multiplier"])
    deployed.stored[node["multiplier"]][1], deployed.stored[node["bias"]][1] = 1e-9, 0.5
    deployed = DeployedNet(deployed.graph, deployed.stored)
    integers = IntegerNet(deployed)
    scale = integers.known[node["name"]].scale[1]  # type: ignore[union-attr]
    own = integers.run(x, deployed.run(x))[node["name"]][:, 1] * scale
    assert (own - 0.5).abs().max() <= 1e-6


def test_sums_of_tensors_saturate_instead_of_overflowing() -> None:
    deployed, _ = frozen(*NETS["resnet18"], "quant=w8a8")
    integers = IntegerNet(deployed)
    name = next(node["name"] for node in deployed.nodes if node["op"] == "add")
    largest = torch.full((1, 1, 1, 1), INT32_MAX, dtype=torch.int32)
    tenfold = quantize_multiplier(torch.tensor([10.0], dtype=torch.float64))
    add = OPERATIONS["add"]
    found = add.integers(integers, {}, {"multipliers": [tenfold, tenfold]}, largest, largest)
    assert found.dtype == torch.int32 and found.item() == INT32_MAX
    assert integers.known[name].bound.max() <= INT32_MAX  # type: ignore[union-attr]
    difference = add.integers(integers, {}, {"multipliers": [tenfold, tenfold]}, largest, 5 - largest)
    assert difference.item() == 50  # though neither addend is an int32


def test_a_sum_serves_the_finest_and_the_coarsest_of_its_quantizers() -> None:
    """``fine(a + b) + coarse(a + b)``, the sum up to 2**18 where the finest step is 2**-4 and the coarsest 2**6."""
    steps = {"a": 2.0**10, "b": 3 * 2.0**9, "fine": 2.0**-4, "coarse": 2.0**6}
    grid = {"op": "quantize", "bits": 8, "low": -128, "high": 127, "by_sign": False, "zero_point": None}
    reads = {"a": "x", "b": "x", "fine": "sum", "coarse": "sum"}
    quantizers = {name: grid | {"name": name, "inputs": [reads[name]], "step": f"{name}.step"} for name in steps}
    nodes = [
        *(quantizers[name] for name in "ab"),
        {"op": "add", "name": "sum", "inputs": ["a", "b"]},
        *(quantizers[name] for name in ("fine", "coarse")),
        {"op": "add", "name": "answer", "inputs": ["fine", "coarse"]},
    ]
    stored = {f"{name}.step": torch.tensor(step) for name, step in steps.items()}
    deployed = DeployedNet({"input": "x", "output": "answer", "nodes": nodes}, stored)
    integers = IntegerNet(deployed)
    assert integers.next_steps("sum") == [2.0**-4, 2.0**6] and integers.next_steps("answer") == []
    x = torch.linspace(-(2.0**18), 2.0**18, 4001).view(1, 1, 1, -1)
    assert deployed(x).unique().numel() > 10
    torch.testing.assert_close(integers(x), deployed(x), rtol=1e-8, atol=0)


def test_eval_runs_the_integers_of_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", f"run={finished}", "engine=integer"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"differ by at most [01] in a layer .* 359 of 359 answers equal", shown)
    metrics = {row["engine"]: row["value"] for row in row_of(finished)["metrics"]}
    assert metrics["integer"] == pytest.approx(metrics["deployed"], abs=1)
    assert main(["eval", f"run={finished}", "engine=integer", "rounding=onnxruntime"]) == 0
    assert "the outputs of 359 of 359 images equal, bit for bit" in capsys.readouterr().out
    assert main(["eval", f"run={finished}", "engine=onnx", "rounding=onnxruntime"]) == 2
    assert "rounding=onnxruntime is of engine=integer" in capsys.readouterr().err
    assert main(["eval", f"run={finished}", "engine=deployed"]) == 0
    assert "FP" not in capsys.readouterr().out

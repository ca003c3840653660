"""Published state dicts, each from a project's key list, with a forward that reads nothing but those keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from conftest import randomise
from torch import Tensor, nn

from repq_cli.models.ecbsr import ecbsr
from repq_cli.models.repvgg import repvgg
from repq_cli.models.resnet import resnet
from repq_cli.pretrained.choose import Choice
from repq_cli.reparam.acnet import acnet_block
from repq_cli.reparam.ecb import ecb_block
from repq_cli.reparam.orepa import orepa_block
from repq_cli.reparam.plain import only_kernels, plain_block
from repq_cli.reparam.qarepvgg import qarepvgg_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.train.fp_weights import load_fp
from repq_cli.train.options import WeightOptions

State = dict[str, Tensor]
Conv = Callable[[State, str, Tensor, int], Tensor]  # state, prefix, input, stride
BLOCKS = [1, 2, 1, 1]


def load(net: nn.Module, path: Path, layout: str = "auto", **how: str) -> Choice:
    """Weights from a file as a run with ``fp.KEY=VALUE`` takes them."""
    return load_fp(net, path, WeightOptions(checkpoint=str(path), format=layout, **how), {"model": "any"})  # type: ignore[arg-type]


# Writing published state dicts.


def norm_keys(prefix: str, channels: int) -> State:
    return {
        f"{prefix}.weight": torch.randn(channels) * 0.3 + 1,
        f"{prefix}.bias": torch.randn(channels) * 0.3,
        f"{prefix}.running_mean": torch.randn(channels) * 0.3,
        f"{prefix}.running_var": torch.rand(channels) + 0.5,
        f"{prefix}.num_batches_tracked": torch.tensor(7),
    }


def kernel(*shape: int) -> Tensor:
    return torch.randn(*shape) / math.sqrt(shape[1] * shape[2] * shape[3])


def repvgg_stages(widths: list[int]) -> list[tuple[str, int, int, int]]:
    """Name, inputs, outputs and stride of every block of a RepVGG with ``BLOCKS`` blocks a stage."""
    stages, before = [("stage0", 3, widths[0], 2)], widths[0]
    for stage, (count, width) in enumerate(zip(BLOCKS, widths[1:], strict=True), 1):
        for place in range(count):
            stages.append((f"stage{stage}.{place}", before, width, 1 if place else 2))
            before = width
    return stages


def repvgg_state(widths: list[int], variant: str) -> State:
    """``DingXiaoH/RepVGG repvgg.py`` (``variant=repvgg``) and ``cxxgtxy/QARepVGG repvgg.py`` (``v1``, ``v2``)."""
    state: State = {}
    for stage, inputs, outputs, stride in repvgg_stages(widths):
        state |= {f"{stage}.rbr_dense.conv.weight": kernel(outputs, inputs, 3, 3)}
        state |= norm_keys(f"{stage}.rbr_dense.bn", outputs)
        if variant == "v2":
            state |= {f"{stage}.rbr_1x1.weight": kernel(outputs, inputs, 1, 1)}
        else:
            state |= {f"{stage}.rbr_1x1.conv.weight": kernel(outputs, inputs, 1, 1)}
            state |= norm_keys(f"{stage}.rbr_1x1.bn", outputs)
            if stride == 1 and inputs == outputs:
                state |= norm_keys(f"{stage}.rbr_identity", outputs)
        if variant != "repvgg":
            state |= norm_keys(f"{stage}.bn", outputs)
    return state | {"linear.weight": torch.randn(5, widths[-1]), "linear.bias": torch.randn(5)}


def resnet_layers(widths: list[int]) -> list[tuple[str, int, int, int]]:
    """Name, inputs, outputs and stride of every basic block."""
    layers, before = [], widths[0]
    for stage, (count, width) in enumerate(zip(BLOCKS, widths, strict=True)):
        for place in range(count):
            layers.append((f"stage{stage + 1}.{place}", before, width, 2 if stage and not place else 1))
            before = width
    return layers


def resnet_state(widths: list[int], stem: State, block_keys: Callable[[str, int, int, str], State]) -> State:
    """The ResNets of ACNet and OREPA: they differ in how they name their blocks."""
    state = dict(stem)
    for name, inputs, outputs, stride in resnet_layers(widths):
        state |= block_keys(f"{name}.conv1", inputs, outputs, "conv1")
        state |= block_keys(f"{name}.conv2", outputs, outputs, "conv2")
        if stride != 1 or inputs != outputs:
            state |= {f"{name}.shortcut.conv.weight": kernel(outputs, inputs, 1, 1)}
            state |= norm_keys(f"{name}.shortcut.bn", outputs)
    return state | {"linear.weight": torch.randn(5, widths[-1]), "linear.bias": torch.randn(5)}


def acnet_keys(prefix: str, inputs: int, outputs: int, place: str) -> State:
    prefix = f"{prefix}.acb" if place == "conv1" else prefix
    state = {
        f"{prefix}.square_conv.weight": kernel(outputs, inputs, 3, 3),
        f"{prefix}.ver_conv.weight": kernel(outputs, inputs, 3, 1),
        f"{prefix}.hor_conv.weight": kernel(outputs, inputs, 1, 3),
    }
    return state | {
        k: v for name in ("square", "ver", "hor") for k, v in norm_keys(f"{prefix}.{name}_bn", outputs).items()
    }


def orepa_kernel_keys(prefix: str, inputs: int, outputs: int) -> State:
    frequency = torch.zeros(outputs, 3, 3)
    for o in range(outputs):
        for a in range(3):
            for b in range(3):
                first = o < outputs / 2
                f = o + 1 if first else o + 1 - outputs / 2
                frequency[o, a, b] = math.cos(math.pi * ((a if first else b) + 0.5) * f / 3)
    identity = torch.eye(inputs).view(inputs, inputs, 1, 1)
    return {
        f"{prefix}.weight_orepa_origin": kernel(outputs, inputs, 3, 3),
        f"{prefix}.weight_orepa_avg_conv": kernel(outputs, inputs, 1, 1),
        f"{prefix}.weight_orepa_pfir_conv": kernel(outputs, inputs, 1, 1),
        f"{prefix}.weight_orepa_avg_avg": torch.ones(3, 3) / 9,
        f"{prefix}.weight_orepa_1x1": kernel(outputs, inputs, 1, 1),
        f"{prefix}.weight_orepa_1x1_kxk_idconv1": kernel(inputs, inputs, 1, 1) * 0.3,
        f"{prefix}.id_tensor": identity,
        f"{prefix}.weight_orepa_1x1_kxk_conv2": kernel(outputs, inputs, 3, 3),
        f"{prefix}.weight_orepa_gconv_dw": kernel(inputs * 8, 1, 3, 3),
        f"{prefix}.weight_orepa_gconv_pw": kernel(outputs, inputs * 8, 1, 1),
        f"{prefix}.vector": torch.randn(6, outputs) * 0.5,
        f"{prefix}.weight_orepa_prior": frequency,
    }


def orepa_keys(prefix: str, inputs: int, outputs: int, place: str) -> State:
    return orepa_kernel_keys(prefix, inputs, outputs) | norm_keys(f"{prefix}.bn", outputs)


TIMM_NAMES = {"rbr_dense": "conv_kxk", "rbr_1x1": "conv_1x1", "rbr_identity": "identity", "rbr_reparam": "reparam_conv"}


def timm_names(state: State) -> State:
    """``timm byobnet.py``: RepVGG's tensors under other names, the stages behind the stem counted from zero."""

    def renamed(key: str) -> str:
        stage, _, rest = key.partition(".")
        if stage == "linear":
            return f"head.fc.{rest}"
        for theirs, timms in TIMM_NAMES.items():
            rest = rest.replace(theirs, timms)
        return f"stem.{rest}" if stage == "stage0" else f"stages.{int(stage[-1]) - 1}.{rest}"

    return {renamed(key): value for key, value in state.items()}


SOBEL = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
ECB_EDGES = {"sbx": SOBEL, "sby": SOBEL.T, "lpl": LAPLACIAN}


def ecbsr_state(channels: int, scale: int) -> State:
    """``xindongzhang/ECBSR ecbsr.py`` for luma, with one block between the first and the last."""
    state: State = {}
    sizes = [(1, channels), (channels, channels), (channels, scale**2)]
    for index, (inputs, outputs) in enumerate(sizes):
        block = f"backbone.{index}"
        state |= {
            f"{block}.conv3x3.weight": kernel(outputs, inputs, 3, 3),
            f"{block}.conv3x3.bias": torch.randn(outputs),
        }
        wide = f"{block}.conv1x1_3x3"
        state |= {f"{wide}.k0": kernel(2 * outputs, inputs, 1, 1), f"{wide}.b0": torch.randn(2 * outputs)}
        state |= {f"{wide}.k1": kernel(outputs, 2 * outputs, 3, 3), f"{wide}.b1": torch.randn(outputs)}
        for name, mask in ECB_EDGES.items():
            edge = f"{block}.conv1x1_{name}"
            state |= {f"{edge}.k0": kernel(outputs, inputs, 1, 1), f"{edge}.b0": torch.randn(outputs)}
            state |= {f"{edge}.scale": torch.randn(outputs, 1, 1, 1), f"{edge}.bias": torch.randn(outputs)}
            state |= {f"{edge}.mask": mask.repeat(outputs, 1, 1, 1)}
        if index < len(sizes) - 1:
            state |= {f"{block}.act.weight": torch.rand(outputs)}
    return state


# Running them.


def norm(state: State, prefix: str, x: Tensor) -> Tensor:
    mean, var = state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{prefix}.weight"], state[f"{prefix}.bias"])


def run_repvgg(state: State, widths: list[int], x: Tensor) -> Tensor:
    for stage, inputs, outputs, stride in repvgg_stages(widths):
        dense = norm(
            state, f"{stage}.rbr_dense.bn", F.conv2d(x, state[f"{stage}.rbr_dense.conv.weight"], None, stride, 1)
        )
        if f"{stage}.rbr_1x1.weight" in state:
            point = F.conv2d(x, state[f"{stage}.rbr_1x1.weight"], None, stride)
        else:
            point = norm(state, f"{stage}.rbr_1x1.bn", F.conv2d(x, state[f"{stage}.rbr_1x1.conv.weight"], None, stride))
        y = dense + point
        if f"{stage}.rbr_identity.weight" in state:
            y = y + norm(state, f"{stage}.rbr_identity", x)
        elif f"{stage}.bn.weight" in state and stride == 1 and inputs == outputs:
            y = y + x
        x = F.relu(norm(state, f"{stage}.bn", y) if f"{stage}.bn.weight" in state else y)
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def run_resnet(state: State, widths: list[int], x: Tensor, stem: Callable[[Tensor], Tensor], conv: Conv) -> Tensor:
    x = F.max_pool2d(F.relu(stem(x)), 3, 2, 1)
    for name, _, _, stride in resnet_layers(widths):
        y = conv(state, f"{name}.conv2", F.relu(conv(state, f"{name}.conv1", x, stride)), 1)
        if f"{name}.shortcut.bn.weight" in state:
            x = norm(state, f"{name}.shortcut.bn", F.conv2d(x, state[f"{name}.shortcut.conv.weight"], None, stride))
        x = F.relu(y + x)
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def run_acnet(state: State, prefix: str, x: Tensor, stride: int) -> Tensor:
    prefix = f"{prefix}.acb" if f"{prefix}.acb.square_conv.weight" in state else prefix
    paddings = {"square": (1, 1), "ver": (1, 0), "hor": (0, 1)}
    return sum(
        norm(state, f"{prefix}.{name}_bn", F.conv2d(x, state[f"{prefix}.{name}_conv.weight"], None, stride, padding))
        for name, padding in paddings.items()
    )


def orepa_weight(state: State, prefix: str) -> Tensor:
    """The merged kernel as the published code generates it."""
    of = {key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")}
    flat = {key: value.flatten(1) for key, value in of.items() if value.dim() == 4}
    inner = flat["weight_orepa_1x1_kxk_idconv1"] + flat["id_tensor"]
    depthwise = of["weight_orepa_gconv_dw"].view(inner.shape[0], 8, 3, 3)
    pointwise = of["weight_orepa_gconv_pw"].view(-1, inner.shape[0], 8)
    rows = [
        of["weight_orepa_origin"],
        torch.einsum("oi,hw->oihw", flat["weight_orepa_avg_conv"], of["weight_orepa_avg_avg"]),
        torch.einsum("oi,ohw->oihw", flat["weight_orepa_pfir_conv"], of["weight_orepa_prior"]),
        torch.einsum("ti,othw->oihw", inner, of["weight_orepa_1x1_kxk_conv2"]),
        F.pad(of["weight_orepa_1x1"], (1, 1, 1, 1)),
        torch.einsum("gthw,ogt->oghw", depthwise, pointwise),
    ]
    return sum(torch.einsum("oihw,o->oihw", row, of["vector"][r]) for r, row in enumerate(rows))


def run_orepa(state: State, prefix: str, x: Tensor, stride: int) -> Tensor:
    return norm(state, f"{prefix}.bn", F.conv2d(x, orepa_weight(state, prefix), None, stride, 1))


def orepa_stem(state: State, x: Tensor) -> Tensor:
    """Three kernels composed without the flip, as published: ``conv2d`` of one kernel by the next."""
    weight = orepa_weight(state, "stage0.conv1.weight0").transpose(0, 1)
    for index in (1, 2):
        weight = F.conv2d(weight, orepa_weight(state, f"stage0.conv1.weight{index}"), padding=2)
    return norm(state, "stage0.conv1.bn", F.conv2d(x, weight.transpose(0, 1), None, 2, 3))


def run_ecbsr(state: State, x: Tensor, scale: int) -> Tensor:
    """Branch by branch, the maps behind their 1x1 convolutions padded with what those give to zero."""
    y = x
    for index in range(3):
        of = {key.removeprefix(f"backbone.{index}."): value for key, value in state.items() if key[9] == str(index)}
        z = F.conv2d(y, of["conv3x3.weight"], of["conv3x3.bias"], padding=1)
        padded = F.conv2d(F.pad(y, (1, 1, 1, 1)), of["conv1x1_3x3.k0"], of["conv1x1_3x3.b0"])
        z = z + F.conv2d(padded, of["conv1x1_3x3.k1"], of["conv1x1_3x3.b1"])
        for name in ECB_EDGES:
            edge = {key: of[f"conv1x1_{name}.{key}"] for key in ("k0", "b0", "scale", "bias", "mask")}
            padded = F.conv2d(F.pad(y, (1, 1, 1, 1)), edge["k0"], edge["b0"])
            z = z + F.conv2d(padded, edge["scale"] * edge["mask"], edge["bias"], groups=len(edge["bias"]))
        y = F.prelu(z, of["act.weight"]) if "act.weight" in of else z
    return F.pixel_shuffle(y + x, scale)


def images(name: str) -> Tensor:
    return torch.randn(2, 1 if name == "ecbsr_official" else 3, 64, 64)


# The cases: a state dict, what it computes, and our net.

WIDTHS = [8, 8, 12, 16, 24]


def repvgg_net(make: Callable[..., nn.Module]) -> nn.Module:
    widths = [width / base for width, base in zip(WIDTHS[1:], (64, 128, 256, 512), strict=True)]
    return repvgg(make, 3, 5, BLOCKS, widths, [2] * 5)


def resnet_net(make: Callable[..., nn.Module], kernels: list[int]) -> nn.Module:
    return resnet(only_kernels(kernels, make), 3, 5, BLOCKS, width=0.125)


RESNET_WIDTHS = [8, 16, 32, 64]


def case(name: str) -> tuple[State, Callable[[Tensor], Tensor], nn.Module]:
    if name == "repvgg_official":
        state = repvgg_state(WIDTHS, "repvgg")
        return state, lambda x: run_repvgg(state, WIDTHS, x), repvgg_net(repvgg_block)
    if name == "qarepvgg_official":
        state = repvgg_state(WIDTHS, "v2")
        return state, lambda x: run_repvgg(state, WIDTHS, x), repvgg_net(qarepvgg_block)
    if name == "acnet_official":
        stem = {"conv1.conv.weight": kernel(8, 3, 7, 7)} | norm_keys("conv1.bn", 8)
        state = resnet_state(RESNET_WIDTHS, stem, acnet_keys)

        def ac_stem(x: Tensor) -> Tensor:
            return norm(state, "conv1.bn", F.conv2d(x, state["conv1.conv.weight"], None, 2, 3))

        run = lambda x: run_resnet(state, RESNET_WIDTHS, x, ac_stem, run_acnet)  # noqa: E731
        return state, run, resnet_net(acnet_block, [3, 5])
    if name == "orepa_official":
        stem = norm_keys("stage0.conv1.bn", 8)
        for index, inputs in enumerate((3, 8, 8)):
            stem |= orepa_kernel_keys(f"stage0.conv1.weight{index}", inputs, 8)
        state = resnet_state(RESNET_WIDTHS, stem, orepa_keys)
        run = lambda x: run_resnet(state, RESNET_WIDTHS, x, lambda x: orepa_stem(state, x), run_orepa)  # noqa: E731
        return state, run, resnet_net(orepa_block, [3, 5, 7])
    if name == "timm":
        state = repvgg_state(WIDTHS, "repvgg")
        return timm_names(state), lambda x: run_repvgg(state, WIDTHS, x), repvgg_net(repvgg_block)
    if name == "ecbsr_official":
        state = ecbsr_state(channels=6, scale=2)
        return state, lambda x: run_ecbsr(state, x, 2), ecbsr(ecb_block, 1, 1, 6, 2)
    if name == "repq":
        trained = randomise(repvgg_net(repvgg_block)).eval()
        return trained.state_dict(), trained, repvgg_net(repvgg_block)
    assert name == "torchvision"
    reference = randomise(torchvision.models.resnet18(num_classes=5)).eval()
    return reference.state_dict(), reference, resnet(plain_block, 3, 5, [2, 2, 2, 2])

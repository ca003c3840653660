"""Weights as people save them: wrapped, prefixed, averaged, merged, for other classes; or no weights at all."""

from __future__ import annotations

import collections
import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import randomise
from published_states import (
    WIDTHS,
    State,
    case,
    images,
    load,
    repvgg_net,
    repvgg_state,
    resnet_net,
    run_repvgg,
    timm_names,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from repq_cli.errors import DataError
from repq_cli.models.ecbsr import ecbsr
from repq_cli.models.mobilenet import mobilenet_v2
from repq_cli.models.repvgg import RepVGG, repvgg
from repq_cli.models.resnet import resnet
from repq_cli.pretrained.layout import blocks_of
from repq_cli.reparam.ecb import ecb_block
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.train.fp_weights import load_fp
from repq_cli.train.options import WeightOptions

bare_block = partial(plain_block, batch_norm=False)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[object], Path]:
    """Write an object by torch.save."""

    def save(content: object) -> Path:
        torch.save(content, tmp_path / "w.pth")
        return tmp_path / "w.pth"

    return save


Saved = Callable[[object], Path]


def agrees(net: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), run(x), atol=2e-4, rtol=2e-4)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def own_net() -> nn.Module:
    return repvgg_net(repvgg_block)


def optimiser_state(net: nn.Module) -> dict[str, Any]:
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser = torch.optim.Adam(net.parameters())
    optimiser.step()
    return optimiser.state_dict()


# Wrappers and prefixes.


def test_weights_are_found_by_structure_however_they_are_wrapped_and_prefixed(saved: Saved) -> None:
    state = randomise(own_net()).state_dict()
    beside = {"epoch": 3, "best": np.float64(1), "optimizer": optimiser_state(own_net()), "args": {"lr": 0.1}}
    wrapped: list[object] = [state, collections.OrderedDict(state), [beside, state]]
    wrapped += [{name: state, **beside} for name in ("state_dict", "model", "params", "net", "network", "weights", "G")]
    wrapped += [{"checkpoint": {"model": {"state_dict": state}}, **beside}, {"a.b": {"c": state}}]
    prefixes = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "backbone.", "generator.")
    wrapped += [prefixed(state, prefix) for prefix in (*prefixes, "model.net.", "module.model._orig_mod.")]
    wrapped += [{"state_dict": prefixed(state, "model.") | {"criterion.weight": torch.ones(5)}}]
    wrapped += [{key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in state.items()}]
    wrapped += [{"n_averaged": torch.tensor(3), **prefixed(state, "module.")}]
    wrapped += [state | {"blocks.0.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}]
    for content in wrapped:
        net = own_net()
        load(net, saved(content))
        assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_safetensors_and_files_of_old_torch_are_read(tmp_path: Path) -> None:
    state = randomise(own_net()).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    for name in ("model.safetensors", "old.pth.tar"):
        net = own_net()
        load(net, tmp_path / name)
        assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


class Config(dict[str, int]):
    """Of a script that is not there when its file is read."""


def test_a_scripts_objects_beside_the_weights_are_left_out(saved: Saved) -> None:
    state = randomise(own_net()).state_dict()
    load(own_net(), saved({"model": state, "config": Config(lr=1), "where": Path("x"), "scores": np.arange(3.0)}))


# Averages.


def test_averaged_weights_are_told_from_plain_ones(saved: Saved) -> None:
    plain, averaged = (randomise(own_net()).state_dict() for _ in range(2))

    def taken(content: object, weights: str = "auto") -> tuple[bool, str]:
        net = own_net()
        choice = load(net, saved(content), weights=weights)
        same = [all(torch.equal(s[k], v) for k, v in net.state_dict().items()) for s in (plain, averaged)]
        assert same in ([True, False], [False, True])
        return same[1], str(choice)

    files: list[object] = [
        {"state_dict": plain, "state_dict_ema": averaged},
        {"model": plain, "model_ema": averaged},
        {"params": plain, "params_ema": averaged},
        {"model": plain, "ema": {"decay": 0.99, "module": averaged}},
        {"model": plain, "ema_state_dict": averaged, "optimizer": optimiser_state(own_net())},
        {"model": plain, "ema": {"shadow": prefixed(averaged, "module.")}},
        {"state_dict": prefixed(plain, "model.") | prefixed(averaged, "modelEMA.")},
        {"model": plain, "swa_model": averaged | {"n_averaged": torch.tensor(2)}},
        {"model": plain, "ema": {"decay": torch.tensor(0.99), "updates": torch.tensor(9), "module": averaged}},
        prefixed(averaged, "ema_model.") | prefixed(plain, "online_model.") | {"step": torch.tensor(9)},
    ]
    for content in files:
        of_ema, said = zip(*(taken(content, weights) for weights in ("auto", "ema", "plain")), strict=True)
        assert of_ema == (True, True, False)
        assert "averaged (EMA) weights at '" in said[0] and "; left: '" in said[0] and "; left: '" in said[2]
    assert not taken({"schema": plain})[0]
    alone = prefixed(averaged, "module.") | {"n_averaged": torch.tensor(2)}
    assert taken(alone, "ema")[0] and "left out beside them: n_averaged" in taken(alone)[1]
    with pytest.raises(DataError, match=r"no plain weights .* at the top level: leave fp\.weights=plain out, or name"):
        taken(alone, "plain")
    nameless = {key.replace(".", ""): value for key, value in averaged.items()}
    for unusable in ({"shadow_params": list(averaged.values())}, nameless, averaged | {"n_averaged": torch.tensor(0)}):
        content = {"model": plain, "ema": unusable}
        of_ema, said = zip(*(taken(content, weights) for weights in ("auto", "plain")), strict=True)
        assert of_ema == (False, False) and "at 'model', layout repq; left: 'ema'" in said[0]
        with pytest.raises(DataError, match=r"no ema weights .* at 'model' \(its averages at 'ema' fit no layout"):
            taken(content, "ema")
    for content, weights in (({"state_dict": plain}, "ema"), ({"state_dict_ema": averaged}, "plain")):
        with pytest.raises(DataError, match=rf"has no {weights} weights of this net, only those at 'state_dict"):
            taken(content, weights)
    with pytest.raises(DataError, match=r"fit equally well at 'best' and at 'last': save the ones that you mean"):
        taken({"best": plain, "last": averaged})
    assert not taken({"best": plain, "last": dict(plain)})[0]


def test_averages_of_parameters_alone_get_the_statistics_beside_them(saved: Saved) -> None:
    plain, net = randomise(own_net()), own_net()
    shadow = {key: value + 1 for key, value in plain.named_parameters()}
    load(net, saved({"model": plain.state_dict(), "ema": shadow}))
    for key, value in net.state_dict().items():
        assert torch.equal(value, shadow.get(key, plain.state_dict()[key]))
    with pytest.raises(DataError, match=r"missing: blocks\.0\.branches\.dense\.norm\.running_mean"):
        load(own_net(), saved({"ema": shadow}))


# Other heads, other colours, other names.


def test_a_new_head_keeps_the_body(saved: Saved) -> None:
    state = repvgg_state(WIDTHS, "repvgg")
    other = state | {"linear.weight": torch.randn(7, WIDTHS[-1]), "linear.bias": torch.randn(7)}
    body = {key: value for key, value in state.items() if not key.startswith("linear")}
    with pytest.raises(DataError, match=r"linear\.weight \(7x24, not 5x24\).*it has 7 classes; fp\.head=new keeps"):
        load(own_net(), saved(other))
    for headless in (body, body | {"head.0.weight": torch.randn(5, 24)}):
        with pytest.raises(DataError, match=r"2 missing: linear\.weight, linear\.bias;.* no classifier.*fp\.head=new"):
            load(own_net(), saved(headless))
    for content in (other, body, body | {"fc.weight": torch.randn(9, 24)}, timm_names(other)):
        net = own_net()
        fresh = net.classifier.weight.clone()  # type: ignore[union-attr,operator]
        load(net, saved(content), head="new")
        assert torch.equal(net.classifier.weight, fresh)  # type: ignore[union-attr,arg-type]
        assert torch.equal(
            net.state_dict()["blocks.5.branches.dense.conv.weight"], state["stage4.0.rbr_dense.conv.weight"]
        )
    twice = prefixed(body | {"fc.0.weight": torch.ones(9, 24)}, "encoder_q.") | prefixed(
        repvgg_state(WIDTHS, "repvgg"), "k."
    )
    with pytest.raises(DataError, match=r"fit equally well at 'encoder_q' and at 'k'"):
        load(own_net(), saved(twice), head="new")
    with pytest.raises(DataError, match=r"1 missing: stage0\.rbr_dense\.conv\.weight"):
        load(own_net(), saved({k: v for k, v in body.items() if k != "stage0.rbr_dense.conv.weight"}), head="new")
    with pytest.raises(DataError, match=r"fp\.head=new is for nets with a classifier"):
        load(case("ecbsr_official")[2], saved(case("ecbsr_official")[0]), head="new")


def test_kernels_for_colours_are_summed_for_grey_images(saved: Saved) -> None:
    x = torch.randn(2, 1, 64, 64)
    state = repvgg_state(WIDTHS, "repvgg")
    widths = [width / base for width, base in zip(WIDTHS[1:], (64, 128, 256, 512), strict=True)]
    grey = repvgg(repvgg_block, 1, 5, [1, 2, 1, 1], widths, [2] * 5)
    with pytest.raises(DataError, match=r"reads three colours, which fp\.input=sum adds up for this run's grey images"):
        load(grey, saved(state))
    load(grey, saved(state), input="sum")
    agrees(grey, lambda x: run_repvgg(state, WIDTHS, x.expand(-1, 3, -1, -1)), x)
    reference = randomise(torchvision.models.resnet18(num_classes=5)).eval()
    net = resnet(plain_block, 1, 5, [2, 2, 2, 2])
    load(net, saved(reference.state_dict()), input="sum")
    agrees(net, lambda x: reference(x.expand(-1, 3, -1, -1)), x)
    both = r"fc\.bias \(5, not 7\); it has 5 classes; fp\.head=new .*; its first layer reads three .*fp\.input=sum"
    with pytest.raises(DataError, match=both):
        load(resnet(plain_block, 1, 7, [2, 2, 2, 2]), saved(reference.state_dict()))
    reference.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    with pytest.raises(DataError, match=r"conv1\.weight \(64x1x7x7, not 64x3x7x7\); its first layer reads grey images"):
        load(resnet(plain_block, 3, 5, [2, 2, 2, 2]), saved(reference.state_dict()), input="sum")


def test_a_run_of_ours_gives_its_body_to_other_images(saved: Saved) -> None:
    state = randomise(own_net()).state_dict()
    trained = {"model": "m", "input": "3x32x32", "classes": "5"}
    path = saved({"format": 1, "stage": "fp", "net": state, "signature": trained})
    widths = [width / base for width, base in zip(WIDTHS[1:], (64, 128, 256, 512), strict=True)]
    net = repvgg(repvgg_block, 1, 7, [1, 2, 1, 1], widths, [2] * 5)
    run = trained | {"input": "1x28x28", "classes": "7"}
    for how, sentence in {
        (): "has input 3x32x32 .* or sum its first kernels over the colours by fp.input=sum",
        (("input", "sum"),): "has input 3x32x32 and this run input 1x28x28",
        (("head", "new"),): "has input 3x32x32 .* fp.input=sum",
    }.items():
        with pytest.raises(DataError, match=sentence):
            load_fp(net, path, WeightOptions(**dict(how)), run)  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=r"has classes 5 and this run classes 7.*, or keep its body alone by fp\.head=new"
    ):
        load_fp(net, path, WeightOptions(input="sum"), run | {"input": "1x32x32"})
    load_fp(net, path, WeightOptions(input="sum", head="new"), run)
    assert torch.equal(
        net.state_dict()["blocks.1.branches.point.conv.weight"], state["blocks.1.branches.point.conv.weight"]
    )


def timm_mobilenet(state: State) -> State:
    """``timm efficientnet.py``: torchvision's tensors under other names, in torchvision's order."""
    names = ["conv_stem", "bn1"]
    for stage, count in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for place in range(count):
            convs = ("conv_pw", "conv_dw", "conv_pwl") if stage else ("conv_dw", "conv_pw")
            for number, conv in enumerate(convs, 1):
                names += [f"blocks.{stage}.{place}.{conv}", f"blocks.{stage}.{place}.bn{number}"]
    names += ["conv_head", "bn2", "classifier"]
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    assert len(layers) == len(names)
    named = dict(zip(layers, names, strict=True))
    return {f"{named[layer]}.{last}": value for key, value in state.items() for layer, _, last in [key.rpartition(".")]}


def test_timms_mobilenet_v2_computes_what_torchvisions_does(saved: Saved) -> None:
    reference = randomise(torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.35)).eval()
    net = mobilenet_v2(plain_block, 3, 5, [2, 1, 2, 2, 2, 1, 2, 1], 0.35)
    assert str(load(net, saved(timm_mobilenet(reference.state_dict())))).endswith("layout timm")
    agrees(net, reference, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "vgg11_bn", "efficientnet_b0", "shufflenet_v2_x0_5"])
def test_a_foreign_net_is_not_taken_for_a_known_one(name: str, saved: Saved) -> None:
    with torch.device("meta"):
        foreign = torchvision.models.get_model(name)
    state = {key: torch.zeros(1) for key in foreign.state_dict()}
    with pytest.raises(DataError) as caught:
        load(own_net(), saved(state))
    if name == "resnet50":
        with pytest.raises(DataError, match=r"as fp\.format=torchvision is for .* this run's net is another"):
            load(mobilenet_v2(plain_block, 3, 5, [2, 1, 2, 2, 2, 1, 2, 1]), saved(state))
    known = name == "resnet50"  # two of three of its keys are torchvision's, as for ResNet-18
    assert ("as fp.format=torchvision is for" if known else "are of none of the known layouts") in str(caught.value)
    if known:
        with pytest.raises(DataError, match=r"unexpected: layer1\.0\.conv3\.weight.* of another shape: conv1"):
            load(resnet(plain_block, 3, 1000, [2, 2, 2, 2]), saved(state))


# Merged before they were saved.


def merged_name(name: str, ours: str) -> str:
    """What a project's deploy-mode file calls the convolution of a block of ours."""
    if name == "ecbsr_official":
        return ours.replace("blocks", "backbone") + ".conv3x3"
    if ours == "stem":
        return "stage0.conv1.or_large_reparam"
    _, stage, index, conv = ours.split(".")
    theirs = f"stage{int(stage) + 1}.{index}.{conv}"
    if name == "acnet_official":
        return f"{theirs}.acb.fused_conv" if conv == "conv1" else f"{theirs}.fused_conv"
    return f"{theirs}.conv" if conv == "shortcut" else f"{theirs}.orepa_reparam"


def merged_state(name: str, net: nn.Module, state: State) -> State:
    """A deploy-mode file, made of a net that was loaded from the training-mode ``state``."""
    branches = ("square_", "hor_", "ver_", "rbr_", "orepa_", ".vector", "id_tensor", ".bn.", "conv1x1_", "conv3x3")
    if name == "acnet_official":
        branches = branches[:3]  # its stem and shortcuts keep their batch norm
    merged = {key: value for key, value in state.items() if not any(part in key for part in branches)}
    stages = net.stage_names() if isinstance(net, RepVGG) else []
    for ours, block in ((ours, block) for ours, block in net.named_modules() if block in blocks_of(net)):
        if name == "acnet_official" and ("shortcut" in ours or ours == "stem"):
            continue
        theirs = f"{stages[int(ours[7:])]}.rbr_reparam" if stages else merged_name(name, ours)
        merged |= {f"{theirs}.{key}": value for key, value in block.to_conv().state_dict().items()}  # type: ignore[operator]
    return timm_names(merged) if name == "timm" else merged


@pytest.mark.parametrize("name", ["repvgg_official", "qarepvgg_official", "timm", "acnet_official", "orepa_official"])
@pytest.mark.parametrize("block", [plain_block, bare_block])
def test_a_merged_net_is_a_plain_net(name: str, block: Callable[..., nn.Module], saved: Saved) -> None:
    state, run, branched = case(name)
    load(branched, saved(state))
    original = repvgg_state(WIDTHS, "repvgg") if name == "timm" else state
    if name == "timm":
        state, run, branched = case("repvgg_official")
        load(branched, saved(state))
        original = state
    merged = merged_state(name, branched.eval(), original)
    residual = name in ("acnet_official", "orepa_official")
    net = resnet_net(block, [3, 7]) if residual else repvgg_net(block)
    if name == "acnet_official" and block is bare_block:
        with pytest.raises(DataError, match=r"the file has batch norm, which rep\.batch_norm=false leaves out"):
            load(net, saved(merged))
        return
    fit = load(net, saved(merged)).fit
    assert fit.layout.merged and fit.name == ("repvgg_official" if name == "qarepvgg_official" else name)
    agrees(net, run, images(name))
    with pytest.raises(DataError, match=r"holds convolutions that were merged already \(.*\), .* for rep=none"):
        load(branched, saved(merged))
    with pytest.raises(DataError, match=r"another"):
        load(net, saved(state))


def test_ecbsrs_plain_net_is_taken_for_what_it_is(saved: Saved) -> None:
    state, run, branched = case("ecbsr_official")
    load(branched, saved(state))
    merged = merged_state("ecbsr_official", branched, state)
    net = ecbsr(bare_block, 1, 1, 6, 2)
    load(net, saved(merged))
    agrees(net, run, images("ecbsr_official"))
    with pytest.raises(DataError, match=r"merged already \(backbone\.0\.conv3x3\.weight\)"):
        load(ecbsr(ecb_block, 1, 1, 6, 2), saved(merged))
    wrong = state | {"backbone.1.conv1x1_lpl.mask": -state["backbone.1.conv1x1_lpl.mask"]}
    with pytest.raises(DataError, match=r"has other values in backbone\.1\.conv1x1_lpl\.mask than every published net"):
        load(branched, saved(wrong))


# No weights.


class Harmful:
    """Its pickle calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def archive(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, "x")
    return buffer.getvalue()


KINDS: dict[str, tuple[bytes, str]] = {
    "empty.pth": (b"", "is empty"),
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
    "page.pth": (b"\n<!DOCTYPE html><html>", "is a web page"),
    "denied.pth": (b'<?xml version="1.0"?><Error>', "is a web page"),
    "answer.pth": (b'{"error": "not found"}', "is a JSON text"),
    "answer2.pth": (b"Not Found", "is a text that begins 'Not Found'"),
    "w.pth.gz": (gzip.compress(b"x"), "is compressed: unpack it"),
    "w.tar": (b"w.pth" + bytes(252) + b"ustar", "a tar archive: unpack it first"),
    "w.zip": (archive("w.pth"), "is a ZIP archive with w.pth in it"),
    "w.npz": (archive("a.npy"), "is a ZIP archive with a.npy in it"),
    "w.npy": (b"\x93NUMPY\x01\x00", "is an array of NumPy's"),
    "w.h5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "w.onnx": (b"\x08\x08\x12\x07pytorch\x1a", "is an ONNX model"),
    "model.ckpt.index": (b"\x00\x00\x01", "is one of TensorFlow's"),
    "model.ckpt.data-00000-of-00001": (b"\x01\x02", "is one of TensorFlow's"),
    "checkpoint": (b'model_checkpoint_path: "model.ckpt"', "is TensorFlow's list"),
    "bytes.pth": (bytes(range(128, 256)), "is truncated, or a pickle that torch.save did not write"),
    "noise.pth": (b"\xee\xf0" * 99, "is of no kind that is known here"),
    "w.pkl": (pickle.dumps({"w": 1}), "is truncated, or a pickle that torch.save did not write"),
}


def test_files_of_other_kinds_are_called_what_they_are(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for name, (content, sentence) in KINDS.items():
        with subtests.test(name=name):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError) as caught:
                load(own_net(), tmp_path / name)
            assert sentence in str(caught.value) and caught.value.exit_code == 3


def test_folders_and_paths_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no checkpoint .*nope"):
        load(own_net(), tmp_path / "nope.pth")
    with pytest.raises(DataError, match=r"x cannot be read \(File name too long\): name one that can"):
        load(own_net(), tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe is no regular file: name a run folder or a file of weights"):
        load(own_net(), tmp_path / "pipe")
    (tmp_path / "model.ckpt.index").touch()
    with pytest.raises(DataError, match=r"model\.ckpt is one of TensorFlow's"):
        load(own_net(), tmp_path / "model.ckpt")
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(DataError, match=r"is a folder without checkpoints/fp\.pt: name a file in it, such as w\.saf"):
        load(own_net(), tmp_path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    state = own_net().state_dict()
    for name, save in {
        "new.pth": torch.save,
        "old.pth": partial(torch.save, _use_new_zipfile_serialization=False),
        "w.safetensors": save_file,
    }.items():
        save(state, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for length in (len(whole) - 100, len(whole) // 2, 200):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(DataError, match="truncated"):
                load(own_net(), tmp_path / name)
    torch.save(state, tmp_path / "new.pth")
    flipped = bytearray((tmp_path / "new.pth").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "new.pth").write_bytes(flipped)
    with pytest.raises(DataError, match=r"is damaged \(new/data/\d+ has another checksum\): fetch or copy it again"):
        load(own_net(), tmp_path / "new.pth")
    torch.serialization.set_crc32_options(False)
    torch.save(state, tmp_path / "new.pth")
    torch.serialization.set_crc32_options(True)
    load(own_net(), tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("bomb/data/0", bytes(10**7))
    with pytest.raises(DataError, match=r"bomb\.pth is compressed, to 10,000,000 bytes: unpack it first"):
        load(own_net(), tmp_path / "bomb.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_named_and_never_run(zipped: bool, tmp_path: Path) -> None:
    state, victim = own_net().state_dict(), tmp_path / "victim"
    harms = {
        r"(posix|nt)\.system": Harmful(os.system, f"touch {victim}"),
        "eval": Harmful(eval, f"open({str(victim)!r}, 'w')"),
        "getattr": Harmful(Path.touch, victim),
        r"test_pretrained\.archive": Harmful(archive, "x"),
    }
    for name, harmful in harms.items():
        for content in ({"state_dict": state, "x": harmful}, harmful):
            torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
            with pytest.raises(DataError, match=rf"is not opened, since its pickle calls [\w.]*{name}, which is code"):
                load(own_net(), tmp_path / "w.pth")
    assert not victim.exists()


def test_whole_nets_scripted_nets_and_optimisers_are_no_weights(saved: Saved, tmp_path: Path) -> None:
    net = own_net()
    for content in (net, {"model": net, "epoch": 1}):
        with pytest.raises(DataError, match=r"is a whole pickled net \(of repq_cli\..*save its state_dict\(\) instead"):
            load(own_net(), saved(content))
    for content in (optimiser_state(net), {"optimizer": optimiser_state(net), "epoch": 3}):
        with pytest.raises(DataError, match="holds the state of an optimiser and no weights"):
            load(own_net(), saved(content))
    (tmp_path / "script.pt").write_bytes(archive("net/constants.pkl"))
    with pytest.raises(DataError, match="is a TorchScript archive"):
        load(own_net(), tmp_path / "script.pt")
    endless: dict[str, object] = {"weights": torch.zeros(3)}
    endless |= {"a": endless, "b": [endless, endless]}
    with pytest.raises(DataError, match=r"of none of the known layouts .*: weights"):
        load(own_net(), saved(endless))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(dtype: torch.dtype, saved: Saved) -> None:
    state = {key: value.to(dtype) if value.dim() == 4 else value for key, value in own_net().state_dict().items()}
    with pytest.raises(DataError, match=rf"as {dtype}: floating-point weights .* from before the net was quantized"):
        load(own_net(), saved(state))
    with pytest.raises(
        DataError, match=r"holds the shape of blocks\.0\S+ and no values: save the net once it has some"
    ):
        load(own_net(), saved({key: value.to("meta") for key, value in own_net().state_dict().items()}))
    with pytest.raises(DataError, match="too large for float32"):
        load(own_net(), saved({key: value.double() * 1e300 for key, value in own_net().state_dict().items()}))

"""Published state dicts load into our networks and compute what their own code computes."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_states import BLOCKS, WIDTHS, State, case, images, load, repvgg_net, repvgg_state, run_repvgg
from torch import Tensor, nn

from repq_cli.errors import DataError
from repq_cli.models.resnet import resnet
from repq_cli.pretrained.formats import FORMATS, recognise
from repq_cli.reparam.orepa import orepa_block
from repq_cli.reparam.plain import only_kernels
from repq_cli.reparam.qarepvgg import qarepvgg_block


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("explicit", [True, False])
def test_published_weights_compute_what_they_did(name: str, explicit: bool, tmp_path: Path) -> None:
    state, run, net = case(name)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}} if explicit else state, path)
    load(net, path, name if explicit else "auto")
    x = images(name)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), run(x), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_every_layout_is_recognised_by_its_keys(name: str) -> None:
    state, _, _ = case(name)
    assert recognise(state) == name


def test_a_layout_that_nobody_published_is_not_recognised(tmp_path: Path) -> None:
    assert recognise(["features.0.weight", "features.0.bias"]) is None
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"w\.pth are of none of the known layouts \(repq.*\): features\.0\.weight"):
        load(case("torchvision")[2], tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"missing: .* its keys are of none of the known layouts "):
        load(case("torchvision")[2], tmp_path / "w.pth", "torchvision")


def test_qarepvggs_first_variant_is_not_taken_for_repvgg(tmp_path: Path) -> None:
    state = repvgg_state(WIDTHS, "v1")
    torch.save(state, tmp_path / "w.pth")
    net = repvgg_net(functools.partial(qarepvgg_block, variant="v1"))
    load(net, tmp_path / "w.pth")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), run_repvgg(state, WIDTHS, x), atol=2e-4, rtol=2e-4)


def test_a_checkpoint_may_hold_the_arguments_of_its_script(tmp_path: Path) -> None:
    state, _, net = case("qarepvgg_official")
    content = {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "w.pth")
    load(net, tmp_path / "w.pth")


def test_an_odd_stem_of_orepa_has_no_published_form(tmp_path: Path) -> None:
    torch.save(case("orepa_official")[0], tmp_path / "w.pth")
    odd = resnet(only_kernels([3, 7], orepa_block), 3, 5, BLOCKS, width=9 / 64)
    with pytest.raises(DataError, match="even number of channels"):
        load(odd, tmp_path / "w.pth")


NETS = [name for name in FORMATS if name not in ("repq", "timm")]  # those two are of nets that others are of, too


@functools.cache
def net_of(name: str) -> nn.Module:
    """For tests that change nothing of it."""
    return case(name)[2]


@pytest.mark.parametrize("name", NETS)
def test_a_layout_is_for_its_own_nets_only(name: str, tmp_path: Path) -> None:
    state, _, _ = case(name)
    torch.save(state, tmp_path / "w.pth")
    for other in NETS:
        if other == name:
            continue
        net = net_of(other)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with pytest.raises(
            DataError, match=rf"as fp\.format={name} is for .* another: choose that net or another file"
        ):
            load(net, tmp_path / "w.pth")
        with pytest.raises(DataError, match=rf"missing: .* unexpected: .* look like fp\.format={name} \(model="):
            load(net, tmp_path / "w.pth", other)
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def damaged(change: Callable[[State], object], name: str, tmp_path: Path) -> str:
    state, _, net = case(name)
    state = dict(state)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DataError) as caught:
        load(net, tmp_path / "w.pth", name)
    return str(caught.value)


def test_missing_unexpected_and_misshapen_keys_are_listed(tmp_path: Path) -> None:
    text = damaged(lambda state: state.pop("layer1.0.conv1.weight"), "torchvision", tmp_path)
    assert "1 missing: layer1.0.conv1.weight" in text
    text = damaged(lambda state: state.update(extra=torch.zeros(1)), "torchvision", tmp_path)
    assert "1 unexpected: extra" in text
    text = damaged(lambda state: state.update({"fc.weight": torch.zeros(7, 512)}), "torchvision", tmp_path)
    assert "1 of another shape: fc.weight (7x512, not 5x512)" in text
    for rows in (2, 7):
        change = {"stage1.0.conv1.vector": torch.zeros(rows, 8)}
        text = damaged(lambda state, change=change: state.update(change), "orepa_official", tmp_path)
        assert f"1 of another shape: stage1.0.conv1.vector ({rows}x8, not 6x8)" in text
    text = damaged(lambda state: [state.pop(key) for key in list(state)[:30]], "torchvision", tmp_path)
    assert "and " in text and " more" in text


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    state, _, net = case("torchvision")
    kept = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    torch.save(kept, tmp_path / "w.pth")
    load(net, tmp_path / "w.pth", "torchvision")


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, 7: torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"of none of the known layouts .*: 7"):
        load(nn.Linear(2, 2), tmp_path / "w.pth")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"holds no state dict: fp\.checkpoint takes tensors"):
        load(nn.Linear(2, 2), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("key", "change", "sentence"),
    [
        ("fc.weight", lambda tensor: tensor * torch.nan, r"values in fc\.weight that are not finite"),
        ("bn1.running_var", lambda tensor: -tensor, r"a negative variance in bn1\.running_var"),
        ("fc.weight", lambda tensor: tensor.int(), r"fc\.weight as torch\.int32: floating-point"),
        ("fc.weight", lambda tensor: tensor.to(torch.complex64), r"fc\.weight as torch\.complex64"),
        ("fc.weight", lambda tensor: tensor.to_sparse(), r"fc\.weight as a torch\.sparse_coo tensor: dense"),
    ],
)
def test_weights_that_no_net_can_run_with_are_named(
    key: str, change: Callable[[Tensor], Tensor], sentence: str, tmp_path: Path
) -> None:
    text = damaged(lambda state: state.update({key: change(state[key])}), "torchvision", tmp_path)
    assert re.search(sentence, text)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    state, _, net = case("torchvision")
    torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w.pth")
    load(net, tmp_path / "w.pth")
    assert net.classifier.weight.dtype == torch.float32

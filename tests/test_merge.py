"""Merging is proven for every branch: outputs and gradients of every parameter, borders and odd maps included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise
from torch import Tensor, nn

from repq_cli.reparam.algebra import Geometry, Kernel, fold_batch_norm, identity_kernel, pad_kernel
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import Branch, ConvBranch, IdentityBranch
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.reparam.statistics import RunningStatistics

GEOMETRIES = [
    Geometry(4, 4),
    Geometry(4, 6, stride=2),
    Geometry(4, 6, groups=2),
    Geometry(4, 4, groups=2),
    Geometry(4, 4, groups=4, stride=2),
    Geometry(4, 4, padding=0),
    Geometry(4, 6, padding=0, stride=2),
    Geometry(4, 4, kernel_size=5, padding=2),
    Geometry(4, 6, kernel_size=5, padding=1, stride=2),
    Geometry(4, 6, kernel_size=1, padding=0),
]


def branches(geometry: Geometry) -> dict[str, Branch]:
    """Every kind of branch that the geometry allows."""
    found: dict[str, Branch] = {
        "dense": ConvBranch(geometry),
        "point": ConvBranch(geometry, (1, 1)),
        "row": ConvBranch(geometry, (1, geometry.kernel_size)),
        "column": ConvBranch(geometry, (geometry.kernel_size, 1)),
        "bias": ConvBranch(geometry, batch_norm=False),
    }
    if geometry.keeps_shape:
        found["identity"] = IdentityBranch(geometry)
    return found


def run_merged(block: Block, x: Tensor) -> Tensor:
    weight, bias = block.merged(RunningStatistics())
    geometry = block.geometry
    return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, 1, geometry.groups)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("kind", ["dense", "point", "row", "column", "bias", "identity", "all"])
@pytest.mark.parametrize("size", [(7, 9), (8, 8)], ids=str)
def test_merged_equals_branches_with_all_gradients(geometry: Geometry, kind: str, size: tuple[int, int]) -> None:
    available = branches(geometry)
    if kind != "all" and kind not in available:
        assert kind == "identity"
        with pytest.raises(ValueError, match="identity branch needs"):
            IdentityBranch(geometry)
        return
    chosen = available if kind == "all" else {kind: available[kind]}
    block = randomise(Block(geometry, chosen)).double().eval()
    x = torch.randn(3, geometry.in_channels, *size, dtype=torch.float64, requires_grad=True)
    inputs = [x, *block.parameters()]
    expected = block(x)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * direction).sum(), inputs)
    merged = run_merged(block, x)
    got = torch.autograd.grad((merged * direction).sum(), inputs)
    torch.testing.assert_close(merged, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(got, wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("make", [plain_block, repvgg_block])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_to_conv_is_a_new_module_equal_in_float32(geometry: Geometry, make: object) -> None:
    block = randomise(make(geometry, nn.ReLU())).eval()  # type: ignore[operator]
    before = {key: value.clone() for key, value in block.state_dict().items()}
    conv = block.to_conv()
    x = torch.randn(2, geometry.in_channels, 7, 9)
    torch.testing.assert_close(F.relu(conv(x)), block(x), atol=2e-5, rtol=2e-5)
    assert all(torch.equal(before[key], value) for key, value in block.state_dict().items())


def test_fold_batch_norm_by_hand() -> None:
    kernel = Kernel(torch.full((1, 1, 1, 1), 2.0), torch.tensor([1.0]))
    gamma, beta, mean, var = (torch.tensor([value]) for value in (3.0, 0.5, 4.0, 8.0))
    weight, bias = fold_batch_norm(kernel, gamma, beta, mean, var, eps=1.0)
    assert weight.item() == 2.0  # 2 * 3 / sqrt(8 + 1)
    assert bias.item() == 0.5 + (1.0 - 4.0) * 1.0


def test_identity_kernel_copies_its_input_in_groups() -> None:
    x = torch.randn(2, 6, 5, 5)
    kernel = identity_kernel(6, 2, like=x)
    assert torch.equal(F.conv2d(x, kernel, groups=2), x)


def test_pad_kernel_keeps_the_centre() -> None:
    padded = pad_kernel(torch.ones(1, 1, 1, 3), 5)
    assert padded.shape == (1, 1, 5, 5)
    assert torch.equal(padded[0, 0, 2], torch.tensor([0.0, 1, 1, 1, 0]))
    assert padded.sum() == 3


def test_repvgg_has_an_identity_exactly_where_shapes_agree() -> None:
    assert list(repvgg_block(Geometry(4, 4)).branches) == ["dense", "point", "identity"]
    assert list(repvgg_block(Geometry(4, 4, stride=2)).branches) == ["dense", "point"]
    assert list(repvgg_block(Geometry(4, 6)).branches) == ["dense", "point"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kernel_size": 2}, "kernel_size=2 is even: use 3"),
        ({"groups": 3}, "groups=3 must divide in_channels=4"),
    ],
)
def test_impossible_geometry_says_why(arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Geometry(4, 4, **arguments)

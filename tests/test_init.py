"""MinError is near the exhaustive optimum on the whole tensor; LSQ's rule is its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from repq_cli.quant.functional import Grid, IntegerRange, integer_range, quantize
from repq_cli.quant.init import lsq_step, min_error_step
from repq_cli.quant.lsq import LSQ

COUNT = 200_000  # more than the sample that is searched


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=generator)

    return {
        "normal": normal(COUNT),
        "relu": normal(COUNT).relu(),
        "bimodal": torch.cat([normal(COUNT // 2) * 0.1 - 3, normal(COUNT // 2) * 0.1 + 2]),
        "one_outlier": torch.cat([normal(COUNT - 1), torch.tensor([100.0])]),
        "one_huge_outlier": torch.cat([normal(COUNT - 1), torch.tensor([1000.0])]),
        "merged_kernel_row": torch.cat([normal(1727) * 0.06, torch.tensor([1.0])]),
        "short": normal(432),
    }


def squared_error(values: Tensor, step: Tensor, codes: IntegerRange) -> float:
    return ((quantize(values, Grid(step), codes) * step - values).double() ** 2).sum().item()


def exhaustive(values: Tensor, codes: IntegerRange) -> float:
    """The least error over a fine grid of steps, on all values."""
    widest = max(values.max().item() / codes.high, values.min().item() / min(codes.low, -1))
    return min(
        squared_error(values, step, codes)
        for step in torch.logspace(-3.5, 0.1, 500 if len(values) > 9999 else 6000) * widest
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("name", list(tensors()))
def test_min_error_is_within_one_percent_of_the_optimum(name: str, bits: int) -> None:
    values = tensors()[name]
    codes = integer_range(bits, signed=bool((values < 0).any()))
    step = min_error_step(values.unsqueeze(0), codes)
    assert squared_error(values, step, codes) <= 1.01 * exhaustive(values, codes)


@pytest.mark.parametrize("count", [27, 432, 864])
def test_min_error_finds_the_ragged_optimum_of_short_rows_at_8_bit(count: int) -> None:
    """Rows of a first layer: many levels for few values."""
    codes = integer_range(8, True)
    rows = torch.randn(6, count, generator=torch.Generator().manual_seed(count))
    for row, step in zip(rows, min_error_step(rows, codes), strict=True):
        assert squared_error(row, step, codes) <= 1.01 * exhaustive(row, codes)


@pytest.mark.parametrize(("bits", "step"), [(2, 1.05), (3, 0.60), (4, 0.339), (8, 0.0298)])
def test_min_error_finds_the_known_optima_of_a_normal_tensor(bits: int, step: float) -> None:
    found = min_error_step(tensors()["normal"].unsqueeze(0), integer_range(bits, True)).item()
    assert found == pytest.approx(step, rel=0.04)


def test_rows_are_searched_independently() -> None:
    codes = integer_range(4, True)
    rows = torch.randn(5, 300) * torch.tensor([1e-3, 0.1, 1, 10, 1e4]).unsqueeze(1)
    together = min_error_step(rows, codes)
    alone = torch.cat([min_error_step(row.unsqueeze(0), codes) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


def test_min_error_depends_on_the_tensor_alone() -> None:
    values = tensors()["normal"].unsqueeze(0)
    torch.manual_seed(1)
    first = min_error_step(values, integer_range(4, True))
    torch.manual_seed(2)
    assert torch.equal(first, min_error_step(values, integer_range(4, True)))


@pytest.mark.parametrize("rule", [min_error_step, lsq_step])
def test_all_zero_rows_get_some_positive_step(rule: object) -> None:
    steps = rule(torch.zeros(3, 10), integer_range(4, True))  # type: ignore[operator]
    assert (steps > 0).all()
    assert torch.isfinite(steps).all()


def test_negative_values_of_an_unsigned_tensor_do_not_widen_its_range() -> None:
    values = torch.cat([torch.full((50,), -100.0), torch.linspace(0, 1, 50)]).unsqueeze(0)
    assert min_error_step(values, integer_range(4, False)).item() < 0.1


def test_lsq_rule() -> None:
    values = torch.tensor([[1.0, -2.0, 3.0]])
    assert lsq_step(values, integer_range(4, True)).item() == pytest.approx(2 * 2.0 / 7**0.5)


def test_calibrate_sets_one_step_per_channel_or_one_in_all() -> None:
    weight = torch.randn(6, 4, 3, 3) * torch.arange(1, 7).view(-1, 1, 1, 1)
    channel, tensor = LSQ(4, True, 6), LSQ(4, True)
    channel.calibrate(weight)
    tensor.calibrate(weight, "lsq")
    torch.testing.assert_close(channel.step(), min_error_step(weight.flatten(1), channel.codes))
    torch.testing.assert_close(tensor.step(), 2 * weight.abs().mean() / 7**0.5)

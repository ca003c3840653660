"""MinError is near the exhaustive optimum on the whole tensor; LSQ's rule is its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from repq_cli.quant.functional import Grid, IntegerRange, integer_range, quantize
from repq_cli.quant.init import lsq_step, min_error_offset, min_error_step
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
    if len(values) < 9999:
        return min(squared_error(values, step, codes) for step in torch.logspace(-3.5, 0.1, 6000) * widest)
    coarse = torch.logspace(-3.5, 0.1, 91) * widest  # of so many values the error has no ragged minima
    nearest = min(range(91), key=lambda index: squared_error(values, coarse[index], codes))
    ends = coarse[max(nearest - 1, 0)], coarse[min(nearest + 1, 90)]
    return min(squared_error(values, step, codes) for step in torch.linspace(*ends, 40))  # type: ignore[call-overload]


@pytest.mark.parametrize("name", list(tensors()))
def test_min_error_is_within_one_percent_of_the_optimum(name: str, subtests: pytest.Subtests) -> None:
    values = tensors()[name]
    for bits in (2, 4, 8):
        with subtests.test(bits=bits):
            codes = integer_range(bits, signed=bool((values < 0).any()))
            step = min_error_step(values.unsqueeze(0), codes)
            assert squared_error(values, step, codes) <= 1.01 * exhaustive(values, codes)


def short_rows(count: int) -> Tensor:
    """Normal, sparse, heavy-tailed, all equal, one spike; the first two also with huge and tiny numbers."""
    normal, heavy = torch.randn(count), torch.randn(count) ** 5
    sparse = torch.randn(count) * (torch.rand(count) < 0.1)
    spike = torch.randn(count) * 1e-2
    spike[-1] = 1.0
    return torch.stack([normal, sparse, heavy, torch.full((count,), 0.7), spike, normal * 1e15, sparse * 1e-6])


def least_error(values: np.ndarray, low: int, high: int) -> float:
    """Of all steps on a very fine grid, each replaced by the best one for its codes, on float64.

    Some ten steps for each at which a code changes: every value has one for each code.
    """
    most, count = np.abs(values).max(), min(40_000, 1000 + 10 * values.size * (high - low))
    step = np.geomspace(most / max(high, -low) / 4, 2.2 * most, count)[:, None] if most else np.ones((1, 1))
    for _ in range(2):
        codes = np.clip(np.round(values / step), low, high)
        fitted = (codes * values).sum(1, keepdims=True) / np.maximum((codes**2).sum(1, keepdims=True), 1)
        step = np.where(fitted > 0, fitted, step)
    return float(((codes * step - values) ** 2).sum(1).min())


@pytest.mark.parametrize("counts", [(1, 2, 3, 9, 72), pytest.param((144,), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_min_error_of_short_rows_is_the_least_there_is(
    bits: int, counts: tuple[int, ...], subtests: pytest.Subtests
) -> None:
    """Single values decide it, so that a grid of steps misses it: by 11 times for 72 values of which 7 are not zero."""
    for count in counts:
        with subtests.test(count=count):
            torch.manual_seed(count)
            ranges = [integer_range(bits, False)] + [
                integer_range(bits, True, narrow) for narrow in (False, True) if bits > 1
            ]
            for codes in ranges:
                rows = short_rows(count) if codes.low else short_rows(count).abs()
                for row, step in zip(rows, min_error_step(rows, codes), strict=True):
                    rounding = 1e-12 * row.double().square().sum().item()
                    error = squared_error(row.double(), step.double(), codes)
                    assert error <= 1.001 * least_error(row.double().numpy(), *codes) + rounding


@pytest.mark.parametrize("bits", [2, 3])
def test_step_and_offset_of_few_values_are_the_best_pair(bits: int) -> None:
    codes = integer_range(bits, False)
    for row in [row for count in (2, 9, 72) for row in (*short_rows(count), short_rows(count)[0] + 0.5)]:
        values = row.double().numpy()
        step, offset = (found.double().item() for found in min_error_offset(row, codes))
        zero_point = round(-offset / step)
        error = squared_error(row.double(), torch.tensor(step), IntegerRange(-zero_point, codes.high - zero_point))
        best = min(least_error(values, -z, codes.high - z) for z in range(codes.high + 1))
        assert error <= 1.001 * best + 1e-11 * (values**2).sum()


@pytest.mark.parametrize("count", [600, 864])
def test_min_error_finds_the_ragged_optimum_of_longer_rows_at_8_bit(count: int) -> None:
    codes = integer_range(8, True)
    rows = torch.randn(6, count, generator=torch.Generator().manual_seed(count))
    for row, step in zip(rows, min_error_step(rows, codes), strict=True):
        assert squared_error(row, step, codes) <= 1.01 * exhaustive(row, codes)
    on_a_grid = (36 * rows).round().clamp(*codes).index_fill(1, torch.tensor(0), codes.low) * 0.0123
    assert min_error_step(on_a_grid, codes).tolist() == pytest.approx([0.0123] * len(rows), rel=1e-6)


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

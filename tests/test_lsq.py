"""LSQ against an independent numpy formula, and the integer grid as a fixed point."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_cli.quant.functional import Grid, integer_range, quantize
from repq_cli.quant.learned_steps import lsq_fake_quantize, lsq_plus_fake_quantize
from repq_cli.quant.lsq import LSQ
from repq_cli.quant.sums import sums_in_training, weighted_sums
from repq_cli.quant.windows import Window

BITS = range(2, 9)


def numpy_lsq(v: np.ndarray, s: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output, d(out)/dv and d(out)/ds of arXiv 1902.08153, eqs. 1-3 and 5, element by element."""
    ratio = v / s
    out = np.round(np.clip(ratio, low, high)) * s
    inside = (ratio > low) & (ratio < high)
    grad_s = np.where(inside, np.round(ratio) - ratio, np.where(ratio <= low, low, high))
    return out, inside.astype(v.dtype), grad_s


def awkward_values(step: float, low: int, high: int) -> np.ndarray:
    """Zeros, ties, both ends of the range and beyond, and ordinary values."""
    rng = np.random.default_rng(0)
    corners = np.array(
        [0, -0.0, 0.5, -0.5, 1.5, 2.5, low, high, low - 0.5, high + 0.5, 3 * low - 1, 3 * high, low + 0.5]
    )
    return np.concatenate([corners, rng.normal(0, high / 2, 51)]) * step


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_forward_and_gradients_equal_numpy(bits: int, signed: bool) -> None:
    codes = integer_range(bits, signed)
    step = np.float64(0.25)  # a power of two, so that ties are exact
    values = awkward_values(float(step), *codes)
    out, grad_v, grad_s = numpy_lsq(values, step, *codes)
    v = torch.tensor(values, requires_grad=True)
    s = torch.tensor(step, requires_grad=True)
    direction = torch.randn(len(values), dtype=torch.float64)
    y = lsq_fake_quantize(v, s, codes, grad_scale=0.125)
    got_v, got_s = torch.autograd.grad((y * direction).sum(), [v, s])
    np.testing.assert_array_equal(y.detach().numpy(), out)
    np.testing.assert_allclose(got_v.numpy(), grad_v * direction.numpy(), rtol=1e-14)
    np.testing.assert_allclose(got_s.item(), 0.125 * (grad_s * direction.numpy()).sum(), rtol=1e-12)


def test_gradients_per_channel_equal_numpy_row_by_row() -> None:
    codes = integer_range(3, True)
    v = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    s = torch.tensor([0.1, 0.3, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(v)
    y = lsq_fake_quantize(v, s.view(-1, 1, 1, 1), codes, grad_scale=0.5)
    got_v, got_s = torch.autograd.grad((y * direction).sum(), [v, s])
    for row in range(4):
        out, grad_v, grad_s = numpy_lsq(v[row].detach().numpy(), s[row].item(), *codes)
        np.testing.assert_allclose(y[row].detach().numpy(), out, rtol=1e-14)
        np.testing.assert_allclose(got_v[row].numpy(), grad_v * direction[row].numpy(), rtol=1e-14)
        np.testing.assert_allclose(got_s[row].item(), 0.5 * (grad_s * direction[row].numpy()).sum(), rtol=1e-12)


def test_the_integer_grid_is_a_fixed_point(subtests: pytest.Subtests) -> None:
    for bits in BITS:
        for signed in [True, False]:
            for channels in [None, 3]:
                with subtests.test(bits=str(bits), signed=str(signed), channels=str(channels)):
                    quantizer = LSQ(bits, signed, channels)
                    with torch.no_grad():
                        quantizer.raw_step.copy_(torch.rand_like(quantizer.raw_step) + 0.01)
                    grid = torch.arange(quantizer.codes.low, quantizer.codes.high + 1).float().repeat(3, 1)
                    values = grid * quantizer.step_for(grid)
                    assert torch.equal(quantizer(values), values)
                    assert torch.equal(quantizer.integers(values), grid)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    step=st.floats(2**-13, 10, width=32),
    seed=st.integers(0, 1000),
)
def test_fake_quantization_is_integers_times_step_bit_for_bit(bits: int, signed: bool, step: float, seed: int) -> None:
    codes = integer_range(bits, signed)
    v = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * 5
    s = torch.tensor(step)
    integers = quantize(v, Grid(s), codes)
    torch.testing.assert_close(lsq_fake_quantize(v, s, codes), integers * s, atol=0, rtol=0)
    assert torch.equal(integers, integers.round())
    assert integers.min() >= codes.low
    assert integers.max() <= codes.high


def test_steps_are_positive_by_construction() -> None:
    quantizer = LSQ(4, True, 4)
    with torch.no_grad():
        quantizer.raw_step.copy_(torch.tensor([0.5, -0.5, 0.0, -1e-12]))
    assert torch.equal(quantizer.step(), torch.tensor([0.5, 0.5, 1e-8, 1e-8]))


@pytest.mark.parametrize(
    ("shape", "channels", "per_sample", "count"),
    [((8, 3, 5, 5), None, True, 75), ((8, 3, 5, 5), None, False, 600), ((8, 3, 5, 5), 8, False, 75)],
)
def test_gradient_scale_counts_the_elements_that_share_a_step(
    shape: tuple[int, ...], channels: int | None, per_sample: bool, count: int
) -> None:
    quantizer = LSQ(4, True, channels, per_sample=per_sample)
    v = torch.randn(shape) * 3
    (grad,) = torch.autograd.grad(quantizer(v).sum(), [quantizer.raw_step])
    step = quantizer.raw_step.detach().clone().requires_grad_()
    view = step if channels is None else step.view(-1, 1, 1, 1)
    (unscaled,) = torch.autograd.grad(lsq_fake_quantize(v, view, quantizer.codes).sum(), [step])
    torch.testing.assert_close(grad, unscaled / math.sqrt(count * 7))


@pytest.mark.parametrize("bits", [0, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 8 bits, not for bits={bits}"):
        LSQ(bits, True)


def test_gradients_keep_the_memory_layout_and_are_computed_in_float32(subtests: pytest.Subtests) -> None:
    """Of channels-last maps and of half precision, whose gradients may come in another layout."""
    wanted = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(1))
    codes, step = integer_range(4, True), torch.tensor(0.2)
    for dtype, layout in itertools.product(
        (torch.float64, torch.float32, torch.bfloat16, torch.float16), (torch.contiguous_format, torch.channels_last)
    ):
        with subtests.test(dtype=str(dtype), layout=str(layout)):
            v = wanted.to(dtype).contiguous(memory_format=layout).requires_grad_()
            s = step.to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
            y = lsq_fake_quantize(v, s, codes)
            got_v, got_s = torch.autograd.grad(y, [v, s], direction.to(dtype))
            out, grad_v, grad_s = numpy_lsq(v.detach().double().numpy(), s.item(), *codes)
            g = direction.to(dtype).double().numpy()
            tolerance = 1e-12 if dtype == torch.float64 else 1e-5
            assert y.is_contiguous(memory_format=layout) and got_v.is_contiguous(memory_format=layout)
            assert (y.dtype, got_v.dtype, got_s.dtype) == (dtype, dtype, s.dtype)
            np.testing.assert_allclose(y.detach().double().numpy(), torch.tensor(out).to(dtype).double(), rtol=1e-6)
            np.testing.assert_array_equal(got_v.double().numpy(), grad_v * g)
            np.testing.assert_allclose(got_s.item(), (grad_s * g).sum(), rtol=tolerance)


def test_a_convolution_makes_the_codes_that_it_reads_again_and_stores_none(subtests: pytest.Subtests) -> None:
    for offset, window in itertools.product((None, -0.3), (Window(1, 1, 1), Window(2, 0, 2), Window(1, 1, 4))):
        with subtests.test(offset=str(offset), window=str(window)):
            shapes = {"raw": (3, 4, 7, 6), "step": (), "weight": (8, 4 // window.groups, 3, 3), "bias": (8,)}
            leaves = {name: torch.rand(shape, dtype=torch.float64) - 0.3 for name, shape in shapes.items()}
            leaves["step"].fill_(0.2)
            if offset is not None:
                leaves["offset"] = torch.tensor(offset, dtype=torch.float64)
            for leaf in leaves.values():
                leaf.requires_grad_()
            values, expected_x, x = codes_twice(leaves)
            expected = weighted_sums(expected_x, leaves["weight"], leaves["bias"], window)
            stored: set[int] = set()
            with torch.autograd.graph.saved_tensors_hooks(partial(note_address, stored), lambda tensor: tensor):
                y = sums_in_training(x, leaves["weight"], leaves["bias"], window)
            assert torch.equal(y, expected)
            assert values.data_ptr() in stored
            assert x.data_ptr() not in stored
            direction = torch.randn_like(y)
            wanted = torch.autograd.grad(expected, list(leaves.values()), direction, retain_graph=True)
            found = torch.autograd.grad(y, list(leaves.values()), direction)
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def codes_twice(leaves: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A map, and twice what LSQ makes of it."""
    values, codes = leaves["raw"] * 1.0, integer_range(4, False)
    if "offset" in leaves:
        made = [lsq_plus_fake_quantize(values, leaves["step"], leaves["offset"], codes) for _ in range(2)]
    else:
        made = [lsq_fake_quantize(values, leaves["step"], codes) for _ in range(2)]
    return values, made[0], made[1]


def note_address(stored: set[int], tensor: torch.Tensor) -> torch.Tensor:
    stored.add(tensor.data_ptr())
    return tensor

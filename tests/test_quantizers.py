"""Binary, ternary, affine and offset quantizers against independent numpy formulas, forward and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from repq_cli.quant.affine import AffineActivation, AffineWeight
from repq_cli.quant.binary import ScaledSignWeight, SignActivation, SignWeight
from repq_cli.quant.functional import (
    Grid,
    IntegerRange,
    affine_fake_quantize,
    binarize,
    input_scale,
    integer_range,
    lsq_binary_fake_quantize,
    nudged_grid,
    scaled_binary_fake_quantize,
    stochastic_binarize,
)
from repq_cli.quant.init import min_error_offset, min_error_step
from repq_cli.quant.learned_steps import lsq_plus_fake_quantize
from repq_cli.quant.lsq import LSQ, LSQPlus
from repq_cli.quant.quantizer import Quantizer
from repq_cli.quant.ternary import TernaryWeight

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

Array = np.ndarray


def awkward(*shape: int) -> Array:
    """Normal values with zeros of both signs, ones, ties and outliers among them."""
    values = np.random.default_rng(0).normal(0, 0.8, shape)
    flat = values.reshape(-1)
    flat[:12] = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -3.0, 1e-12, -1e-12, 0.25, -0.25]
    return values


def forward_and_gradient(function: Callable[[Tensor], Tensor], values: Array, grad: Array) -> tuple[Array, Array]:
    v = torch.tensor(values, requires_grad=True)
    y = function(v)
    (gradient,) = torch.autograd.grad(y, v, torch.tensor(grad))
    return y.detach().numpy(), gradient.numpy()


def plus_minus(values: Array) -> Array:
    return np.where(values >= 0, 1.0, -1.0)


W = awkward(6, 4, 3, 3)
G = np.random.default_rng(1).normal(size=W.shape)


def test_sign_weights_pass_every_gradient() -> None:
    y, gradient = forward_and_gradient(SignWeight(), W, G)
    np.testing.assert_array_equal(y, plus_minus(W))
    np.testing.assert_array_equal(gradient, G)


def test_sign_activations_have_the_gradient_of_hard_tanh() -> None:
    y, gradient = forward_and_gradient(SignActivation(), W, G)
    np.testing.assert_array_equal(y, plus_minus(W))
    np.testing.assert_array_equal(gradient, G * (np.abs(W) <= 1))


def test_stochastic_signs_have_the_right_mean() -> None:
    draws = 100_000
    for value in (-1.5, -1.0, -0.3, 0.0, 0.7, 1.0, 2.0):
        mean = stochastic_binarize(torch.full((draws,), value)).mean().item()
        chance = min(max((value + 1) / 2, 0), 1)
        sigma = 2 * math.sqrt(chance * (1 - chance) / draws)
        assert abs(mean - (2 * chance - 1)) <= 3 * sigma


def test_stochastic_quantizers_draw_in_training_only() -> None:
    quantizer = SignWeight(stochastic=True)
    weight = torch.zeros(1000)
    assert 0 < (quantizer(weight) > 0).sum() < 1000
    assert torch.equal(quantizer.eval()(weight), torch.ones(1000))
    assert torch.equal(quantizer.integers(weight), torch.ones(1000))


@pytest.mark.parametrize("per_filter", [True, False])
def test_xnor_gradient_is_the_exact_chain_rule(per_filter: bool) -> None:
    """``dC/dW_i = alpha g_i 1[|W_i| <= 1] + sign(W_i) sum_j g_j sign(W_j) / n`` for the filter or the tensor."""
    weight = np.where(W == 0, 0.1, W)  # |w| has no derivative at 0
    y, gradient = forward_and_gradient(ScaledSignWeight(per_filter), weight, G)
    rows, grads = (array.reshape(6 if per_filter else 1, -1) for array in (weight, G))
    alpha = np.abs(rows).mean(1, keepdims=True)
    signs = plus_minus(rows)
    through_alpha = signs * (grads * signs).sum(1, keepdims=True) / rows.shape[1]
    expected = alpha * grads * (np.abs(rows) <= 1) + through_alpha
    np.testing.assert_allclose(y, (alpha * signs).reshape(W.shape), rtol=1e-14)
    np.testing.assert_allclose(gradient, expected.reshape(W.shape), rtol=1e-12, atol=1e-14)


def test_xnor_gradient_equals_finite_differences_of_alpha() -> None:
    """Where no sign changes and no value is in reach of the straight-through estimate, autograd is all there is."""
    weight = torch.tensor(np.abs(W) + 1.5, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: scaled_binary_fake_quantize(w, (1, 2, 3)), [weight])


@pytest.mark.parametrize("per_filter", [True, False])
@pytest.mark.parametrize("threshold", [0.7, 0.75])
def test_ternary_weights_equal_numpy(per_filter: bool, threshold: float) -> None:
    y, gradient = forward_and_gradient(TernaryWeight(threshold, per_filter), W, G)
    expected = np.empty_like(W).reshape(6 if per_filter else 1, -1)
    for row, out in zip(W.reshape(expected.shape), expected, strict=True):
        beyond = np.abs(row) > threshold * np.abs(row).mean()
        out[:] = np.where(beyond, np.sign(row), 0) * np.abs(row[beyond]).mean()
    np.testing.assert_allclose(y, expected.reshape(W.shape), rtol=1e-14)
    np.testing.assert_array_equal(gradient, G)


def test_the_ternary_step_is_the_best_for_its_codes() -> None:
    """``alpha = <W, T> / <T, T>`` minimises ``|W - alpha T|^2``."""
    quantizer, weight = TernaryWeight(), torch.tensor(W)
    codes = quantizer.integers(weight)
    torch.testing.assert_close(quantizer.grid(weight).step.squeeze(), (weight * codes).sum() / (codes * codes).sum())


def numpy_affine(values: Array, low: Array, high: Array, codes: IntegerRange) -> tuple[Array, Array]:
    """Arxiv 1712.05877, eq. 12, on a range nudged so that zero is a level; and where the gradient passes."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    step = (high - low) / (codes.high - codes.low)
    zero = np.clip(np.round(codes.low - low / step), codes.low, codes.high)
    low, high = (codes.low - zero) * step, (codes.high - zero) * step
    out = np.round((np.clip(values, low, high) - low) / step) * step + low
    return out, (values >= low) & (values <= high)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("per_channel", [True, False])
def test_affine_weights_equal_numpy(bits: int, per_channel: bool) -> None:
    values = np.random.default_rng(bits).normal(0.3, 1, W.shape)
    quantizer = AffineWeight(bits, per_channel)
    assert quantizer.codes == (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    y, gradient = forward_and_gradient(quantizer, values, G)
    axes = (1, 2, 3) if per_channel else (0, 1, 2, 3)
    ends = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    expected, inside = numpy_affine(values, *ends, quantizer.codes)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    np.testing.assert_array_equal(gradient, G * inside)


@pytest.mark.parametrize("signed", [True, False])
def test_nudging_keeps_zero_exact(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = integer_range(8, signed)
    for _ in range(1000):
        low, high = (torch.randn(2, generator=generator) * 10).sort().values
        grid = nudged_grid(low, high, codes)
        assert grid.zero_point is not None
        assert grid.zero_point == grid.zero_point.round()
        assert codes.low <= grid.zero_point <= codes.high
        assert affine_fake_quantize(torch.zeros(1), grid, codes).item() == 0
        # The nudged range is as wide as the one asked for and moved by half a step at most.
        assert grid.dequantize(torch.tensor(float(codes.low))) == pytest.approx(
            min(low.item(), 0), abs=0.51 * grid.step.item()
        )


def test_activation_ranges_are_moving_averages_with_a_delayed_start() -> None:
    quantizer = AffineActivation(8, momentum=0.9, delay=2)
    batches = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) * (seed + 1) for seed in range(5)]
    quantizer.calibrate(batches[0])
    low, high = batches[0].min().item(), batches[0].max().item()
    for index, batch in enumerate(batches):
        y = quantizer(batch)
        low, high = (0.9 * end + 0.1 * seen for end, seen in ((low, batch.min().item()), (high, batch.max().item())))
        assert (quantizer.low.item(), quantizer.high.item()) == pytest.approx((low, high), rel=1e-6)
        assert torch.equal(y, batch) == (index < 2)
    quantizer.eval()
    before = quantizer.low.clone()
    quantizer(batches[4] * 100)
    assert torch.equal(quantizer.low, before)
    early = AffineActivation(4, delay=100).eval()
    assert not torch.equal(early(batches[1]), batches[1])  # eval mode quantizes whatever the delay


def test_affine_activations_equal_numpy() -> None:
    quantizer = AffineActivation(4).double().eval()
    quantizer.low.fill_(-0.7)
    quantizer.high.fill_(2.1)
    y, gradient = forward_and_gradient(quantizer, W, G)
    expected, inside = numpy_affine(W, np.array(-0.7), np.array(2.1), quantizer.codes)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    np.testing.assert_array_equal(gradient, G * inside)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("offset", [-0.6, 0.0, -5.0])
def test_lsq_plus_equals_numpy(bits: int, offset: float) -> None:
    codes, step = integer_range(bits, False), 0.25
    zero = np.clip(np.round(-offset / step), *codes)
    unrounded = W / step + zero  # (v - o) / s with the offset that is a multiple of the step
    clipped = np.clip(np.round(W / step) + zero, *codes)
    inside = (unrounded > codes.low) & (unrounded < codes.high)
    v, s, o = (torch.tensor(value, requires_grad=True, dtype=torch.float64) for value in (W, step, offset))
    y = lsq_plus_fake_quantize(v, s, o, codes, grad_scale=0.125)
    to_values, to_step, to_offset = torch.autograd.grad(y, [v, s, o], torch.tensor(G))
    np.testing.assert_allclose(y.detach().numpy(), (clipped - zero) * step, atol=1e-14)
    np.testing.assert_array_equal(to_values.numpy(), G * inside)
    ends = np.where(unrounded >= codes.high, codes.high, codes.low)
    per_step = np.where(inside, clipped - unrounded, ends)
    assert to_step.item() == pytest.approx(0.125 * (G * per_step).sum(), rel=1e-10)
    wanted = 0.125 * (G * ~inside).sum()
    stuck = (zero == codes.low and wanted < 0) or (zero == codes.high and wanted > 0)
    assert to_offset.item() == pytest.approx(0 if stuck else wanted, rel=1e-10)


@pytest.mark.parametrize(
    ("offset", "grad", "moves"), [(0.0, -1, False), (0.0, 1, True), (-9.0, 1, False), (-9.0, -1, True)]
)
def test_an_offset_does_not_move_zero_beyond_the_codes(offset: float, grad: float, moves: bool) -> None:
    """Down the gradient: an offset that rises lowers the code of zero, which cannot go below the first."""
    o = torch.tensor(offset, requires_grad=True)
    values = torch.tensor([100.0, -100.0])
    y = lsq_plus_fake_quantize(values, torch.tensor(0.1), o, integer_range(4, False))
    (gradient,) = torch.autograd.grad(y, o, torch.tensor([grad, 0.0]))
    assert (gradient != 0) == moves


def test_one_signed_bit_of_lsq_is_a_scaled_sign() -> None:
    step = 0.8
    v, s = torch.tensor(W, requires_grad=True), torch.tensor(step, requires_grad=True, dtype=torch.float64)
    y = lsq_binary_fake_quantize(v, s, grad_scale=0.125)
    to_values, to_step = torch.autograd.grad(y, [v, s], torch.tensor(G))
    np.testing.assert_array_equal(y.detach().numpy(), step * plus_minus(W))
    np.testing.assert_allclose(to_values.numpy(), G * (np.abs(W) <= step), rtol=1e-14)
    assert to_step.item() == pytest.approx(0.125 * (G * plus_minus(W)).sum(), rel=1e-12)
    quantizer = LSQ(1, signed=True, channels=6).double()
    weight = torch.tensor(W, dtype=torch.float64)
    quantizer.calibrate(weight)
    torch.testing.assert_close(quantizer.step(), weight.abs().flatten(1).mean(1))


def test_one_unsigned_bit_is_zero_and_a_step() -> None:
    quantizer = LSQ(1, signed=False)
    x = torch.rand(1000)
    quantizer.calibrate(x)
    assert set(quantizer.integers(x).tolist()) == {0.0, 1.0}


def test_symmetric_two_bits_are_ternary() -> None:
    assert LSQ(2, signed=True, symmetric=True).codes == (-1, 1)
    assert LSQ(8, signed=True, symmetric=True).codes == (-127, 127)


def test_input_scale_is_the_box_mean_of_the_mean_magnitude() -> None:
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    magnitude = np.pad(x.abs().mean(1).numpy(), [(0, 0), (1, 1), (1, 1)])
    expected = np.array(
        [[[image[r : r + 3, c : c + 3].mean() for c in range(0, 6, 2)] for r in range(0, 5, 2)] for image in magnitude]
    )
    np.testing.assert_allclose(input_scale(x, torch.Size([4, 3, 3, 3]), 2, 1)[:, 0].numpy(), expected, rtol=1e-12)


EVERY: dict[str, Callable[[], Quantizer]] = {
    "sign": SignWeight,
    "sign activation": SignActivation,
    "bwn": ScaledSignWeight,
    "bwn tensor": lambda: ScaledSignWeight(per_filter=False),
    "twn": TernaryWeight,
    "twn filter": lambda: TernaryWeight(0.75, per_filter=True),
    "lsq 1": lambda: LSQ(1, True),
    "lsq 1 channel": lambda: LSQ(1, True, 4),
    "lsq 1 unsigned": lambda: LSQ(1, False),
    "lsq 2 symmetric": lambda: LSQ(2, True, symmetric=True),
    "lsqplus 2": lambda: LSQPlus(2),
    "lsqplus 8": lambda: LSQPlus(8),
    **{f"affine weight {bits}": lambda bits=bits: AffineWeight(bits) for bits in (2, 4, 8)},
    "affine weight channel": lambda: AffineWeight(8, per_channel=True),
    **{f"affine activation {bits}": lambda bits=bits: AffineActivation(bits) for bits in (2, 4, 8)},
}


def codes_of(quantizer: Quantizer) -> list[float]:
    low, high = quantizer.codes
    return [float(low), float(high)] if quantizer.by_sign else [float(code) for code in range(low, high + 1)]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(2**-10, 100, width=32), shift=st.floats(-3, 3, width=32))
def test_fake_quantization_is_the_grid_times_integers_bit_for_bit(
    name: str, seed: int, scale: float, shift: float
) -> None:
    quantizer = EVERY[name]().eval()
    values = (torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) + shift) * scale
    quantizer.calibrate(values)
    integers = quantizer.integers(values)
    with torch.no_grad():
        fake = quantizer(values)
        torch.testing.assert_close(fake, quantizer.grid(values).dequantize(integers), atol=0, rtol=0)
    assert set(integers.unique().tolist()) <= set(codes_of(quantizer))


def test_the_whole_integer_grid_is_a_fixed_point(subtests: pytest.Subtests) -> None:
    for name in EVERY:
        with subtests.test(name=str(name)):
            quantizer = EVERY[name]().eval()
            quantizer.calibrate(torch.randn(4, 3, 3, 3))
            codes = torch.tensor(codes_of(quantizer)).repeat(4, 1)
            # Steps that follow the tensor are those of the grid itself: 0.25 throughout.
            own = quantizer.step() is not None
            grid = quantizer.grid(codes) if own else Grid(torch.tensor(1.0 if quantizer.scale_free else 0.25))
            values = grid.dequantize(codes)
            with torch.no_grad():
                torch.testing.assert_close(
                    quantizer(values), values, atol=0, rtol=0 if own or quantizer.by_sign else 1e-6
                )
            if own or isinstance(quantizer, TernaryWeight):
                assert torch.equal(quantizer.integers(values), codes)


def test_constant_tensors_stay_finite_and_keep_their_gradient(subtests: pytest.Subtests) -> None:
    for name in EVERY:
        for value in [0.0, 0.7, -0.7]:
            with subtests.test(name=str(name), value=str(value)):
                quantizer = EVERY[name]().train()
                values = torch.full((4, 3, 3, 3), value, requires_grad=True)
                quantizer.calibrate(values)
                y = quantizer(values)
                y.sum().backward()
                assert torch.isfinite(y).all()
                assert values.grad is not None
                assert torch.isfinite(values.grad).all()
                assert (quantizer.grid(values).step > 0).all()
                if value == 0 and not quantizer.scale_free:
                    assert y.abs().max() <= 1e-2
                for parameter in quantizer.parameters():
                    assert parameter.grad is not None
                    assert torch.isfinite(parameter.grad).all()


def test_min_error_with_an_offset_beats_the_signed_and_the_unsigned_grid() -> None:
    """On a skewed tensor, as a smooth activation gives it, whose negative values are small."""
    x = torch.nn.functional.silu(torch.randn(8, 16, 8, 8) * 2)
    for bits in (2, 3, 4, 8):
        step, offset = min_error_offset(x, integer_range(bits, False))
        assert bits < 4 or offset < 0  # fewer levels are best spent on the positive side
        error = (lsq_plus_fake_quantize(x, step, offset, integer_range(bits, False)) - x).square().sum()
        for signed in (True, False):
            codes = integer_range(bits, signed)
            plain = min_error_step(x.reshape(1, -1), codes)
            other = ((x / plain).round().clamp(*codes) * plain - x).square().sum()
            assert error <= other * (1 + 1e-4)  # equal where the best offset is none


def test_signs_know_no_zero() -> None:
    assert torch.equal(binarize(torch.tensor([0.0, -0.0, 1e-30, -1e-30])), torch.tensor([1.0, 1.0, 1.0, -1.0]))

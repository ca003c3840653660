"""Initial step sizes from a tensor: MinError, and LSQ's own rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from repq_cli.devices import in_float64
from repq_cli.quant.functional import SMALLEST_STEP, Grid, IntegerRange, nudged_grid, quantize

Initialiser = Literal["min_error", "lsq"]

SAMPLE_SIZE = 2**17
EXTREMES = 2**10
CHUNK = 2**18  # values searched at a time: small enough to stay in cache
SWEPT = 512  # values in a row, up to which every change of their codes is looked at
OFFSET_SAMPLE = 2**14  # of which step and offset are searched together
TRIED = (0.3, 0.5, 0.7, 1.0)  # of the step that clips nothing: one of their errors bounds the least
ROUNDING = 0.03  # how far from a step the best one for its codes may lie
LOST = 4e-6  # what sums in float32 may lose of themselves
OFFSET_SWEPT = 256  # values, up to which they are swept together


def lsq_step(rows: Tensor, codes: IntegerRange) -> Tensor:
    """``2 <|v|> / sqrt(high)`` per row (arXiv 1902.08153, section 2.1). Rows: ``[R, N]``; result ``[R]``.

    A poor start at 8 bits: about 4.7 times the step of least error for a normal tensor.
    """
    return _or_fallback(2 * rows.abs().mean(1) / codes.high**0.5)


def min_error_step(rows: Tensor, codes: IntegerRange) -> Tensor:
    """The step of least squared error, ``argmin_s sum (s clip(round(v/s)) - v)^2``, per row ``[R, N]``.

    Exact by ``_sweep`` for short rows. For long ones a geometric grid below the step that clips nothing finds the
    basin, a fine grid its best ripple. Every candidate's codes ``q`` are judged with the best step for them,
    ``s = <v, q> / <q, q>``; alternating between codes and step ends the search, and can only lower the error. Very long
    rows are searched on a weighted sample that holds their extremes.
    Source: arXiv 2004.09576 (LSQ+), section 4, input initialisation.
    """
    rows, scale = _near_one(rows.detach().float())
    if rows.shape[1] <= SWEPT:
        up, down = (torch.full_like(scale, end) for end in (codes.high, -codes.low))
        parts = zip(*(each.split(max(1, CHUNK // rows.shape[1] // 16)) for each in (rows, up, down)), strict=True)
        steps = torch.cat([_sweep(*part)[0] for part in parts])
    else:
        rows_per_chunk = max(1, CHUNK // min(rows.shape[1], SAMPLE_SIZE + EXTREMES))
        steps = torch.cat([_search(*_sample(chunk), codes) for chunk in rows.split(rows_per_chunk)])
    return _or_fallback(steps * scale)


def _near_one(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows times powers of two, exactly, so that no square of their largest magnitudes overflows or vanishes."""
    exponent = torch.frexp(rows.abs().amax(1)).exponent.clamp(-125, 125)
    return torch.ldexp(rows, -exponent.unsqueeze(1)), torch.ldexp(torch.ones_like(rows[:, 0]), exponent)


def _sweep(rows: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The step of least squared error of each row, exactly, and by how much that error is less than ``<v, v>``.

    As the step shrinks, the code of ``v`` goes from ``k`` to ``k + 1`` at ``|v| / (k + 1/2)``. Between two such changes
    the codes ``q`` stay, and ``s = <v, q> / <q, q>`` leaves the error ``<v, v> - <v, q>^2 / <q, q>``: running sums over
    all changes, in order, give every such error. With ``w`` the smallest step that clips nothing, the best one is at
    most ``2 w``, since codes that leave half of the range can be doubled, and at least ``w - sqrt(error of w) / c``,
    where the clipping of one value at code ``c`` alone would cost more.
    Shapes: rows ``[R, N]``; ``up, down: [R]``, the largest codes above and below zero; results ``[R]``.
    """
    magnitude = in_float64(rows.abs())
    last = torch.where(rows > 0, up.unsqueeze(1), down.unsqueeze(1)).to(magnitude)
    magnitude = magnitude * (last > 0)
    widest = (magnitude / last.clamp_min(1)).amax(1, keepdim=True)
    steps = 2 * widest.clamp_min(torch.finfo(torch.float32).tiny)
    codes = (magnitude / steps).round()
    lowest_code = torch.minimum(*(torch.where(end > 0, end, torch.inf) for end in (up, down))).unsqueeze(1)
    left = (((magnitude / steps * 2).round() * steps / 2) - magnitude).square().sum(1, keepdim=True).sqrt()
    least = (widest - left / lowest_code.to(left)).clamp_min(widest / 1e6 + torch.finfo(torch.float32).tiny)
    changes = (torch.minimum((magnitude / least - 0.5).floor() + 1, last) - codes).clamp_min_(0).long()

    # One entry for each change, and one before them for the codes at the largest step.
    of = torch.arange(changes.numel(), device=changes.device).repeat_interleave(changes.flatten())
    first = (changes.flatten().cumsum(0) - changes.flatten())[of]
    k = codes.flatten()[of] + torch.arange(len(of), device=of.device) - first
    value, row = magnitude.flatten()[of], of // rows.shape[1]
    start = torch.arange(len(rows), device=of.device)
    row = torch.cat([start, row])
    order = torch.cat([torch.full_like(widest[:, 0], torch.inf), value / (k + 0.5)]).argsort(descending=True)
    order = order[row[order].argsort(stable=True)]
    row = row[order]

    def running(at_start: Tensor, growth: Tensor) -> Tensor:
        total = torch.cat([at_start.sum(1), growth])[order].cumsum(0)
        ends = torch.bincount(row).cumsum(0)[:-1] - 1
        return total - torch.cat([total.new_zeros(1), total[ends]])[row]

    along = running(magnitude * codes, value)
    length = running(codes.square(), 2 * k + 1).clamp_min(1)
    gain = along.square() / length
    most = torch.zeros_like(widest[:, 0]).scatter_reduce(0, row, gain, "amax")
    best = torch.zeros_like(most).scatter_reduce(0, row, torch.where(gain == most[row], along / length, 0), "amax")
    return best.to(rows), most.to(rows)


def _sample(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows of at most ``SAMPLE_SIZE + EXTREMES`` values and their weights (None: all one).

    The largest magnitudes are all kept: an outlier decides the range and must not be missed.
    """
    count = rows.shape[1]
    if count <= SAMPLE_SIZE + EXTREMES:
        return rows, None
    extremes = rows.abs().topk(EXTREMES, dim=1).indices
    rest = torch.ones_like(rows, dtype=torch.bool).scatter_(1, extremes, False)
    rest_values = rows[rest].view(rows.shape[0], -1)
    # A fixed generator: initial steps are a function of the tensor alone.
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(rest_values.shape[1], (SAMPLE_SIZE,), generator=generator)
    values = torch.cat([rows.gather(1, extremes), rest_values[:, picked.to(rows.device)]], dim=1)
    weights = torch.ones_like(values)
    weights[:, EXTREMES:] = rest_values.shape[1] / SAMPLE_SIZE
    return values, weights


def _search(rows: Tensor, weights: Tensor | None, codes: IntegerRange) -> Tensor:
    """The best step ``[R]`` of each row on (a sample of) its values.

    Steps at which clipping alone costs more than rounding and clipping do at another are not looked at.
    """
    weighted = rows if weights is None else rows * weights
    widest = (rows.amax(1) / codes.high).clamp_min(0)
    if codes.low < 0:
        widest = torch.maximum(widest, rows.amin(1) / codes.low)
    best, least = widest.clone(), torch.full_like(widest, torch.inf)
    scratch = rows.new_empty(max(1, CHUNK // rows.numel()), *rows.shape)  # room for so many candidates at once

    def judged(steps: Tensor) -> tuple[Tensor, Tensor]:
        """The best steps for the codes at ``steps [K, R]``, and the squared errors less the constant ``<v, v>``."""
        quantized = scratch[: len(steps)]
        torch.mul(rows, (1 / steps.clamp_min(1e-30)).unsqueeze(2), out=quantized)
        quantized.round_().clamp_(codes.low, codes.high)
        along = torch.linalg.vecdot(weighted, quantized)
        length = torch.linalg.vecdot(quantized if weights is None else quantized * weights, quantized)
        fitted = along / length.clamp_min(1e-30)
        return fitted, -along * fitted

    def consider(steps: Tensor) -> Tensor:
        """Keep the best of the steps for these codes if it beats all before."""
        nonlocal best, least
        fitted, errors = judged(steps)
        error, first = errors.min(0)
        better = error < least
        best = torch.where(better, fitted.gather(0, first.unsqueeze(0))[0], best)
        least = torch.where(better, error, least)
        return torch.where(fitted > 0, fitted, steps)

    def consider_all(middle: Tensor, factors: Tensor) -> None:
        for some in factors.split(len(scratch)):
            consider(middle * some.unsqueeze(1))

    factors = torch.cat([torch.logspace(-3, -1.5, 24), torch.logspace(-1.5, 0.08, _points(rows, codes))])
    factors = factors.to(rows.device)
    power = torch.linalg.vecdot(weighted, rows)
    reached = power + torch.stack([judged((widest * share).unsqueeze(0))[1][0] for share in TRIED]).amin(0)
    reached = reached.clamp_min(0) + LOST * power
    lowest = factors[_first_possible(rows, weights, codes, widest, factors, reached)]
    consider_all(widest, factors[factors > lowest * (1 - ROUNDING)])
    consider_all(best, torch.linspace(0.98, 1.02, 32, device=rows.device))
    step = best.unsqueeze(0)
    for _ in range(4):
        step = consider(step)
    return best


def _first_possible(
    rows: Tensor, weights: Tensor | None, codes: IntegerRange, widest: Tensor, factors: Tensor, reached: Tensor
) -> Tensor:
    """Which of the rising ``factors`` times ``widest`` is the first, in any row, where clipping costs no more.

    ``reached [R]``: an error of each row. Found by halving, since clipping costs less the larger the step.
    """
    last = torch.full_like(widest, len(factors) - 1, dtype=torch.long)
    first = torch.where(widest > 0, 0, last)  # rows without a value above zero have no say
    for _ in range(len(factors).bit_length()):
        middle = (first + last) // 2
        step = (widest * factors[middle]).unsqueeze(1)
        lost = rows - rows.clamp(step * codes.low, step * codes.high)
        possible = torch.linalg.vecdot(lost if weights is None else lost * weights, lost) <= reached
        first, last = torch.where(possible, first, middle + 1), torch.where(possible, middle, last)
    return last.min()


def _points(rows: Tensor, codes: IntegerRange) -> int:
    """How fine the grid has to be where the best step is likely: 184 points are 2 % apart.

    With many levels the error of a rather short row is ragged in the step, since single values decide it.
    """
    return 184 * (max(4096 // rows.shape[1], 1) if codes.high > 15 else 1)


def min_error_offset(values: Tensor, codes: IntegerRange) -> tuple[Tensor, Tensor]:
    """Step and offset of least squared error, ``argmin sum (s (clip(round(v / s) + z) - z) - v)^2`` with ``o = -z s``.

    A few values are swept with every zero-point z, which is exact. Of more, every combination of a lowest and a highest
    value between zero and the tensor's own is tried; around the best, for each z, codes and the best step for them are
    alternated, which can only lower the error. Values are sampled evenly by size, extremes included.
    Shapes: scalars. Source: arXiv 2004.09576, section 4.
    """
    row, (scale,) = _near_one(values.detach().float().view(1, -1))
    ordered = row[0].sort().values
    if len(ordered) <= OFFSET_SWEPT and ordered.count_nonzero():
        zero_points = torch.arange(codes.low, codes.high + 1, device=ordered.device)
        rows = ordered.expand(len(zero_points), -1)
        steps, gains = _sweep(rows, codes.high - zero_points, zero_points - codes.low)
        best = gains.argmax()
        return steps[best] * scale, -zero_points[best] * steps[best] * scale
    picked = torch.linspace(0, len(ordered) - 1, min(len(ordered), OFFSET_SAMPLE), device=ordered.device)
    sample = ordered[picked.round().long()]
    low, high = sample[0].clamp_max(0), sample[-1].clamp_min(0)
    best_step, best_zero = torch.full_like(low, 1e-3), torch.full_like(low, codes.low)
    if high == low:  # all zero
        return best_step, torch.zeros_like(low)
    least = torch.full_like(low, torch.inf)

    def consider(step: Tensor, zero_point: Tensor) -> Tensor:
        """Keep step and zero-point if they are the best; the codes less the zero-point."""
        nonlocal best_step, best_zero, least
        steps = quantize(sample, Grid(step, zero_point), codes) - zero_point
        error = (steps * step - sample).square().sum()
        if error < least:
            best_step, best_zero, least = step, zero_point, error
        return steps

    for low_share in torch.linspace(0, 1, 17).tolist():
        for high_share in torch.logspace(-1.5, 0, 33).tolist():
            step, zero_point = nudged_grid(low * low_share, high * high_share, codes)
            assert zero_point is not None
            consider(step, zero_point)
    start = best_step, best_zero
    for nudge in (-1, 0, 1):
        step, zero_point = start[0], (start[1] + nudge).clamp(codes.low, codes.high)
        for _ in range(8):
            steps = consider(step, zero_point)
            fitted = (sample * steps).sum() / steps.square().sum().clamp_min(1e-30)
            step = torch.where(fitted > SMALLEST_STEP, fitted, step)
    return best_step * scale, -best_zero * best_step * scale


def _or_fallback(steps: Tensor) -> Tensor:
    """An all-zero (or all-negative, unsigned) row has no best step: any positive one quantizes it to 0."""
    return torch.where(steps > 0, steps, torch.full_like(steps, 1e-3))


INITIALISERS: dict[str, Callable[[Tensor, IntegerRange], Tensor]] = {
    "min_error": min_error_step,
    "lsq": lsq_step,
}

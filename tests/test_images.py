"""Colour, bicubic resizing, PSNR and SSIM against independent ones; tiles against whole pictures."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from repq_cli.images.colour import luma, to_rgb, to_ycbcr
from repq_cli.images.panel import CAPTION, GAP, busiest, side_by_side
from repq_cli.images.resize import enlarge, resize, shrink
from repq_cli.models.ecbsr import ecbsr
from repq_cli.reparam.ecb import ecb_block
from repq_cli.tasks.super_resolution import Bicubic, SuperResolution, psnr, ssim
from repq_cli.tasks.tiles import run_in_tiles

Array = npt.NDArray[np.float64]


def picture(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_luma_and_chroma_are_those_of_bt601() -> None:
    rgb = picture(3, 7, 9)
    expected = rgb2ycbcr(rgb.permute(1, 2, 0).numpy()).transpose(2, 0, 1)
    np.testing.assert_allclose(to_ycbcr(rgb).numpy(), expected, atol=2e-4)
    np.testing.assert_allclose(luma(rgb).numpy(), expected[:1], atol=2e-4)
    np.testing.assert_allclose(to_rgb(to_ycbcr(rgb)).numpy(), rgb.numpy(), atol=1e-3)


def test_extremes_of_luma_and_chroma() -> None:
    white, black = torch.full((3, 1, 1), 255), torch.zeros(3, 1, 1)
    torch.testing.assert_close(to_ycbcr(white).flatten(), torch.tensor([235.0, 128.0, 128.0]))
    torch.testing.assert_close(to_ycbcr(black).flatten(), torch.tensor([16.0, 128.0, 128.0]))
    blue = torch.tensor([0, 0, 255]).view(3, 1, 1)
    assert to_ycbcr(blue)[1].item() == pytest.approx(240)


def matlab_matrix(size: int, scale: Fraction) -> Array:
    """One dimension of MATLAB's imresize with 'bicubic', pixel by pixel: output x input."""

    def keys(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    factor = float(scale)
    shrinking = min(factor, 1.0)
    rows = math.ceil(size * scale)
    matrix = np.zeros((rows, size))
    for row in range(rows):
        centre = (row + 1) / factor + 0.5 * (1 - 1 / factor)  # counted from 1
        for place in range(math.floor(centre - 3 / shrinking), math.ceil(centre + 3 / shrinking) + 1):
            mirrored = (place - 1) % (2 * size)
            mirrored = mirrored if mirrored < size else 2 * size - 1 - mirrored
            matrix[row, mirrored] += shrinking * keys(shrinking * (centre - place))
    return matrix / matrix.sum(1, keepdims=True)


def test_resizing_is_matlabs(subtests: pytest.Subtests) -> None:
    for scale in [Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(2), Fraction(3), Fraction(4)]:
        for size in [(12, 24), (13, 7), (5, 31)]:
            with subtests.test(scale=str(scale), size=str(size)):
                pixels = picture(2, *size)
                rows, columns = matlab_matrix(size[0], scale), matlab_matrix(size[1], scale)
                expected = rows @ pixels.double().numpy() @ columns.T
                np.testing.assert_allclose(resize(pixels, scale).numpy(), expected, atol=1e-3)


def matlab_bytes(pixels: list[list[int]], factor: int) -> list[list[int]]:
    """MATLAB's ``imresize(uint8, 1/factor)`` in exact fractions: the height first, bytes after each pass."""

    def keys(x: Fraction) -> Fraction:
        x = abs(x)
        if x <= 1:
            return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
        return -(x**3) / 2 + Fraction(5, 2) * x**2 - 4 * x + 2 if x <= 2 else Fraction(0)

    def smaller(line: list[int]) -> list[int]:
        found = []
        for index in range(len(line) // factor):
            centre = factor * index + Fraction(factor - 1, 2)
            value = Fraction(0)
            for place in range(math.floor(centre - 2 * factor), math.ceil(centre + 2 * factor) + 1):
                mirrored = place % (2 * len(line))
                mirrored = mirrored if mirrored < len(line) else 2 * len(line) - 1 - mirrored
                value += keys((place - centre) / factor) / factor * line[mirrored]
            found.append(min(255, max(0, math.floor(value + Fraction(1, 2)))))
        return found

    def turned(picture: list[list[int]]) -> list[list[int]]:
        return [list(line) for line in zip(*picture, strict=True)]

    return [smaller(line) for line in turned([smaller(line) for line in turned(pixels)])]


def test_low_resolution_has_matlabs_bytes() -> None:
    """Rounded after each pass, the height first, ties away from zero: each of the three decides a pixel here."""
    high = [
        [128, 231, 56, 19, 140, 69, 63, 159],
        [35, 239, 205, 21, 196, 161, 206, 198],
        [60, 130, 117, 191, 185, 225, 146, 127],
        [131, 203, 198, 14, 159, 186, 41, 197],
        [201, 17, 238, 26, 63, 99, 68, 83],
        [223, 64, 82, 215, 246, 1, 60, 46],
        [88, 163, 159, 122, 3, 128, 48, 174],
        [83, 14, 244, 187, 156, 167, 177, 230],
    ]
    low = [[144, 101, 127, 150], [128, 138, 165, 144], [149, 126, 93, 64], [95, 169, 122, 162]]
    assert matlab_bytes(high, 2) == low
    assert shrink(torch.tensor(high, dtype=torch.uint8), 2).tolist() == low
    low[3][0] = 94
    assert shrink(torch.tensor(high, dtype=torch.uint8), 2, "once").tolist() == low
    for factor in (2, 3, 4):
        for rows, columns in ((3, 5), (4, 2), (5, 4)):
            pixels = picture(factor * rows, factor * columns)
            for kind in (pixels, (pixels > 127) * torch.tensor(255, dtype=torch.uint8)):
                assert shrink(kind, factor).tolist() == matlab_bytes(kind.tolist(), factor)


def test_shrinking_gives_bytes_and_keeps_what_is_constant() -> None:
    flat = torch.full((3, 12, 18), 77, dtype=torch.uint8)
    assert torch.equal(shrink(flat, 3), flat[:, :4, :6])
    torch.testing.assert_close(enlarge(flat, 2), torch.full((3, 24, 36), 77.0))
    hard = torch.zeros(1, 16, 16, dtype=torch.uint8)
    hard[..., 8:] = 255
    assert resize(hard, Fraction(1, 2)).min() < -1, "the cubic overshoots"
    assert shrink(hard, 2).min() == 0


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    high, other = picture(2, 3, 21, 26), picture(2, 3, 21, 26)
    close = (high.float() + torch.randn(high.shape) * 9).clamp(0, 255).round().to(torch.uint8)
    for noisy in (close, other):
        for index in range(2):
            pair = [tensor[index].permute(1, 2, 0).numpy() for tensor in (high, noisy)]
            wanted = peak_signal_noise_ratio(*pair, data_range=255)
            assert psnr(noisy, high)[index].item() == pytest.approx(wanted, abs=1e-9)
            wanted = structural_similarity(
                *pair, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
            )
            assert ssim(noisy, high)[index].item() == pytest.approx(wanted, abs=1e-9)
    assert psnr(high, high).tolist() == [math.inf, math.inf], "identical, which is no number of decibels"
    assert psnr(high + 1e-4, high).tolist() == [math.inf, math.inf], "as far as float32 can tell"
    assert psnr(high + 0.01, high).tolist() == pytest.approx([88.13, 88.13], abs=0.01)
    torch.testing.assert_close(ssim(high, high), torch.ones(2, dtype=torch.float64))


class Constant(torch.nn.Module):
    """Answers every picture with the same pixels."""

    halo = 0

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        return self.pixels.unsqueeze(0)


@pytest.mark.parametrize("rounding", [True, False])
@pytest.mark.parametrize("scale", [2, 3])
def test_the_measured_picture_is_clipped_rounded_and_shaved(rounding: bool, scale: int) -> None:
    high = picture(3, 12 * scale, 9 * scale)
    answer = luma(high) + torch.randn(1, *high.shape[1:]) * 20  # leaves 0..255 here and there
    answer[:, :scale], answer[..., -scale:] = 0, 0  # borders are not looked at

    class Pair:
        low = shrink(high, scale)

    Pair.high = high  # type: ignore[attr-defined]
    task = SuperResolution(scale, "luma", rounding)
    (found,) = task.measurements(Constant(answer), _Set([Pair]), torch.device("cpu"), 1024)  # type: ignore[arg-type]
    clipped, reference = answer.clamp(0, 255).numpy(), luma(high).numpy()
    if rounding:
        clipped, reference = clipped.round(), reference.round()
    inside = (0, slice(scale, -scale), slice(scale, -scale))
    expected = 10 * np.log10(255**2 / np.mean((clipped[inside] - reference[inside]) ** 2))
    assert found["psnr_y"].item() == pytest.approx(expected, abs=1e-3)
    batch = answer.unsqueeze(0), (luma(high).round() if rounding else luma(high)).unsqueeze(0)
    assert task.scores(*batch).item() == pytest.approx(expected, abs=1e-3)


class _Set:
    def __init__(self, pairs: list[object]) -> None:
        self.pairs = pairs


@pytest.mark.parametrize("colour", ["luma", "rgb"])
def test_bicubic_is_the_same_on_rgb_for_either_kind_of_network(colour: str) -> None:
    """Enlarging is linear, so that luma and chroma apart give what RGB gives, up to the rounding of luma."""
    low = picture(3, 9, 11)
    _, rgb = SuperResolution(2, colour).upscale(Bicubic(2), low, 1024)
    direct = enlarge(low, 2)
    inside = (luma(direct) > 0) & (luma(direct) < 255)
    assert ((rgb - direct).abs() * inside).max() < (2.5 if colour == "luma" else 1e-3)


@pytest.mark.parametrize("tile", [7, 10, 16])
@pytest.mark.parametrize("scale", [2, 3])
def test_tiles_have_no_seams(tile: int, scale: int) -> None:
    net = ecbsr(ecb_block, 1, 2, 4, scale).double().eval()
    x = torch.rand(1, 1, 23, 31, dtype=torch.float64) * 255
    torch.testing.assert_close(run_in_tiles(net, x, scale, tile), net(x), atol=1e-10, rtol=1e-10)
    net.halo -= 1  # one pixel less would show
    assert (run_in_tiles(net, x, scale, tile) - net(x)).abs().max() > 1e-6


def test_pictures_side_by_side(tmp_path: Path) -> None:
    sheet = side_by_side({"a": picture(3, 20, 30), "b": picture(3, 20, 10)})
    assert sheet.shape == (3, 20 + CAPTION, 30 + GAP + 10)
    assert sheet.dtype == torch.uint8
    flat = torch.zeros(3, 40, 50)
    flat[:, 25:30, 7:12] = torch.rand(3, 5, 5)
    rows, columns = busiest(flat, 10)
    assert flat[:, rows, columns].shape == (3, 10, 10)
    assert flat[:, rows, columns].count_nonzero() == flat.count_nonzero()
    assert flat[(slice(None), *busiest(flat[:, :9], 20))].shape == (3, 9, 20)

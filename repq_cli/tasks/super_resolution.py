"""``task=super_resolution``: L1 loss; PSNR and SSIM on luma and on RGB, as the literature measures them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.images.colour import luma, to_rgb, to_ycbcr
from repq_cli.images.resize import enlarge
from repq_cli.tasks.tiles import Upscaler, run_in_tiles

PEAK = 255.0
WINDOW, DEVIATION = 11, 1.5  # SSIM's Gaussian
K1, K2 = 0.01, 0.03
SAME = 1e-3  # of 255: what rounding in float32 explains


class PicturePair(Protocol):
    """RGB ``uint8 [3, h, w]`` and ``uint8 [3, s h, s w]``."""

    @property
    def low(self) -> Tensor: ...
    @property
    def high(self) -> Tensor: ...


class PictureSet(Protocol):
    """Pairs to be measured on."""

    @property
    def pairs(self) -> Sequence[PicturePair]: ...


def psnr(picture: Tensor, reference: Tensor) -> Tensor:
    """``10 log10(255^2 / mean (x - y)^2)`` in dB for each of ``[B, C, H, W]``, as float64 ``[B]``.

    Infinite for identical pictures, of which no sample differs by more than rounding explains.
    """
    difference = picture.double() - reference.double()
    identical = difference.abs().amax(dim=(1, 2, 3)) < SAME
    return (10 * torch.log10(PEAK**2 / difference.square().mean(dim=(1, 2, 3)))).masked_fill(identical, math.inf)


def ssim(picture: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity for each of ``[B, C, H, W]`` in 0..255, mean over positions and channels, float64 ``[B]``.

    ``(2 mx my + c1)(2 vxy + c2) / ((mx^2 + my^2 + c1)(vx + vy + c2))`` with moments under an 11x11 Gaussian of
    deviation 1.5 that lies wholly inside, ``c1 = (0.01 255)^2``, ``c2 = (0.03 255)^2``.
    Source: Wang et al., IEEE TIP 2004, eq. 13.
    """
    x, y = picture.double(), reference.double()
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(dim=(1, 2, 3))


def _blurred(values: Tensor) -> Tensor:
    """``[B, C, H, W]`` under SSIM's Gaussian where it lies wholly inside: sums of shifted rows, then of columns.

    A CPU has no fast grouped convolution in float64; this takes a quarter of its time.
    """
    weights = [math.exp(-((tap - WINDOW // 2) ** 2) / (2 * DEVIATION**2)) for tap in range(WINDOW)]
    for dim in (2, 3):
        size = values.shape[dim] - WINDOW + 1
        total = torch.zeros_like(values.narrow(dim, 0, size))
        for tap, weight in enumerate(weights):
            total.add_(values.narrow(dim, tap, size), alpha=weight / sum(weights))
        values = total
    return values


class Bicubic(nn.Module):
    """The enlargement that every network is compared with."""

    halo = 3

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, C, s h, s w]``, not rounded."""
        return enlarge(x, self.scale)


class SuperResolution:
    """Pixels of 0..255: luma or RGB ``[B, C, s h, s w]`` against the original's.

    rounding: pictures are rounded to 8 bit before they are measured, as whoever saves them does; without it, as in
    ECBSR's code, neither they nor the originals' luma are.
    Both are clipped to 0..255, and ``scale`` pixels at each border are not looked at.
    """

    name = "super_resolution"
    metric = "psnr_y"
    unit = "dB"
    higher_is_better = True
    agreement_name = "pixel_agreement"

    def __init__(self, scale: int, colour: str, rounding: bool = True) -> None:
        self.scale, self.colour, self.rounding = scale, colour, rounding

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean absolute difference, in pixel values."""
        return F.l1_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """PSNR on luma for each picture, in dB; the metric is their mean, without those that are identical."""
        pictures = (self._luma(self._finished(outputs)), self._luma(targets))
        return psnr(*map(self._shaved, pictures))

    def agreement(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """For each picture the share of 8-bit pixels that two networks agree on, in percent."""
        same = outputs.clamp(0, PEAK).round() == reference.clamp(0, PEAK).round()
        return same.float().mean(dim=(1, 2, 3)) * 100

    def baselines(self) -> dict[str, nn.Module]:
        """What needs no training."""
        return {"bicubic": Bicubic(self.scale)}

    def set_keys(self, data: str, name: str) -> dict[str, Any]:
        """How a row names an evaluation set: alone, since the literature's have names, and with the scale."""
        return {"set": name, "scale": self.scale}

    def measurements(
        self, net: Upscaler, pictures: PictureSet, device: torch.device, tile: int
    ) -> Iterator[dict[str, Tensor]]:
        """Every metric, picture by picture."""
        for pair in pictures.pairs:
            yield self._qualities(net, pair, device, tile)

    def _qualities(self, net: Upscaler, pair: PicturePair, device: torch.device, tile: int) -> dict[str, Tensor]:
        """PSNR and SSIM on luma and on RGB, each ``[1]``."""
        sr_luma, sr_rgb = self.upscale(net, pair.low.to(device), tile)
        high = pair.high.to(device).float()
        high_luma = luma(high).round() if self.rounding else luma(high)
        values = {}
        for space, picture, original in (("y", sr_luma, high_luma), ("rgb", sr_rgb, high)):
            shaved = self._shaved(self._finished(picture).unsqueeze(0)), self._shaved(original.unsqueeze(0))
            values[f"psnr_{space}"] = psnr(*shaved)
            values[f"ssim_{space}"] = ssim(*shaved)
        return values

    @torch.no_grad()
    def upscale(self, net: Upscaler, low: Tensor, tile: int) -> tuple[Tensor, Tensor]:
        """Luma ``[1, s h, s w]`` and RGB ``[3, s h, s w]`` of an RGB picture ``uint8 [3, h, w]``, not rounded.

        A network of luma enlarges that alone; chroma is enlarged bicubically.
        """
        if self.colour == "rgb":
            rgb = run_in_tiles(net, low.float().unsqueeze(0), self.scale, tile)[0]
            return luma(self._finished(rgb)), rgb
        y = run_in_tiles(net, luma(low).round().unsqueeze(0), self.scale, tile)[0]
        chroma = enlarge(to_ycbcr(low)[1:], self.scale)
        return y, to_rgb(torch.cat([y.clamp(0, PEAK), chroma]))

    def _finished(self, picture: Tensor) -> Tensor:
        picture = picture.clamp(0, PEAK)
        return picture.round() if self.rounding else picture

    def _luma(self, picture: Tensor) -> Tensor:
        if picture.shape[1] == 1:
            return picture
        return luma(picture).round() if self.rounding else luma(picture)

    def _shaved(self, picture: Tensor) -> Tensor:
        border = self.scale
        return picture[..., border:-border, border:-border]

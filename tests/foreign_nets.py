"""Miniature networks as other people write them: none of repq's blocks, no taps, functions and modules mixed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, size: int = 3, stride: int = 1, **options: int) -> nn.Sequential:
    padding = options.pop("padding", options.get("dilation", 1) * (size // 2))
    conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class RepVGGLike(nn.Module):
    """3x3, 1x1 and identity, each normed."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.dense, self.point = conv_bn(inputs, outputs, 3, stride), conv_bn(inputs, outputs, 1, stride)
        self.skip = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        if self.skip is not None:
            y += self.skip(x)
        return F.relu(y)


class MobileOneLike(nn.Module):
    """Several branches of one kind, a 1x1 one and the identity, added up from zero."""

    def __init__(self, inputs: int, outputs: int, size: int, groups: int = 1) -> None:
        super().__init__()
        self.rows = nn.ModuleList(conv_bn(inputs, outputs, size, groups=groups) for _ in range(3))
        self.scale = conv_bn(inputs, outputs, 1, groups=groups) if size > 1 else None
        self.skip = nn.BatchNorm2d(inputs) if inputs == outputs else None
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.skip(x) if self.skip is not None else 0
        out = out + (self.scale(x) if self.scale is not None else 0)
        for row in self.rows:
            out += row(x)
        return self.act(out)


class RepViTLike(nn.Module):
    """Depthwise convolutions and the identity under one batch norm; GELU in the mixer of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = conv_bn(channels, channels, 3, groups=channels)
        self.point = nn.Conv2d(channels, channels, 1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.mixer = nn.Sequential(*conv_bn(channels, 2 * channels, 1), nn.GELU(), *conv_bn(2 * channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.dense(x) + self.point(x) + x)
        return x + self.mixer(x)


class RepMixerLike(nn.Module):
    """``x + scale (mixer(x) - norm(x))``, then a residual of two pointwise layers with a scale of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixer = MobileOneLike(channels, channels, 3, channels)
        self.mixer.act = nn.Identity()
        self.norm = nn.BatchNorm2d(channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))
        self.gamma = nn.Parameter(torch.full((channels,), 0.3))
        self.wide, self.narrow = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * (self.mixer(x) - self.norm(x))
        return x + self.gamma.view(1, -1, 1, 1) * self.narrow(F.gelu(self.wide(x)))


class DilatedLike(nn.Module):
    """A large depthwise kernel beside dilated small ones, then convolutions of other shapes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.large = conv_bn(channels, channels, 7, groups=channels)
        self.small = nn.ModuleList(
            conv_bn(channels, channels, size, groups=channels, dilation=step) for size, step in ((3, 1), (3, 2), (3, 3))
        )
        self.norm = nn.BatchNorm2d(channels)
        self.row = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), groups=2)
        self.column = nn.Conv2d(channels, channels, (3, 1), (2, 1), (1, 0))
        self.wide = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.large(x) + sum(branch(x) for branch in self.small)))
        return F.relu(self.wide(F.relu(self.column(F.relu(self.row(x))))))


class Classifier(nn.Module):
    """A stem, blocks, global average pooling and a linear layer."""

    def __init__(self, *blocks: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, 3, 2), nn.ReLU())
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1), 1))


class Excited(nn.Module):
    """MobileNetV3's inverted residual: hard-swish, squeeze-and-excitation by a mean, a product, a linear bottleneck."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand, self.depthwise = conv_bn(channels, 16, 1), conv_bn(16, 16, 5, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = conv_bn(16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.depthwise(F.hardswish(self.expand(x))))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y * gate)


class CSP(nn.Module):
    """Split channels, bottlenecks of which each is kept, all concatenated."""

    def __init__(self, channels: int, count: int = 2) -> None:
        super().__init__()
        half = channels // 2
        self.first = nn.Sequential(*conv_bn(channels, channels, 1), nn.SiLU())
        self.inner = nn.ModuleList(nn.Sequential(*conv_bn(half, half), nn.SiLU()) for _ in range(count))
        self.last = nn.Sequential(*conv_bn((2 + count) * half, channels, 1), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for layer in self.inner:
            parts.append(parts[-1] + layer(parts[-1]))
        return self.last(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Max pools in a row, all of them concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv_bn(channels, channels // 2, 1), nn.SiLU())
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.last = nn.Sequential(*conv_bn(2 * channels, channels, 1), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.pool(x)
        z = self.pool(y)
        return self.last(torch.cat([x, y, z, self.pool(z)], 1))


class Detector(nn.Module):
    """A backbone, a neck that goes up by nearest pixels and down again, three maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, 3, 2), nn.SiLU(), CSP(8))
        self.deep = nn.Sequential(*conv_bn(8, 16, 3, 2), nn.SiLU(), CSP(16), SPPF(16))
        self.up, self.merge = nn.Upsample(scale_factor=2), CSP(24, 1)
        self.down = nn.Sequential(*conv_bn(24, 16, 3, 2), nn.SiLU())
        self.heads = nn.ModuleList(nn.Conv2d(channels, 6, 1) for channels in (8, 24, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        shallow = self.stem(x)
        deep = self.deep(shallow)
        middle = self.merge(torch.cat([self.up(deep), shallow], 1))
        low = torch.cat([self.down(middle), deep], 1)
        return tuple(head(level) for head, level in zip(self.heads, (shallow, middle, low), strict=True))


class Standardised(nn.Conv2d):
    """A convolution by weights of mean 0 and variance 1."""

    def forward(self, input: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True)
        return self._conv_forward(input, weight.reshape_as(self.weight), self.bias)


class Segmenter(nn.Module):
    """Standardised weights, a shuffle by views, transposed convolutions, and vectors that are normed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Standardised(3, 8, 3, 2, 1), nn.ReLU())
        self.down = nn.Sequential(*conv_bn(8, 12, 3, 2), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 8, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1, groups=2)
        self.norm, self.fc = nn.BatchNorm1d(12), nn.Linear(12, 6)
        self.projected = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        shallow = self.stem(x)
        y = self.down(shallow)
        batch, channels, rows, columns = y.shape
        y = y.view(batch, 3, channels // 3, rows, columns).transpose(1, 2).contiguous().view(batch, -1, rows, columns)
        vector = torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)
        answers = self.fc(self.norm(vector)) + self.projected(vector)
        return {"map": self.last(self.up(y) + shallow), "classes": answers}


class Idioms(nn.Module):
    """What older code is full of: writes into tensors, a layer used twice, views, means in two spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 7, 3, 2, 1, padding_mode="reflect"), nn.BatchNorm2d(7)
        self.twice = nn.Sequential(*conv_bn(7, 7), nn.ReLU(inplace=True))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(7, 7, 1, bias=False))
        self.after = nn.SyncBatchNorm(7)
        self.squeeze, self.excite, self.outputs = nn.Linear(7, 3), nn.Linear(3, 7), nn.Conv2d(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        F.relu(x, inplace=True)  # what it gives is nowhere used, and still what comes next
        y = x
        y += self.twice(self.twice(x))
        x = x + F.silu(self.after(self.normed(y)))
        batch, channels, _, _ = x.shape
        gate = self.excite(F.relu(self.squeeze(x.view(batch, channels, -1).mean(2)))).sigmoid()
        x = x * gate.view(batch, channels, 1, 1).expand_as(x)
        return self.outputs(F.relu(x).mean(3).mean(2)[:, :, None, None])[:, :, 0, 0]


class UNet(nn.Module):
    """Skips that are concatenated, pixels that are shuffled; what it gives is no larger image."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(*conv_bn(3, 6), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), *conv_bn(6, 12), nn.Mish())
        self.up, self.last = nn.Conv2d(12, 24, 1), nn.Conv2d(12, 2, 3, padding=1)
        self.classes = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        shallow = self.down(x)
        deep = self.deep(shallow)
        y = torch.cat([F.pixel_shuffle(self.up(deep), 2), shallow], 1)
        return {"mask": self.last(y), "others": [self.classes(deep.mean((2, 3)))]}


class Mixer(nn.Module):
    """Linear layers of places and of channels in turns, without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.places = nn.Conv2d(3, 6, 8, 8), nn.Linear(16, 16)
        self.wide, self.narrow, self.fc = nn.Linear(6, 9), nn.Linear(9, 6, bias=False), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        x = (x + F.relu(self.places(x))).transpose(1, 2)
        x = x + self.narrow(F.gelu(self.wide(x)))
        x = x.transpose(1, 2)
        mean = x.mean(-1)[:, :, None, None].expand(-1, -1, 4, 4)
        return self.fc(torch.cat([mean, x.unflatten(2, (4, 4))], 1).mean((2, 3)))


# By name, the network and how many regions it has.
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "repvgg": (lambda: Classifier(RepVGGLike(8, 8), RepVGGLike(8, 12, 2), channels=12), 3),
    "mobileone": (lambda: Classifier(MobileOneLike(8, 8, 3, 8), MobileOneLike(8, 12, 1), channels=12), 3),
    "repvit": (lambda: Classifier(RepViTLike(8)), 4),
    "fastvit": (lambda: Classifier(RepMixerLike(8)), 4),
    "dilated": (lambda: Classifier(DilatedLike(8)), 5),
    "excited": (lambda: Classifier(Excited(8)), 6),
    "detector": (Detector, 19),
    "segmenter": (Segmenter, 4),
    "idioms": (Idioms, 5),
    "unet": (UNet, 4),
}


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with batch norms that have trained: statistics, scales and shifts of their own."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                if tensor is not None:
                    values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low
                    tensor.data.copy_(values)
    return net


def small(in_channels: int, num_classes: int) -> nn.Module:
    """What a plugin would give: a network for a number of colours and classes."""
    stem = nn.Sequential(*conv_bn(in_channels, 8, 3, 2), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    return nn.Sequential(stem, RepVGGLike(8, 8), RepVGGLike(8, 8, 2), head)

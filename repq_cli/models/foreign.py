"""Networks of other packages, as they are; ``build`` makes networks of blocks of them (``graphs/``)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import nn

from repq_cli.bounds import Range
from repq_cli.errors import ConfigError, DataError
from repq_cli.extras import extra

Halvings = Annotated[int, Range(0, 10)]
Names = list[str] | None  # of modules, or patterns


def timm(
    in_channels: int, num_classes: int, arch: str, drop_strides: Halvings = 0, keep_float: Names = None
) -> nn.Module:
    """``timm.create_model(arch)`` without weights; what else is asked for is done where its shapes are known."""
    with extra("timm"):
        import timm as package
    if not package.is_model(arch):
        near = package.list_models(f"*{arch.split('_')[0]}*")[:5]
        raise ConfigError(f"model.arch={arch} is none of timm's {len(package.list_models())} names{_such_as(near)}.")
    return _made("timm", arch, lambda: package.create_model(arch, in_chans=in_channels, num_classes=num_classes))


def torchvision(
    in_channels: int, num_classes: int, arch: str, drop_strides: Halvings = 0, keep_float: Names = None
) -> nn.Module:
    """``torchvision.models.get_model(arch)`` without weights, its first convolution for images of ``in_channels``."""
    from torchvision import models

    if arch not in models.list_models(models):
        near = [name for name in models.list_models(models) if name.startswith(arch[:4])][:5]
        raise ConfigError(f"model.arch={arch} is none of torchvision's classifiers{_such_as(near)}.")
    net = _made("torchvision", arch, lambda: models.get_model(arch, weights=None, num_classes=num_classes))
    if in_channels != 3:
        _read_channels(net, in_channels)
    return net


def module(
    resolve: Callable[[str], Callable[..., Any]],
    in_channels: int,
    num_classes: int,
    target: str,
    drop_strides: Halvings = 0,
    keep_float: Names = None,
) -> nn.Module:
    """What ``target``, a function or class of a plugin, gives; ``resolve`` finds it among the plugins."""
    make = resolve(target)
    wanted = inspect.signature(make).parameters
    given = {"in_channels": in_channels, "num_classes": num_classes}
    net = _made("model.target", target, lambda: make(**{key: given[key] for key in given if key in wanted}))
    if not isinstance(net, nn.Module):
        raise ConfigError(f"model.target={target} gives {type(net).__name__}, and a network is an nn.Module.")
    return net


def _such_as(near: list[str]) -> str:
    return f"; there are {', '.join(near)}" if near else ""


def _made(source: str, name: str, make: Callable[[], Any]) -> Any:
    """A network on the default device. Packages compute with numbers on the way, which ``meta`` has none of."""
    device = torch.get_default_device()
    try:
        with torch.device("cpu" if device.type == "meta" else device):
            net = make()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        said = str(error).partition("\n")[0]
        raise DataError(f"{source} cannot build {name} for these images and classes ({said}).") from error
    return net.to("meta") if device.type == "meta" and isinstance(net, nn.Module) else net


def _read_channels(net: nn.Module, in_channels: int) -> None:
    """Give the first convolution another number of input channels."""
    name, conv = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    like = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    net.set_submodule(name, like.to(conv.weight.device))

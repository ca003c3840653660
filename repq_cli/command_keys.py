"""The keys of every command as a dataclass: what is validated becomes one, and is passed on. Neither torch nor Hydra.

Defaults stand in ``configs/COMMAND.yaml``, which a command line starts from. ``plugins``: whose code the run's
configuration may name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from repq_cli.bench.steps import Peer, Precision
from repq_cli.bench.timing import Clock
from repq_cli.bounds import Range
from repq_cli.config import Config, Engine, Rounding, Verbosity
from repq_cli.targets import DataSection
from repq_cli.train.options import RuntimeOptions

T = TypeVar("T")
Threads = Annotated[int, Range(1, 1024)] | None  # None: as many as torch likes
MaxPixels = Annotated[int, Range(1, 178_956_970)]  # as many as Pillow opens


@dataclass(frozen=True, kw_only=True)
class EvalKeys:
    """``engine``: which of the run's networks, null for the first three. ``rounding``: of ``engine=integer``.

    What ``data`` brings beside its own section, such as a recipe, has no meaning here.
    """

    run: str
    data: DataSection | None = None
    runtime: RuntimeOptions
    engine: Engine | None = None
    rounding: Rounding = "gemmlowp"
    psnr_rounding: bool | None = None
    verbosity: Verbosity
    plugins: list[str]


@dataclass(frozen=True, kw_only=True)
class ExportKeys:
    """``out``: the folder to write to, null for the run's own."""

    run: str
    format: Literal["onnx", "packed"]
    biases: Literal["auto", "int32", "float"]
    reduce_range: bool
    weights: Literal["int8", "int4"]
    zero_points: Literal["auto", "none"]
    opset: Literal[17, 21] | None
    out: str | None
    threads: Threads
    plugins: list[str]


@dataclass(frozen=True, kw_only=True)
class BenchKeys:
    """A key of several values may also be one; null is what fits the kind of benchmark."""

    bench: Literal["infer", "train", "xnor"]
    runs: str | list[str]
    batch: Annotated[int, Range(1)] | list[Annotated[int, Range(1)]] | None
    size: Annotated[int, Range(1)] | None
    rounds: Annotated[int, Range(1)] | None
    threads: Threads
    out: str | None
    models: str | list[str]
    width: Annotated[float, Range(0, None, open_low=True)]
    classes: Annotated[int, Range(2)]
    reps: str | list[str]
    modes: str | list[str]
    quants: str | list[str]
    precisions: Precision | list[Precision]
    compiled: bool | list[bool]
    against: Peer | list[Peer]
    clock: Clock
    format: Literal["text", "markdown", "json"]
    runtime: RuntimeOptions
    plugins: list[str]


@dataclass(frozen=True, kw_only=True)
class DiagnoseKeys:
    """``budget``: GBOPS for which bits are proposed, layer by layer."""

    run: str
    images: Annotated[int, Range(1)]
    budget: Annotated[float, Range(0, None, open_low=True)] | None
    out: str | None
    device: str
    threads: Threads
    verbosity: Verbosity
    plugins: list[str]


@dataclass(frozen=True, kw_only=True)
class ImageKeys:
    """Of a command that a run's network answers images for. ``in_``: those that ``in`` names."""

    run: str
    in_: str | list[str]
    out: str
    overwrite: bool
    device: str
    threads: Threads
    max_pixels: MaxPixels
    verbosity: Verbosity
    plugins: list[str]


@dataclass(frozen=True, kw_only=True)
class PredictKeys(ImageKeys):
    """``out``: the file to write."""

    engine: Engine


@dataclass(frozen=True, kw_only=True)
class UpscaleKeys(ImageKeys):
    """``out``: the folder to write to."""

    tile: Annotated[int, Range(64)]


OF_COMMAND: dict[str, type] = {
    "train": Config,
    "info": Config,
    "eval": EvalKeys,
    "export": ExportKeys,
    "bench": BenchKeys,
    "diagnose": DiagnoseKeys,
    "predict": PredictKeys,
    "upscale": UpscaleKeys,
}


def listed(value: T | list[T]) -> list[T]:
    """The values of a key of several, of which one may stand alone."""
    return value if isinstance(value, list) else [value]

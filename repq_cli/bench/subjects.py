"""From the names that the benchmark is given to what its steps train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from repq_cli import build
from repq_cli.bench.steps import NO_REP, Precision
from repq_cli.bench.training import Subject, stack
from repq_cli.config import section_of
from repq_cli.data.base import Inputs
from repq_cli.errors import ConfigError
from repq_cli.library.networks import configuration
from repq_cli.memory import kept_by_a_step, require_memory
from repq_cli.modes.compose import refuse_signs_behind_relu
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.targets import ModelSection, RepSection
from repq_cli.tasks.classification import Classification
from repq_cli.tasks.super_resolution import SuperResolution
from repq_cli.train.arithmetic import Arithmetic
from repq_cli.train.engine import Task
from repq_cli.train.options import OptimOptions, RuntimeOptions

STACK = "stack"  # the benchmark's own network: nine convolutions, and no configuration beside this
OPTIM = OptimOptions(name="sgd", weight_decay=5e-4, label_smoothing=0.1)  # as in configs/optim/sgd.yaml
STACK_SECTION = {"_target_": STACK, "name": STACK, "num_classes": None}  # its function is no configuration's


@dataclass(frozen=True)
class Settings:
    """What models train on: noise of this shape, so many images at a time."""

    batch: int
    size: int
    classes: int
    width: float
    device: torch.device
    runtime: RuntimeOptions

    def arithmetic(self, precision: Precision) -> Arithmetic:
        """How steps of that precision compute. Raises ConfigError where the device cannot."""
        return Arithmetic(replace(self.runtime, precision=precision), self.device)


@dataclass(frozen=True)
class Model:
    """A model by its name: its section, the block that it brings, and what it sets of other sections."""

    section: ModelSection
    own_rep: str
    brought: dict[str, dict[str, Any]]

    @classmethod
    def named(cls, name: str, width: float, classes: int) -> Model:
        """Of ``configs/model``, or the stack. Raises ConfigError where its width cannot be changed."""
        found: dict[str, Any] = {"model": dict(STACK_SECTION), "own_rep": "none"}
        if name == STACK:
            found["model"]["width"] = 1.0
        else:
            found = configuration("model", name)
        model, own_rep = found.pop("model"), found.pop("own_rep")
        if "num_classes" in model:
            model["num_classes"] = classes
        if width != 1:
            if "width" not in model:
                raise ConfigError(f"width={width:g} does not go with models={name}, which has no key of that name.")
            model["width"] = width
        return cls(section_of(ModelSection, model), own_rep, found)

    def rep(self, name: str) -> RepSection:
        """The blocks of that name as the model has them; ``none``: ordinary convolutions like those beside its own."""
        section = configuration("rep", self.own_rep if name == "none" else name) | self.brought.get("rep", {})
        return section_of(RepSection, section)

    def quant(self, name: str) -> QuantOptions:
        """The quantizer of that name with what the model sets of its keys, at work from the first step."""
        return replace(section_of(QuantOptions, self._with_quantizer(name)["quant"]), act_delay=0)

    def mode(self, name: str, quant: str) -> ModeOptions:
        """The mode with what the model and the quantizer set of its keys."""
        return section_of(ModeOptions, {**self._with_quantizer(quant).get("mode", {}), "name": name})

    def _with_quantizer(self, name: str) -> dict[str, dict[str, Any]]:
        """The sections that a quantizer brings, and over them the model's, as Hydra composes them."""
        found = configuration("quant", name)
        sections = found if "quant" in found else {"quant": found}
        return {key: sections.get(key, {}) | self.brought.get(key, {}) for key in {*sections, *self.brought}}

    def maker(self, rep: str, inputs: Inputs) -> Callable[[], nn.Module]:
        """A function that builds the FP network with these blocks."""
        if self.section.name == STACK:
            make_block, channels = build.block_maker(self.rep(rep), rep != NO_REP, []), inputs.shape[0]
            return lambda: stack(make_block, channels, inputs.num_classes, self.section.width or 1.0)
        return build.network_of(self.section, self.rep(rep), rep != NO_REP, [], inputs)

    def subject(self, reps: Sequence[str], settings: Settings) -> Subject:
        """What steps of it train on: fixed noise, labels or larger noise; the default optimiser."""
        scale, generator = self.section.scale, torch.Generator().manual_seed(0)
        shape = (3 if scale is None else 1 if self.section.enlarging[1] == "luma" else 3, settings.size, settings.size)
        inputs = Inputs("the benchmark's noise", shape, settings.classes)
        _refuse_batch(self.maker(NO_REP, inputs), shape, settings)
        if scale is None:
            x = torch.randn(settings.batch, *shape, generator=generator)
            targets = torch.randint(settings.classes, (settings.batch,), generator=generator)
            task: Task = Classification(OPTIM.label_smoothing)
        else:
            sides = [scale * settings.size] * 2
            x = torch.rand(settings.batch, *shape, generator=generator) * 255
            targets = torch.rand(settings.batch, shape[0], *sides, generator=generator) * 255
            task = SuperResolution(*self.section.enlarging)
        return Subject(
            make={rep: self.maker(rep, inputs) for rep in dict.fromkeys([NO_REP, *reps])},
            batch=(x.to(settings.device), targets.to(settings.device)),
            task=task,
            optim=OPTIM,
            quant=self.quant,
            mode=self.mode,
            arithmetic=settings.arithmetic,
        )


def _refuse_batch(make: Callable[[], nn.Module], shape: tuple[int, int, int], settings: Settings) -> None:
    """ConfigError for a batch that this machine's memory does not hold, before any of it is made."""
    if settings.device.type == "cpu":
        with torch.device("meta"):
            size = settings.batch * kept_by_a_step(make(), shape)
        what = f"A training step of batch={settings.batch} images {'x'.join(map(str, shape))}"
        require_memory(size, what, "choose fewer images (batch), or fewer pixels (size)")


def refuse_what_cannot_be_built(subject: Subject, quants: Sequence[QuantOptions]) -> None:
    """ConfigError, before anything is measured, for blocks that the model has no place for and signs behind a ReLU."""
    with torch.device("meta"):
        for make in subject.make.values():
            net = make()
            for quant in quants:
                refuse_signs_behind_relu(net, quant)

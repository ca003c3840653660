"""What QAT may do beside its steps: each formula against numpy, and what it must leave alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_net
from torch import Tensor, nn

from repq_cli.cli.jobs import compose_plain
from repq_cli.errors import ConfigError
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose, freeze_statistics
from repq_cli.modes.options import ModeOptions
from repq_cli.modes.restated_norms import reestimate_statistics
from repq_cli.quant.layers import QuantConv
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import Quantizer
from repq_cli.quant.step_rules import bring_steps_back
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.tasks.classification import Classification
from repq_cli.train.engine import Update
from repq_cli.train.optim import make_optimizer, stop_steps
from repq_cli.train.options import OptimOptions, QATOptions
from repq_cli.train.qat_tools import QATTools, distilled

W4A4 = QuantOptions(weight_bits=4, act_bits=4)
SGD = OptimOptions(name="sgd", weight_decay=0.1, label_smoothing=0.0, step_lr=0.25)


def quantized(mode: str = "repq_bn", quant: QuantOptions = W4A4) -> nn.Module:
    net = tiny_net(plain_block if mode == "plain" else repvgg_block).double()
    composed = compose(net, ModeOptions(mode), quant)
    calibrate(composed, images(1)[0], "min_error", net)
    return composed.train()


def images(count: int) -> list[Tensor]:
    return list(torch.randn(count, 6, 3, 12, 11, dtype=torch.float64) + torch.arange(count).view(-1, 1, 1, 1, 1))


def state(net: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in net.state_dict().items()}


def test_distillation_is_numpys_with_its_gradient() -> None:
    student, teacher = torch.randn(2, 7, 5, dtype=torch.float64)
    student.requires_grad_()
    weight, temperature, labels = 0.3, 2.5, torch.arange(7) % 5
    loss = Classification().loss(student, labels)
    got = distilled(loss, student, teacher, weight, temperature)
    (grad,) = torch.autograd.grad(got, student)

    def softmax(logits: Tensor, t: float = 1.0) -> np.ndarray:
        powers = np.exp(logits.detach().numpy() / t)
        return powers / powers.sum(1, keepdims=True)

    s, t, p = softmax(student, temperature), softmax(teacher, temperature), softmax(student)
    entropy = -np.log(p[np.arange(7), labels]).mean()
    divergence = (t * np.log(t / s)).sum(1).mean()
    assert got.item() == pytest.approx((1 - weight) * entropy + weight * temperature**2 * divergence, rel=1e-12)
    expected = (1 - weight) * (p - np.eye(5)[labels]) + weight * temperature * (s - t)
    np.testing.assert_allclose(grad, expected / 7, rtol=1e-10, atol=1e-15)


def test_only_steps_that_drifted_start_anew_at_least_squared_error() -> None:
    net = quantized()
    layer = net.blocks[2]
    best = layer.quantizer.raw_step.detach().clone()
    with torch.no_grad():
        factors = torch.ones_like(best)
        factors[:4] = torch.tensor([3.9, 1 / 3.9, 4.1, 1 / 4.1])
        layer.quantizer.raw_step.copy_(best * factors)
    before = state(net)
    assert bring_steps_back(net, 4.0) == 2
    expected = best * factors.clamp(0.25, 4).where((factors < 4) & (factors > 0.25), torch.ones_like(best))
    torch.testing.assert_close(layer.quantizer.raw_step.detach(), expected, rtol=1e-6, atol=0)
    changed = {key for key, tensor in net.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {"blocks.2.quantizer.raw_step"}


def test_steps_have_a_rate_of_their_own_and_stop() -> None:
    net, batch = quantized().float(), (images(1)[0].float(), torch.arange(6) % 5)
    optimizer = make_optimizer(net, SGD, 0.1, steps_apart=True)
    steps = {id(step) for module in net.modules() if isinstance(module, Quantizer) for step in module.parameters()}
    (group,) = [group for group in optimizer.param_groups if group["lr_factor"] == 0.25]
    assert {id(step) for step in group["params"]} == steps and group["weight_decay"] == 0.0
    assert group["params"] in [group["params"] for group in make_optimizer(net, SGD, 0.1).param_groups]
    update, tools = (
        Update(net, Classification(), optimizer),
        QATTools(net, QATOptions(epochs=1, lr=1, freeze_steps_at=0.5)),
    )
    for done, moves in ((0.0, True), (0.49, True), (0.5, False), (0.9, False)):
        before = state(net)
        tools.begin_step(optimizer, done)
        update.seen(batch, 0.01)
        moved = {
            key.rpartition(".")[2] for key, tensor in net.state_dict().items() if not torch.equal(tensor, before[key])
        }
        assert ("raw_step" in moved) is moves and "weight" in moved, done
    stop_steps(make_optimizer(net, SGD, 0.1))  # no group of their own: nothing stops


def test_statistics_taken_anew_are_the_averages_of_the_batches(subtests: pytest.Subtests) -> None:
    batches = images(3)
    for mode, norm_of in (
        ("plain", lambda layer: layer.norm),
        ("repq_bn", lambda layer: layer.kernel.block.branches["dense"].norm),
        ("repq_bnest", lambda layer: layer.kernel.block.branches["dense"].norm),
    ):
        with subtests.test(mode=mode):
            # Integer biases are rounded by the running statistics, so that what is seen depends on earlier ones.
            net = quantized(mode, replace(W4A4, int32_bias=False))
            layer, before, moments = net.blocks[0], state(net), []
            assert isinstance(layer, QuantConv)
            for batch in batches:  # each alone, with all its weight
                alone = copy.deepcopy(net)
                assert reestimate_statistics(alone, [batch]) > 0
                moments.append([norm_of(alone.blocks[0]).running_mean, norm_of(alone.blocks[0]).running_var])
            count = reestimate_statistics(net, batches)
            assert count == sum(isinstance(part, nn.BatchNorm2d) for part in net.modules())
            for got, seen in zip(
                (norm_of(layer).running_mean, norm_of(layer).running_var), zip(*moments, strict=True), strict=True
            ):
                np.testing.assert_allclose(got, np.mean([np.asarray(each) for each in seen], 0), rtol=1e-12)
            again = state(net)
            reestimate_statistics(net, batches)  # nothing is left of what was there before
            for key, tensor in net.state_dict().items():
                if "running" in key:
                    torch.testing.assert_close(tensor, again[key], rtol=1e-12, atol=0)
                elif "num_batches" not in key:
                    assert torch.equal(tensor, before[key]), key
            assert all(norm.momentum == 0.1 for norm in net.modules() if isinstance(norm, nn.BatchNorm2d))
            assert net.training and all(module.training for module in net.modules())
            freeze_statistics(net)
            assert reestimate_statistics(net, batches) == 0


def test_tools_without_effect_are_refused_with_the_reason(subtests: pytest.Subtests) -> None:
    decided = [
        compose_plain(["+model=repvgg_a0", *more.split()]).qat.steps_within
        for more in (
            "quant=w4a4",
            "quant=w4a4 mode=repq_bnest",
            "quant=twn",
            "quant=w4a4 mode=repq_bnest qat.steps_within=3",
        )
    ]
    assert decided == [1.75, None, None, 3]
    repvgg = "rep=repvgg quant=w4a4"
    for arguments, sentence in [
        ("qat.temperature=3", "qat.temperature=3 is for distillation; set qat.teacher=fp as well"),
        ("+model=ecbsr qat.teacher=fp", "qat.teacher=fp teaches by probabilities of classes"),
        ("quant=twn qat.steps_within=4", "which mode=repq with quant.weight_method=twn at 2 bit has none of"),
        (
            f"{repvgg} mode=branchwise qat.steps_within=4",
            "is for learned steps of merged kernels, which mode=branchwise",
        ),
        (f"{repvgg} mode=merged qat.reestimate_bn=8", "and mode=merged has none; use mode=repq_bn or repq_bnest"),
        (f"{repvgg} mode=repq_bn qat.reestimate_bn=8", "mode.freeze_bn_after=16 keeps them still; set it to null"),
    ]:
        with subtests.test(arguments=arguments):
            model = [] if "model" in arguments else ["+model=repvgg_a0"]
            with pytest.raises(ConfigError) as error:
                compose_plain([*model, *arguments.split()])
            assert sentence in str(error.value)

"""``rep.identity=split``: the identity of a merged kernel has codes of its own, in training and in all that ships."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from blocks import BARE
from conftest import randomise, tiny_net
from torch import Tensor, nn

from repq_cli.cli.jobs import compose_plain, run_key
from repq_cli.deploy.check import compare, compare_integers
from repq_cli.deploy.cost import cost, layer_bytes, layer_costs
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_graph import to_onnx
from repq_cli.deploy.onnx_run import OnnxNet
from repq_cli.deploy.operations.base import FORMAT, FORMAT_WITH_IDENTITIES
from repq_cli.errors import ConfigError
from repq_cli.models.repvgg import repvgg
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.layers import quant_layers
from repq_cli.quant.lsq import LSQ
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.split import WIDE, SplitLSQ
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.ecb import ecb_block
from repq_cli.reparam.orepa import orepa_block
from repq_cli.reparam.qarepvgg import qarepvgg_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.reparam.statistics import RunningStatistics
from repq_cli.tasks.classification import Classification
from repq_cli.train.fp_key import fp_key

ABOUT = {"task": "classification", "input_shape": [3, 12, 11], "classes": list("abcde")}
agreement = Classification().agreement
W4A4 = QuantOptions(weight_bits=4, act_bits=4)
SPLIT = {
    "repvgg": partial(repvgg_block, identity="split"),
    "qarepvgg": partial(qarepvgg_block, identity="split"),
    "orepa vgg": partial(orepa_block, vgg=True, identity="split"),
    "repvgg without batch norm": partial(BARE["repvgg"], identity="split"),
    "ecb": partial(ecb_block, identity="split"),
}


def spiked(channels: int = 6, groups: int = 1) -> tuple[Tensor, Tensor]:
    """A kernel with an identity that stands out, and where it lies."""
    block = repvgg_block(Geometry(channels, channels, groups=groups), identity="split")
    taps = block.split_taps()
    assert taps is not None and taps.sum() == channels
    weight = 0.03 * torch.randn(taps.shape)
    return weight.masked_fill(taps, 0) + taps * torch.linspace(-1.5, 1.5, channels).view(-1, 1, 1, 1), taps


def images() -> Tensor:
    return torch.randn(12, 3, 12, 11, generator=torch.Generator().manual_seed(0))


def test_the_taps_are_those_of_the_identity_branch(subtests: pytest.Subtests) -> None:
    for name, make_block in SPLIT.items():
        for groups in (1, 2, 4):
            with subtests.test(block=name, groups=groups):
                block = make_block(Geometry(4, 4, groups=groups))
                own = {key: value for key, value in block.named_modules() if key.endswith("identity")}
                (identity,) = own.values()
                with torch.no_grad():
                    kernel = identity.merged(RunningStatistics()).weight
                taps = block.split_taps()
                assert taps is not None
                assert torch.equal(taps[:, :, 1:2, 1:2], kernel != 0) and taps.sum() == 4
        assert make_block(Geometry(4, 6)).split_taps() is None, "nothing to split without an identity"
        assert make_block(Geometry(4, 4, stride=2)).split_taps() is None


def test_codes_and_gradients_are_lsqs_each_tap_by_its_own_range(subtests: pytest.Subtests) -> None:
    for channels, groups in ((None, 1), (6, 1), (6, 3), (6, 6)):
        with subtests.test(channels=channels, groups=groups):
            weight, taps = spiked(groups=groups)
            weight, quantizer = weight.double().requires_grad_(), SplitLSQ(4, taps, channels).double()
            nn.init.constant_(quantizer.raw_step, 0.0093)  # some identities lie beyond 127 steps, some others beyond 7
            out = quantizer(weight)
            codes = quantizer.integers(weight)
            assert torch.equal(out, quantizer.grid(weight).dequantize(codes))
            low, high = torch.where(taps, WIDE.low, -8), torch.where(taps, WIDE.high, 7)
            u = weight.detach() / 0.0093
            assert torch.equal(codes, u.round().clamp(low, high))
            assert torch.equal(quantizer(out.detach()), out.detach()), "what is on the grid stays"
            upstream = torch.randn_like(out)
            out.backward(upstream)
            inside = (low < u) & (u < high)
            assert not inside[taps].all() and not inside[~taps].all()
            assert torch.equal(weight.grad, upstream * inside)
            to_step = upstream * (codes - u * inside) * quantizer.grad_scale(weight)
            expected = to_step.sum() if channels is None else to_step.flatten(1).sum(1)
            torch.testing.assert_close(quantizer.raw_step.grad, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("bits", range(2, 8))
def test_steps_start_where_the_error_of_the_whole_kernel_is_least(bits: int) -> None:
    weight, taps = spiked()
    quantizer, merged = SplitLSQ(bits, taps, 6), LSQ(bits, signed=True, channels=6)

    def error(of: LSQ) -> float:
        return (of(weight) - weight).square().sum().item()

    merged.calibrate(weight)
    quantizer.calibrate(weight)
    least = error(quantizer)
    assert least < error(merged) / (3 if bits < 7 else 1)
    best = quantizer.raw_step.detach().clone()
    for factor in (0.5, 0.8, 1.25, 2.0):
        quantizer.raw_step.data = best * factor
        assert error(quantizer) > least


def test_every_shipped_form_gives_the_answers_of_training(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for name, mode, bits in (
        ("repvgg", "merged", 2),
        ("repvgg", "repq_bnest", 4),
        ("qarepvgg", "repq_bn", 4),
        ("orepa vgg", "repq", 6),
        ("repvgg without batch norm", "merged", 4),
        ("ecb", "repq", 3),
    ):
        with subtests.test(block=name, mode=mode, bits=bits):
            make_block = SPLIT[name]
            net = randomise(repvgg(make_block, 3, 5, [1, 2, 1, 1], [0.125] * 4, [1, 1, 2, 1, 2])).eval()
            quant = QuantOptions(weight_bits=bits, act_bits=4)  # type: ignore[arg-type]
            qat = compose(net, ModeOptions(mode), quant)
            calibrate(qat, images(), quant.init, net)
            layers = [layer for layer in quant_layers(qat).values() if isinstance(layer.quantizer, SplitLSQ)]
            assert layers
            qat.train()(images()).square().mean().backward()
            assert all(layer.quantizer.raw_step.grad.count_nonzero() for layer in layers)
            frozen = freeze(qat.eval(), ABOUT)
            frozen.save(tmp_path / name / str(bits))
            read = DeployedNet.load(tmp_path / name / str(bits))
            assert read.graph["format"] == FORMAT_WITH_IDENTITIES
            wide = [read.codes(node) for node in read.nodes if node.get("identity")]
            assert len(wide) == len(layers) and any(codes.abs().max() > 2 ** (bits - 1) for codes in wide)
            same = compare(qat, read, [images()], agreement)
            assert (same.max_lsb, same.max_abs, same.answers) == (0, 0, 100)
            if bits == 4:
                integers = compare_integers(read, IntegerNet(read), [images()], agreement)
                assert integers.max_lsb is not None and integers.max_lsb <= 1
                onnx = OnnxNet(to_onnx(read).SerializeToString(), read.halo, 1)(images())
                expected = read(images())
                assert (onnx - expected).abs().max() < 0.1 * expected.abs().max()


def test_it_costs_a_product_of_eight_bits_and_a_byte_an_output_channel() -> None:
    def shipped(make_block: partial[nn.Module]) -> DeployedNet:
        qat = compose(tiny_net(make_block), ModeOptions("repq"), W4A4)
        calibrate(qat, images(), "min_error", tiny_net(make_block))
        return freeze(qat.eval(), ABOUT)

    split, whole = shipped(SPLIT["repvgg"]), shipped(partial(repvgg_block))
    assert (split.graph["format"], whole.graph["format"]) == (FORMAT_WITH_IDENTITIES, FORMAT)
    costs, compared = layer_costs(split), 0
    for node, other in zip(split.nodes, whole.nodes, strict=True):
        if node.get("identity"):
            outputs, inputs, rows, columns = node["shape"]
            macs = costs[node["name"]].macs
            per_tap = macs // (inputs * rows * columns)
            assert costs[node["name"]].bops == layer_costs(whole)[node["name"]].bops + per_tap * 4 * (8 - 4)
            assert layer_bytes(split, node) == layer_bytes(whole, other) + outputs
            compared += 1
    assert compared == 2 and cost(split).macs == cost(whole).macs


def test_it_is_a_matter_of_qat_alone() -> None:
    def composed(*overrides: str) -> object:
        return compose_plain(["+model=repvgg_a0", "mode=repq_bn", *overrides])

    merged, split = composed(), composed("rep.identity=split")
    assert fp_key(merged) == fp_key(split) and run_key(merged) != run_key(split)
    bare = ["+model=ecbsr_m4c8", "rep=ecb"]
    without, added, split = (compose_plain([*bare, f"rep.identity={value}"]) for value in ("false", "true", "split"))
    assert fp_key(added) == fp_key(split) != fp_key(without)
    for keys in (["quant=w1a1"], ["quant=twn"], ["quant=int8_affine"]):
        with pytest.raises(ConfigError, match=r"rep\.identity=split .*weight_method=lsq and 2 bits or more"):
            composed("rep.identity=split", *keys)
    with pytest.raises(ConfigError, match=r"rep\.identity"):
        composed("rep.identity=apart")
    found = {
        (mode, quant): compose_plain(["+model=repvgg_a0", f"mode={mode}", f"quant={quant}"]).rep.splits_identity
        for mode in ("auto", "repq_bnest")
        for quant in ("w8a8", "w4a4", "w2a2", "w1a32", "twn")
    }
    assert {names for names, splits in found.items() if splits} == {("auto", "w4a4"), ("auto", "w2a2")}
    with pytest.raises(ValueError, match="2 to 7 bits, not of 8"):
        SplitLSQ(8, torch.ones(1, 1, 3, 3, dtype=torch.bool))

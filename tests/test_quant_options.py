"""Methods, widths and networks that do not go together are refused with the reason and the way out."""

from __future__ import annotations

import pytest

from repq_cli.cli.jobs import compose_plain
from repq_cli.errors import ConfigError
from repq_cli.library.networks import names

A0, RESNET = "+model=repvgg_a0", "+model=resnet18_cifar"


def test_what_does_not_go_together_is_refused_with_the_reason(subtests: pytest.Subtests) -> None:
    for arguments, sentence in [
        ("quant.weight_bits=0", "quant.weight_bits=0 must be one of"),
        ("quant.weight_bits=9", "quant.weight_bits=9 must be one of"),
        ("quant.weight_method=xor", "quant.weight_method=xor must be one of lsq, sign, bwn, twn, affine"),
        (
            "quant=w4a4 quant.weight_method=twn",
            "quant.weight_bits=4 does not go with quant.weight_method=twn, which is for 2 bits (or 32 for none); "
            "4 bits: lsq, affine",
        ),
        ("quant=bnn quant.weight_bits=2", "quant.weight_bits=2 does not go with quant.weight_method=sign"),
        ("quant=int8_affine quant.act_bits=1", "quant.act_bits=1 does not go with quant.act_method=affine"),
        ("quant=w1a1 quant.act_method=lsqplus", "1 bits: lsq, sign"),
        (
            "quant=bnn quant.first_last=same",
            "quant.first_last=same would leave one bit of the image, whose values are real; use 8, inputs8",
        ),
        ("quant=w1a1 quant.first_last=same", "would leave one bit of the image"),
        (
            "quant=bnn model.activation=relu",
            "model.activation=relu leaves no value below zero, and the sign of all others is +1",
        ),
        ("quant=xnor model.activation=relu6", "wants the order convolution, batch norm, sign"),
        ("quant=w1a1 quant.pad_value=1", "quant.pad_value=1 is for activations of -1 and 1"),
        ("quant=w1a1 quant.input_scale=true", "quant.input_scale=true is for activations of -1 and 1"),
        ("quant=w1a1 quant.stochastic=true", "quant.stochastic=true is for signs"),
        ("quant=bwn quant.latent_range=glorot", "quant.latent_range=glorot is for signs"),
        ("quant=twn quant.symmetric=true", "quant.symmetric=true is for quant.weight_method=lsq"),
        ("quant=twn quant.threshold=-1", "quant.threshold=-1 must be a number, from 0 to 2"),
        ("quant=int8_affine quant.act_momentum=2", "quant.act_momentum=2 must be a number, from 0 to 1"),
        (
            "quant=bnn mode=branchwise",
            "mode=branchwise merges branches by their scales, which quant.weight_method=sign has none of",
        ),
    ]:
        with subtests.test(arguments=str(arguments), sentence=str(sentence)):
            with pytest.raises(ConfigError) as error:
                compose_plain([A0, *arguments.split()])
            assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "activation"),
    [
        ("quant=w4a4", None),
        ("quant=w1a1", None),
        ("quant=binaryconnect", None),
        ("quant=bnn", "hardtanh"),
        ("quant=xnor", "hardtanh"),
        ("quant=w4a4 model.activation=hardtanh", "hardtanh"),
        ("quant=bnn quant.act_bits=32 quant.pad_value=0", None),
    ],
)
def test_networks_get_hard_tanh_where_activations_become_signs(arguments: str, activation: str | None) -> None:
    assert compose_plain([RESNET, *arguments.split()]).model.activation == activation


def test_integer_only_training_folds_batch_norm() -> None:
    config = compose_plain([RESNET, "quant=int8_affine"])
    assert config.mode.plain_bn == "folded"
    assert config.mode.name == "plain"
    assert compose_plain([RESNET, "quant=int8_affine", "mode.plain_bn=unfolded"]).mode.plain_bn == "unfolded"


@pytest.mark.parametrize("option", names("quant"))
def test_a_single_key_of_an_option_can_be_changed(option: str) -> None:
    assert compose_plain([A0, f"quant={option}", "quant.residual=fp"]).quant.residual == "fp"

"""``quant.layers``: bits of single layers, by name or pattern, from composition to what ships."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import QUICK, row_of, tiny_net
from torch import nn

from repq_cli.cli import main
from repq_cli.cli.jobs import compose_plain, run_key
from repq_cli.deploy.cost import layer_costs
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.network import DeployedNet
from repq_cli.errors import ConfigError
from repq_cli.models.resnet import resnet
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.wiring import input_quantizers
from repq_cli.reparam.plain import plain_block
from repq_cli.train.fp_key import fp_key

W4A4 = QuantOptions(weight_bits=4, act_bits=4)
ABOUT = {"task": "classification", "input_shape": [3, 12, 11], "classes": list("abcde")}


def widths(net: nn.Module) -> dict[str, tuple[int, int]]:
    """By layer the bits of its weight and of what it reads, as they ship."""
    return {name: (found.weight_bits, found.act_bits) for name, found in layer_costs(freeze(net.eval(), ABOUT)).items()}


def test_a_layer_has_its_own_bits_and_so_has_what_it_reads() -> None:
    def bits(layers: dict[str, int], keep_float: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
        quant = replace(W4A4, layers=layers)  # type: ignore[arg-type]
        return widths(compose(tiny_net(), ModeOptions("repq"), quant, keep_float))

    usual = widths(compose(tiny_net(), ModeOptions("repq"), W4A4))
    assert usual["blocks_0"] == usual["classifier"] == (8, 8) and usual["blocks_2"] == (4, 4)
    assert bits({"blocks.2": 6}) == usual | {"blocks_2": (6, 6)}
    assert bits({"blocks.0": 4}) == usual | {"blocks_0": (4, 4)}, "the first and the last layer are layers like others"
    assert bits({"blocks.?": 2, "blocks.3": 8}) == usual | dict.fromkeys(
        [f"blocks_{index}" for index in (0, 1, 2, 4, 5)], (2, 2)
    ) | {"blocks_3": (8, 8)}, "the last pattern that fits"
    assert bits({"blocks.2": 32}) == usual | {"blocks_2": (32, 32)}
    assert bits({"blocks.*": 8}, ("blocks.2",))["blocks_2"] == (32, 32), "a layer that is kept in float stays so"


def test_a_tensor_has_the_bits_of_its_widest_reader() -> None:
    net = resnet(plain_block, 3, 5, [1, 1, 1, 1], "cifar", 0.125)
    readers: dict[str, list[str]] = {}
    for layer, tap in input_quantizers(compose(net, ModeOptions("plain"), W4A4)).items():
        readers.setdefault(tap, []).append(layer)
    one, other = next(layers for layers in readers.values() if len(layers) == 2)
    for asked, expected in ({one: 8}, (8, 8, 4, 8)), ({one: 2}, (2, 4, 4, 4)), ({one: 2, other: 3}, (2, 3, 3, 3)):
        found = widths(compose(net, ModeOptions("plain"), replace(W4A4, layers=asked)))  # type: ignore[arg-type]
        assert (*found[one.replace(".", "_")], *found[other.replace(".", "_")]) == expected
    signs = QuantOptions("sign", "sign", 1, 1, layers={one: 8})
    hard = resnet(plain_block, 3, 5, [1, 1, 1, 1], "cifar", 0.125, "hardtanh")
    with pytest.raises(ConfigError, match="read one tensor, which cannot be signs for some and codes for others"):
        compose(hard, ModeOptions("plain"), signs)


def test_a_run_ships_them_and_its_row_names_them(run_repq: Callable[..., tuple[int, Path | None]]) -> None:
    code, folder = run_repq("train", *QUICK, "quant=w4a4", "quant.layers={blocks.2: 8, blocks.3*: 2}")
    row = row_of(folder)
    assert folder is not None and code == 0 and row["quant"]["layers"] == {"blocks.2": 8, "blocks.3*": 2}
    assert row["checks"]["freeze_max_lsb"] == 0
    nodes = {node["name"]: node["bits"] for node in DeployedNet.load(folder / "deploy").nodes if "weight" in node}
    assert [nodes[f"blocks_{index}"] for index in (1, 2, 3, 4)] == [4, 8, 2, 4]


def test_names_that_fit_no_layer_are_refused_before_there_is_a_folder(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, said in (
        ("{blocks.77: 8}", "quant.layers={blocks.77: 8} fits no layer of this network; did you mean 'blocks."),
        ("{features.*: 8}", "quant.layers={features.*: 8} fits no layer of this network"),
        ("{blocks.2: 9}", "quant.layers"),
        ("[8]", "quant.layers"),
    ):
        assert main(["train", *QUICK, f"quant.layers={value}"]) == 2
        assert said in capsys.readouterr().err
    assert not list(in_folder.glob("outputs/train/*"))


def test_they_are_a_matter_of_qat_alone() -> None:
    one, other = (
        compose_plain(["+model=repvgg_a0", "quant=w4a4", *layers]) for layers in ([], ["quant.layers={blocks.2: 8}"])
    )
    assert fp_key(one) == fp_key(other) and run_key(one) != run_key(other)


def test_tables_show_them_as_one_option(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, asked in (("one", "{blocks.2: 8, blocks.3*: 2}"), ("other", "null")):
        assert (
            main(["train", *QUICK, "quant=w4a4", "qat.epochs=0", f"hydra.run.dir={name}", f"quant.layers={asked}"]) == 0
        )
    capsys.readouterr()
    assert main(["table", "one", "other"]) == 0
    table = capsys.readouterr().out
    assert r"quant.layers={blocks.2: 8, blocks.3\*: 2}" in table and "quant.layers not set" in table
    assert "quant.layers.blocks" not in table and "null" not in table

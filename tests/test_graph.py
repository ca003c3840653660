"""A deployed network's description is data: whatever stands in it, it is run as it is or refused in a sentence."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import seal, tiny_net
from operations import Everything, prepared
from safetensors.torch import load_file, save_file

from repq_cli.deploy.cost import cost
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations import OPERATIONS, Operation
from repq_cli.errors import RepqError
from repq_cli.models.ecbsr import ecbsr
from repq_cli.models.resnet import resnet
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.plain import plain_block

Graph = dict[str, Any]
ABOUT = {"task": "classification", "mean": [0.5] * 3, "std": [0.5] * 3, "classes": list("abcde")}
ABOUT_ALL = ABOUT | {"input_shape": [3, 9, 8]}
STRANGE: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1.5,
        1e308,
        2**70,
        "",
        "x",
        "__class__",
        "_conv",
        "forward",
        [],
        {},
        [[]],
        {"a": 1},
        "\x1b[2J",
    ),
    *([1, 2, 3, 4], [0, 0, 0, 0], [2**40] * 4, math.nan, math.inf, "a" * 5000, "../x", "conv__weight"),
]


@pytest.fixture(scope="module")
def networks() -> list[DeployedNet]:
    """Of every operation that this project's own networks have."""
    signs = QuantOptions("sign", "sign", 1, 1, pad_value=1)
    pairs = [
        (tiny_net(), ModeOptions("repq"), QuantOptions(weight_bits=4, act_bits=4)),
        (resnet(plain_block, 3, 5, [1, 1, 1, 1], width=0.0625, activation="hardtanh"), ModeOptions("plain"), signs),
        (tiny_net(plain_block), ModeOptions("plain"), QuantOptions("affine", "affine")),
    ]
    nets = [
        freeze(compose(net, mode, quant).eval(), ABOUT | {"input_shape": [3, 32, 32]}) for net, mode, quant in pairs
    ]
    enlarging = compose(
        ecbsr(plain_block, 1, blocks=1, channels=4, scale=2, colour="luma"), ModeOptions("plain"), QuantOptions()
    )
    shown = {"task": "super_resolution", "input_shape": [1, 8, 8], "scale": 2, "colour": "luma"}
    return [*nets, freeze(enlarging.eval(), shown), freeze(prepared(Everything(), torch.randn(2, 3, 9, 8)), ABOUT_ALL)]


def test_every_operation_says_what_becomes_of_scales() -> None:
    """None keeps its input's without a word, which would be wrong for whatever does more than choose among numbers."""
    with pytest.raises(NotImplementedError):
        Operation().scales({}, [], None)  # type: ignore[arg-type]
    for entry in OPERATIONS.values():
        assert type(entry).scales is not Operation.scales, entry.name


def mutations(graph: Graph) -> Iterator[tuple[str, Graph]]:
    """Every key of every node, and of the description, left out and in every strange form; then the nodes' order."""
    for number, node in enumerate(graph["nodes"]):
        for key in [*node, "weight", "slope", "inputs", "__class__"]:
            for value in ["(left out)", *STRANGE]:
                own = {name: kept for name, kept in node.items() if name != key}
                own |= {} if value == "(left out)" else {key: value}
                yield f"{node['name']}.{key}={str(value)[:30]}", with_nodes(graph, number, [own])
        for op in OPERATIONS:
            yield f"{node['name']}: {op}", with_nodes(graph, number, [node | {"op": op}])
        yield f"{node['name']} left out", with_nodes(graph, number, [])
        yield f"{node['name']} twice", with_nodes(graph, number, [node, node])
        yield f"{node['name']} reads itself", with_nodes(graph, number, [node | {"inputs": [node["name"]]}])
        yield f"{node['name']} reads what follows", with_nodes(graph, number, [node | {"inputs": [graph["output"]]}])
        yield f"{node['name']} is a list", with_nodes(graph, number, [[node]])
    for key in graph:
        yield f"{key} left out", {name: value for name, value in graph.items() if name != key}
        for value in STRANGE:
            yield f"{key}={str(value)[:30]}", graph | {key: value}
    yield "backwards", graph | {"nodes": graph["nodes"][::-1]}


def with_nodes(graph: Graph, number: int, nodes: list[Any]) -> Graph:
    return graph | {"nodes": [*graph["nodes"][:number], *nodes, *graph["nodes"][number + 1 :]]}


def refused(folder: Path) -> bool:
    """Whether a network is refused in a sentence; one that is not runs in every executor."""
    try:
        net = DeployedNet.load(folder)
    except RepqError as error:
        said = str(error)
    else:
        return runs(net)
    assert "\n" not in said and len(said) < 1000
    return True


def runs(net: DeployedNet) -> bool:
    with torch.inference_mode():
        net(torch.zeros(1, *net.graph["input_shape"]))
    cost(net)
    with contextlib.suppress(RepqError):
        IntegerNet(net)
    return False


@pytest.mark.parametrize("count", [16, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_no_description_is_more_than_data(count: int, networks: list[DeployedNet], tmp_path: Path) -> None:
    generator = random.Random(0)
    found = {True: 0, False: 0}
    for net in networks:
        net.save(tmp_path)
        assert not refused(tmp_path)
        graph = json.loads((tmp_path / "model.json").read_text())
        every = list(mutations(graph))
        for name, other in generator.sample(every, min(count, len(every))):
            (tmp_path / "model.json").write_text(json.dumps(other))
            seal(tmp_path)
            try:
                found[refused(tmp_path)] += 1
            except Exception as error:
                raise AssertionError(name) from error
    assert found[True] > 5 * found[False] > 0


def test_no_tensor_of_another_kind_or_size_is_taken(networks: list[DeployedNet], tmp_path: Path) -> None:
    for net in networks[:1]:
        net.save(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        for name, tensor in tensors.items():
            others = [tensor.flatten()[:0], torch.cat([tensor.flatten()] * 2), tensor.reshape(1, 1, -1).bool(), None]
            for other in others:
                changed = {key: value for key, value in tensors.items() if key != name}
                save_file(changed if other is None else changed | {name: other}, tmp_path / "model.safetensors")
                seal(tmp_path)
                assert refused(tmp_path) or other is not None, name


def test_files_that_are_none_are_not_opened(networks: list[DeployedNet], tmp_path: Path) -> None:
    net = networks[0]
    for name in ("model.json", "model.safetensors"):
        for text in (
            b"",
            b"{}",
            b"3",
            b"[" * 100_000,
            b"\xff\xfe",
            b"NaN",
            b'{"nodes": [], "format": NaN}',
            b"1" * 5000,
        ):
            net.save(tmp_path)
            (tmp_path / name).write_bytes(text)
            assert refused(tmp_path)
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        assert refused(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        assert refused(tmp_path)
        (tmp_path / name).rmdir()

"""What a run leaves for figures: weights in steps beside their branches, and crops of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from blocks import BARE, BLOCKS
from conftest import QUICK, randomise, tiny_net

from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.modes.weights import MOST_BINS, blocks_behind, branch_kernels, weight_histograms
from repq_cli.quant.layers import QuantLayer
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.algebra import Geometry, pad_kernel
from repq_cli.runs.folder import RunFolder
from repq_cli.train.evaluation import write_crops

QUANTS = {
    "lsq": QuantOptions(weight_bits=4, act_bits=4),
    "per tensor": QuantOptions(weight_bits=4, act_bits=4, granularity="tensor"),
    "one bit": QuantOptions(weight_bits=1, act_bits=8, first_last="same"),
    "ternary": QuantOptions("twn", weight_bits=2, act_bits=8),
    "affine": QuantOptions("affine", "affine", granularity="channel", int32_bias=True),
    "float": QuantOptions(weight_bits=32, act_bits=8),
}


def quantized(mode: str, quant: QuantOptions) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A calibrated network and the FP one that it was composed of."""
    fp = tiny_net().eval()
    net = compose(fp, ModeOptions(mode), quant)  # type: ignore[arg-type]
    calibrate(net, torch.randn(8, 3, 16, 16), "min_error", fp)
    return net.eval(), fp


@pytest.mark.parametrize("name", [*BLOCKS, *(f"{name} bare" for name in BARE)])
def test_branches_add_up_to_the_merged_kernel(name: str) -> None:
    make = {**BLOCKS, **{f"{bare} bare": make for bare, make in BARE.items()}}[name]
    block = randomise(make(Geometry(4, 4))).eval()
    kernels = branch_kernels(block)
    assert bool(kernels) == (not name.startswith("plain"))
    if kernels:
        merged = block.to_conv().weight
        assert torch.allclose(sum(pad_kernel(kernel, (3, 3)) for kernel in kernels.values()), merged, atol=1e-5)


@pytest.mark.parametrize("quant", QUANTS)
def test_histograms_are_numpys(quant: str) -> None:
    net, fp = quantized("repq", QUANTS[quant])
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, QuantLayer)}
    found = weight_histograms(net, blocks_behind(net))
    assert [layer["name"] for layer in found] == [name for name, layer in layers.items() if layer.quantizer.bits < 32]
    blocks = blocks_behind(fp)
    for layer in found:
        module, edges = layers[layer["name"]], np.array(layer["edges"])
        weight = module.merged_weight()
        grid = module.quantizer.grid(weight)
        step = grid.step.detach().numpy().astype(float)
        zero = 0 if grid.zero_point is None else grid.zero_point.numpy()
        merged = weight.numpy().astype(float) / step
        codes = module.quantizer.integers(weight).detach().numpy() - zero
        assert len(edges) <= MOST_BINS + 1 and np.ptp(np.diff(edges)) == 0
        assert layer["merged"] == np.histogram(merged, edges)[0].tolist()
        assert sum(layer["merged"]) == merged.size
        assert layer["codes"] == [(codes == code).sum() for code in range(layer["low"], layer["high"] + 1)]
        assert sum(layer["codes"]) == codes.size
        # What lies inside the grid is as far as half a step from its code.
        lsq = layer["bits"] == 4
        assert not lsq or np.abs(np.clip(merged, layer["low"], layer["high"]) - codes).max() <= 0.5 + 1e-6
        kernels = branch_kernels(blocks[layer["name"]]) if layer["name"] in blocks else {}
        assert set(layer["branches"]) == set(kernels)
        for part, kernel in kernels.items():
            own = (kernel.numpy().astype(float) / step)[kernel.numpy() != 0]
            assert layer["branches"][part] == np.histogram(own, edges)[0].tolist()
            assert sum(layer["branches"][part]) == own.size


def test_an_identity_counts_once_for_every_channel() -> None:
    net, _ = quantized("repq", QUANTS["lsq"])
    layers = {layer["name"]: layer for layer in weight_histograms(net, blocks_behind(net))}
    identities = {name: sum(layer["branches"].get("identity", [])) for name, layer in layers.items()}
    outputs = {name: net.get_submodule(name).merged_weight().shape[0] for name in layers}
    assert any(identities.values()) and all(count in (0, outputs[name]) for name, count in identities.items())


@pytest.mark.parametrize(("mode", "branches"), [("merged", False), ("ptq", True), ("repq_bn", True)])
def test_a_kernel_that_is_trained_by_itself_has_no_branches(mode: str, branches: bool) -> None:
    net, fp = quantized(mode, QUANTS["lsq"])
    behind = blocks_behind(fp if mode == "ptq" else net)
    assert any(layer["branches"] for layer in weight_histograms(net, behind)) == branches


def test_files_are_small_and_equal_networks_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        net, _ = quantized("repq", QUANTS["lsq"])
        RunFolder(tmp_path / name).write_weights(weight_histograms(net, blocks_behind(net)))
    first, second = ((tmp_path / name / "weights.json").read_bytes() for name in ("a", "b"))
    layers = json.loads(first)["layers"]
    assert first == second and len(first) < 4000 * len(layers)
    floats, _ = quantized("repq", QUANTS["float"])
    RunFolder(tmp_path).write_weights(weight_histograms(floats, blocks_behind(floats)))
    assert not (tmp_path / "weights.json").exists()


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize("mode", ["branchwise", "ptq"])
def test_runs_whose_kernels_are_merged_for_shipping_name_their_branches(
    mode: str, run_repq: Callable[..., tuple[int, Path | None]]
) -> None:
    code, folder = run_repq("train", *QUICK, "qat.epochs=0", f"mode={mode}", "quant=w4a4")
    assert code == 0 and folder is not None
    content = json.loads((folder / "weights.json").read_text())
    assert content["format"] == 1
    layers = {layer["name"]: layer for layer in content["layers"]}
    assert set(layers["blocks.0"]["branches"]) == {"dense", "point"} and layers["classifier"]["branches"] == {}
    deployed = json.loads((folder / "deploy/model.json").read_text())
    widths = {node["name"]: node["bits"] for node in deployed["nodes"] if node["op"] in ("conv", "linear")}
    assert {name.replace(".", "_"): layer["bits"] for name, layer in layers.items()} == widths


@pytest.mark.parametrize("name", ["..", ".", "Set 5/x2"])
def test_crops_of_sets_of_any_name_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    metrics = [{"set": name, "scale": 2, "name": "psnr_y", "engine": "deployed", "value": 30.0}]
    pictures = {"deployed": torch.zeros(3, 8, 8, dtype=torch.uint8)}
    write_crops(RunFolder(tmp_path / "run").crops_of(name), pictures, metrics)
    (folder,) = (tmp_path / "run/crops").iterdir()
    assert {path.name for path in folder.iterdir()} == {"deployed.png", "values.json"} and unquote(folder.name) == name
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["crops"]

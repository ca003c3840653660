"""What a run has lost is made again of what is whole, to the same bytes; a good row outlives whatever fails."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FINISHED, TINY, results, row_of, seal

from repq_cli.cli import main
from repq_cli.files import link
from repq_cli.runs.folder import RunFolder
from repq_cli.train import checkpoint, stage
from repq_cli.train.mending import damage

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

SOME_OR_ALL = pytest.mark.parametrize("some", [True, pytest.param(False, marks=pytest.mark.slow)])
Run = Callable[..., tuple[int, Path | None]]


def flip(path: Path) -> None:
    """Change one bit, in a file of its own, which may have been a hard link."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def cut(path: Path, count: int) -> None:
    """Lose the last bytes."""
    path.write_bytes(path.read_bytes()[:-count])


def files_of(folder: Path) -> dict[str, bytes]:
    """What has to be equal where a run was made again."""
    names = ("deploy/model.safetensors", "deploy/model.json", "metrics.jsonl", "weights.json")
    return {name: (folder / name).read_bytes() for name in names}


def sealed_anew(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a checkpoint holds, in a file of its own, and seal it as ours are."""
    content = torch.load(path, weights_only=True)
    change(content)
    path.unlink()
    checkpoint.save(path, content)


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(key)


def another(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.__setitem__(key, value)


def in_net(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], object]:
    """The first tensor of the net changed."""

    def do(content: dict[str, Any]) -> None:
        name = next(iter(content["net"]))
        content["net"][name] = change(content["net"][name])

    return do


def in_optimizer(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    """An option of the first group, or what is kept of the first parameter, changed; None: left out."""

    def do(content: dict[str, Any]) -> None:
        place = content["optimizer"][key.partition(" ")[0]]
        place = place[min(place) if isinstance(place, dict) else 0]
        name = key.partition(" ")[2]
        place.pop(name) if value is None else place.update({name: value})

    return do


def another_deploy(folder: Path) -> None:
    """Another network, whole: its means are other ones."""
    graph = json.loads((folder / "model.json").read_text())
    graph["mean"] = [value + 0.1 for value in graph["mean"]]
    (folder / "model.json").write_text(json.dumps(graph))
    seal(folder)


@SOME_OR_ALL
def test_a_finished_run_is_made_whole_again(
    some: bool, logged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    """Its deployed net from best.pt, best.pt from last.pt, fp.pt and the row by the steps that made them."""
    expected, row = files_of(logged), row_of(logged)

    def damaged(do: Callable[[RunFolder], object]) -> Path:
        copy = Path(shutil.copytree(logged, tmp_path / str(len(list(tmp_path.iterdir())))))
        do(RunFolder(copy))
        return copy

    mended: dict[str, Callable[[RunFolder], object]] = {
        "no deploy": lambda run: shutil.rmtree(run.deploy),
        "deploy": lambda run: flip(run.deploy / "model.safetensors"),
        "deploy.json": lambda run: (run.deploy / "model.json").write_text("{}"),
        "another deploy": lambda run: another_deploy(run.deploy),
        "another best": lambda run: sealed_anew(run.best, in_net(lambda tensor: tensor * 1.5)),
        "another fp": lambda run: sealed_anew(run.fp, in_net(lambda tensor: tensor * 1.5)),
        "the other one": lambda run: [run.best.unlink(), link(run.fp, run.best)],
        "best": lambda run: flip(run.best),
        "best and deploy": lambda run: [run.best.unlink(), shutil.rmtree(run.deploy)],
        "best and last": lambda run: [flip(run.best), flip(run.last), link(run.checkpoints / "kept", run.previous)],
        "fp": lambda run: flip(run.fp),
        "row": lambda run: run.row_file.write_text('{"status": "done"}'),
        "half a row": lambda run: run.row_file.write_bytes(run.row_file.read_bytes()[:99]),
        "row and metrics": lambda run: [run.row_file.unlink(), cut(run.log_file, 9)],
    }  # fmt: skip
    os.link(logged / "checkpoints/last.pt", logged / "checkpoints/kept")
    for name, do in mended.items():
        if some and name not in ("another best", "deploy", "best and deploy", "row and metrics"):
            continue
        with subtests.test(name):
            copy = damaged(do)
            assert main(["train", f"resume={copy}"]) == 0
            printed = capsys.readouterr().out
            assert str(copy) in printed
            found = files_of(copy)
            if name == "row and metrics":
                assert "its first" in printed and "lines are kept" in printed
                assert expected["metrics.jsonl"].startswith(found["metrics.jsonl"])
                del found["metrics.jsonl"]
            assert found.items() <= expected.items()
            assert results(copy) == {key: row[key] for key in results(copy)}
            assert damage(RunFolder(copy), row, trained=True) is None
            shutil.rmtree(copy)
    lost: dict[str, Callable[[RunFolder], object]] = {
        "best": lambda run: [flip(run.best), run.last.unlink(), run.previous.unlink()],
        "all": lambda run: [shutil.rmtree(run.checkpoints), shutil.rmtree(run.deploy)],
        "row": lambda run: [run.row_file.write_text("[]"), run.last.unlink(), run.previous.unlink()],
    }
    for name, do in lost.items() if not some else ():
        with subtests.test(f"lost {name}"):
            copy = damaged(do)
            before = (copy / "summary.json").read_bytes()
            assert main(["train", f"resume={copy}"]) == 3
            assert str(copy) in capsys.readouterr().err
            assert (copy / "summary.json").read_bytes() == before
            shutil.rmtree(copy)


def test_a_damaged_net_is_not_measured(logged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The row keeps what was measured on the whole one."""
    before = (logged / "summary.json").read_bytes()
    for name in ("best", "fp"):
        file = logged / f"checkpoints/{name}.pt"
        whole = file.read_bytes()
        flip(file)
        for command in ("eval", "diagnose"):
            assert main([command, f"run={logged}"]) == 3
            assert f"{name}.pt is damaged" in capsys.readouterr().err
        file.write_bytes(whole)
        sealed_anew(file, in_net(lambda tensor: tensor * 1.5))
        assert main(["eval", f"run={logged}"]) == 3
        assert f"{name}.pt is another network" in capsys.readouterr().err
        file.write_bytes(whole)
    another_deploy(logged / "deploy")
    assert main(["eval", f"run={logged}"]) == 3
    assert "deploy is another network" in capsys.readouterr().err
    assert (logged / "summary.json").read_bytes() == before


SEALED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no epoch": without("epoch"),
    "a shape": in_net(lambda tensor: tensor[:1]),
    "a rate": in_optimizer("param_groups lr", "0.1"),
    "totals": another("totals", {"steps": 0, "x": 1}),
    "a buffer": in_optimizer("state momentum_buffer", torch.zeros(7)),
    "no net": without("net"),
    "another net": another("net", {"weight": torch.zeros(2)}),
    "no tensor": another("net", {"weight": [1.0]}),
    "not finite": in_net(lambda tensor: tensor * torch.nan),
    "sparse": in_net(lambda tensor: tensor.to_sparse()),
    "integers": in_net(lambda tensor: tensor.long()),
    "a stage": another("stage", "best"),
    "an epoch": another("epoch", -1),
    "no optimiser": another("optimizer", {}),
    "no groups": another("optimizer", {"state": {}, "param_groups": []}),
    "no rate": in_optimizer("param_groups lr", None),
    "a switch": in_optimizer("param_groups nesterov", "yes"),
    "a list": another("step_seconds", 3),
    "a time": another("step_seconds", ["3"]),
    "bytes": another("metrics_bytes", "3"),
    "a digest": another("metrics_sha256", 3),
    "earlier": another("earlier", {"fp_seconds": "x"}),
    "a score": another("best_score", "99"),
    "a key": another("fp_key", 3),
}  # fmt: skip


@SOME_OR_ALL
def test_a_checkpoint_that_was_sealed_anew_is_no_better_than_what_it_holds(
    some: bool, logged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    """One sentence, and the checkpoint before takes its place where there is one."""
    expected, row = files_of(logged), row_of(logged)
    for name, change in list(SEALED.items())[: 3 if some else None]:
        for alone in (True, False):
            with subtests.test(name, alone=alone):
                copy = RunFolder(shutil.copytree(logged, tmp_path / name / str(alone)))
                copy.row_file.unlink()
                sealed_anew(copy.last, change)
                if alone:
                    copy.previous.unlink()
                assert main(["train", f"resume={copy}"]) == (3 if alone else 0)
                said = "".join(capsys.readouterr())
                assert "last.pt is damaged" in said and "Traceback" not in said
                if not alone:
                    assert files_of(copy.path).items() == expected.items()
                    assert results(copy.path) == {key: row[key] for key in results(copy.path)}
    for name in ("another net", "a shape") if not some else ():  # best.pt is written again from what holds its net
        with subtests.test(f"best.pt, {name}"):
            copy = RunFolder(shutil.copytree(logged, tmp_path / "best" / name))
            copy.row_file.unlink()
            sealed_anew(copy.best, SEALED[name])
            assert main(["train", f"resume={copy}"]) == 0
            assert "best.pt is damaged" in capsys.readouterr().out and files_of(copy.path) == expected
            for command in ("eval", "diagnose"):
                sealed_anew(copy.best, SEALED[name])
                assert main([command, f"run={copy}"]) == 3
                assert "best.pt is not of the network" in capsys.readouterr().err


@pytest.mark.slow
def test_a_half_finished_run_goes_on_from_what_is_whole(
    run_repq: Run, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """Killed behind the first epoch of QAT, and then damaged: the same result as that of a run that had no accident."""
    end_epoch = stage.StageTrainer._end_epoch

    def dying(trainer: stage.StageTrainer, bar: object) -> None:
        if (trainer.stage.name, trainer.epoch) == ("qat", 1):
            raise SystemExit(9)  # nothing is written on the way out, as by a signal that cannot be caught
        end_epoch(trainer, bar)

    arguments = ["train", *TINY, "quant=w4a4", "qat.epochs=2", "runtime.log_every=2"]
    whole = run_repq(*arguments)[1]
    with monkeypatch.context() as patch:
        patch.setattr(stage.StageTrainer, "_end_epoch", dying)
        with pytest.raises(SystemExit):
            run_repq(*arguments, "hydra.run.dir=killed")
    assert whole is not None
    expected = files_of(whole)
    damages: dict[str, Callable[[RunFolder], object]] = {
        "last": lambda run: flip(run.last),
        "best": lambda run: flip(run.best),
        "fp and env": lambda run: [flip(run.fp), run.env_file.write_text("3")],
        "log": lambda run: run.log_file.write_bytes(run.log_file.read_bytes()[:-1] + b"\0"),
    }
    for name, do in damages.items():
        with subtests.test(name):
            run = RunFolder(shutil.copytree("killed", "copy"))
            do(run)
            assert main(["train", "resume=copy"]) == 0
            assert results(run.path) == results(whole)
            found = files_of(run.path)
            if name == "log":
                del found["metrics.jsonl"]
            assert found.items() <= expected.items() and not run.fp_again.exists()
            shutil.rmtree(run.path)


@pytest.mark.slow
def test_a_sweep_that_is_done_makes_again_what_was_damaged(in_folder: Path) -> None:
    arguments = [text for text in FINISHED if text != "quant=w4a4"]
    assert main(["train", "-m", *arguments, "quant=w4a4,w2a2", "fp.reuse=true", "hydra.sweep.dir=sweep"]) == 0
    expected = files_of(Path("sweep/1"))
    assert main(["train", "resume=sweep"]) == 0
    flip(Path("sweep/1/deploy/model.safetensors"))
    assert main(["train", "resume=sweep"]) == 0
    assert files_of(Path("sweep/1")) == expected
    row = json.loads(Path("sweep/0/summary.json").read_text())
    flip(Path("sweep/0/data.json.gz"))  # a neighbour is no measure of the data then, and is no matter to the other job
    shutil.rmtree("sweep/1/deploy")
    assert main(["train", "resume=sweep"]) == 0 and files_of(Path("sweep/1")) == expected
    assert row_of(Path("sweep/0")) == row


def test_a_folder_that_may_not_be_read_is_no_damaged_one(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied", "locked/x")

    Path("locked").mkdir()
    monkeypatch.setattr("repq_cli.runs.folder.read_regular", denied)
    real = os.listdir
    monkeypatch.setattr("os.listdir", lambda path=".": denied() if str(path) == "locked" else real(path))
    for arguments in (["eval", "run=locked"], ["train", "resume=locked"], ["cache", "list", "--root", "locked"]):
        (Path("locked") / "config.yaml").touch()
        assert main(arguments) == 3
        said = capsys.readouterr().err
        assert "locked" in said and "Permission denied" in said and "damaged" not in said

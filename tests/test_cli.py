"""The command line as a person meets it: help, completion, every wrong word with the right one, exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from pkgutil import resolve_name

import pytest
from conftest import QUICK, TINY
from processes import Process

from repq_cli import __version__
from repq_cli.cli import COMMANDS, main
from repq_cli.cli.commands import App
from repq_cli.library.networks import names
from repq_cli.schema import KEYS

Run = Callable[..., tuple[int, Path | None]]


def python(code: str, drop: tuple[str, ...] = (), **environment: str) -> str:
    """Run ``code`` in a new interpreter and return what it prints."""
    command = [sys.executable, "-c", code]
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=kept | environment, timeout=120
    ).stdout


def test_threads_soon_sleep_unless_the_user_has_said_how() -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    code = f"from repq_cli.cli import main; import os; main(['--version']); print(*map(os.environ.get, {names}))"
    for given, found in (
        ({}, ["PASSIVE", "10000"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"]),
        ({"GOMP_SPINCOUNT": "9"}, ["None", "9"]),
    ):
        assert python(code, drop=names, **given).split()[-2:] == found


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert "exit codes" in text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"repq {__version__}\n"
    assert main([]) == 2
    assert "usage: repq COMMAND" in capsys.readouterr().err
    assert main(["trian"]) == 2
    assert "There is no command 'trian'; did you mean 'train'?" in capsys.readouterr().err
    assert main(["zzz"]) == 2
    assert "the commands are train, eval, predict, export, upscale, bench, diagnose, info" in capsys.readouterr().err


def test_every_command_has_what_its_kind_needs() -> None:
    apps = {name: command for name, command in COMMANDS.items() if isinstance(command, App)}
    trees = {
        path.name.removesuffix(".yaml") for path in files("repq_cli.configs").iterdir() if path.name[-5:] == ".yaml"
    }
    assert apps.keys() == KEYS.keys() == trees
    for name, command in COMMANDS.items():
        if isinstance(command, App):
            assert all(callable(resolve_name(entry)) for entry in (command.job, command.start) if entry is not None)
        else:
            assert callable(resolve_name(f"{command.module}:run"))
            assert command.parser().prog == f"repq {name}"


def test_help_and_completion_do_not_import_torch() -> None:
    """One after the other in one process: the first that imports it is named."""
    cases = [["--help"], ["--version"], ["-sc", "query=bash"], ["train", "--help"], ["train", "quant=w4a4"]]
    line = "repq train +model=rep"
    code = (
        f"import sys; from repq_cli.cli import main\nfor arguments in {cases!r}:\n"
        "    main(arguments); assert 'torch' not in sys.modules, arguments"
    )
    python(code, COMP_LINE=line, COMP_POINT=str(len(line)))


OFFERED: list[tuple[str, set[str]]] = [
    ("repq train +model=rep", {"+model=repvgg_a0", "+model=repvgg_a0_cifar", "+model=repvgg_b0", "+model=repvgg_d2se"}),
    ("repq train +model=repvgg_a0 quant=w", {f"quant=w{bits}" for bits in ("1a1", "1a32", "2a2", "4a4", "8a8")}),
    ("repq train quant.weight_b", {"quant.weight_bits="}),
    ("repq info rep=rep", {"rep=repvgg"}),
    ("repq tr", {"train"}),
    ("repq eval engine=in", {"engine=integer"}),
    ("repq train mode=merged,repq_b", {"mode=merged,repq_bn", "mode=merged,repq_bnest"}),
    ("repq train +model=ecbsr data.lo", {"data.low_rounding="}),
    ("repq train fp.reuse=t", {"fp.reuse=true"}),
    ("repq train --cfg j", {"job"}),
    ("repq train --mu", {"--multirun"}),
    ("repq train data=image_folder data.root=run", {"data.root=runs/"}),
    ("repq eval run=outputs/", {"run=outputs/train/done", "run=outputs/train/"}),
    ("repq train resume=outputs/train/", {"resume=outputs/train/done", "resume=outputs/train/half"}),
    ("repq unknown mod", set()),
    ("repq table outp", set()),
    ("repq table --", {"--help", "--table", "--format", "--out", "--published"}),
    ("repq table outputs --format m", {"markdown"}),
    ("repq cache pr", {"prune"}),
    ("repq cache prune --d", {"--days", "--dry-run"}),
]


def test_tab_completion(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    for name, status in (("done", "done"), ("half", "interrupted")):
        (folder := Path("outputs/train", name)).mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        (folder / "summary.json").write_text(f'{{"status": "{status}"}}')
    Path("runs").mkdir()
    for line, words in OFFERED:
        with subtests.test(line):
            monkeypatch.setenv("COMP_LINE", line)
            monkeypatch.setenv("COMP_POINT", str(len(line)))
            assert main(["-sc", "query=bash"]) == 0
            assert set(capfd.readouterr().out.split()) == words


def test_completion_can_be_installed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["-sc", "install=bash"]) == 0
    assert "COMP_LINE" in capfd.readouterr().out


def test_help_of_a_command_lists_groups_and_keys(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capfd.readouterr().out
    for word in ("repvgg_a0", "quant: binaryconnect, bnn", "bnest_init", "Exit codes"):
        assert word in text


def test_cfg_shows_the_composed_configuration_and_makes_no_folder(
    in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "model=repvgg_a0", "quant=w4a4", "--cfg", "job"]) == 0
    assert "weight_bits: 4" in capfd.readouterr().out
    assert list(in_folder.iterdir()) == []


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize("flags", [["--info", "config"], ["--info"], ["--cfg=job"], ["-c", "hydra"], ["--hydra-help"]])
def test_hydras_own_flags_keep_working(flags: list[str], in_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "+model=repvgg_a0", *flags]) == 0
    assert capfd.readouterr().out != ""


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """What ``repq train`` says of wrong arguments; it must leave nothing behind."""
    assert main(["train", *arguments]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("repq: ")
    assert list(Path.cwd().iterdir()) == []
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("fp.checkpoint=nowhere.pth", 3, "There is no checkpoint nowhere.pth"),
        ("fp.checkpoint=", 2, "fp.checkpoint= names nothing: name a run folder or a file of weights, or use null."),
        (f"fp.checkpoint={__file__}", 3, "is a text that begins"),
        ("data=image_folder data.root=nowhere", 3, "data.root=nowhere has no folder 'train'"),
        ("data=cifar10 data.root=nowhere", 3, "data.root=nowhere holds no intact CIFAR10"),
        ("data.batch_size=5000", 2, "is larger than the training split"),
        ("rep.kernels=[9]", 2, "makes no block of this network"),
        ("runtime.device=nonsense", 2, "runtime.device=nonsense is not available here"),
    ],
)
@pytest.mark.parametrize("folder", [[], ["hydra.run.dir=mine"]])
def test_wrong_inputs_leave_no_run_behind(
    arguments: str, code: int, sentence: str, folder: list[str], in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in complaint(capsys, "+model=repvgg_a0", *arguments.split(), *folder, code=code)


def test_a_missing_model_is_said_before_anything_is_composed(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = complaint(capsys, "quant=w4a4")
    assert text == f"repq: +model=… has to be named: one of {', '.join(names('model'))}.\n"


@pytest.mark.no_cover  # many cases of lines that other tests cover as well
@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("quant=w4b4", f"quant=w4b4 must be one of {', '.join(names('quant'))}; did you mean 'w4a4'?"),
        ("mod=plain", "mod=plain is an unknown key; did you mean 'mode'?"),
        ("lr=0.1", "lr=0.1 is an unknown key; write fp.lr=0.1 qat.lr=0.1."),
        ("+new.key=1", "new.key=1 is an unknown key"),
        ("++quant.bits=4", "quant.bits=4 is an unknown key; write quant.weight_bits=4 quant.act_bits=4."),
        ("model.widht=2", "model.widht=2 is an unknown key; did you mean 'model.width'?"),
        ("quant.weight_bits=3.5", "quant.weight_bits=3.5 must be one of 1, 2, 3, 4, 5, 6, 7, 8, 32; the nearest is 3."),
        ("quant.act_bits=16", "quant.act_bits=16 must be one of 1, 2, 3, 4, 5, 6, 7, 8, 32; the nearest is 8."),
        ("quant.residual=itn", "quant.residual=itn must be one of int, fp; did you mean 'int'?"),
        ("quant.first_last=4", "quant.first_last=4 must be one of 8, fp, same, inputs8; the nearest is 8."),
        ("fp.epochs=two", "fp.epochs=two must be a whole number, at least 0."),
        ("qat.lr=0", "qat.lr=0 must be a number, above 0."),
        ("qat.lr=-1e-3", "qat.lr=-0.001 must be a number, above 0."),
        ("data.batch_size=1", "data.batch_size=1 must be a whole number, at least 2."),
        ("data.size=big", "data.size=big must be a whole number, at least 8."),
        ("model.blocks=3", "model.blocks=3 must be a list, each item a whole number, from 1 to 1000."),
        ("seed=-1", "seed=-1 must be a whole number, at least 0."),
        ("runtime.tensorboard=maybe", "runtime.tensorboard=maybe must be true or false."),
        ("mode.stats_fraction=0", "mode.stats_fraction=0 must be a number, from 0 (excluded) to 1."),
        (
            "mode.stats_fraction=0.01",
            "mode.stats_fraction=0.01 leaves 1 of data.batch_size=64 images for statistics, which want two",
        ),
        ("mode.freeze_bn_after=soon", "mode.freeze_bn_after=soon must be a whole number, at least 0 or null."),
        (
            "optim=adamw optim.betas=[0.9]",
            "optim.betas=[0.9] must be a list of 2, each item a number, from 0 to 1 (excluded).",
        ),
        ("verbosity=loud", "verbosity=loud must be one of quiet, normal, debug."),
        ("~seed", "~seed= cannot be removed; set it instead."),
        ("quant=[", "quant=[ cannot be read"),
        ("nonsense", "nonsense is no setting: write key=value"),
        ("rep=ecbsr", f"rep=ecbsr must be one of {', '.join(names('rep'))}"),
        ("data=image_folder", "data.root=… has to be set: name a folder with images in train/CLASS."),
        (
            "model._target_=os.system",
            "model._target_=os.system is none of repq's functions for model and of no package in",
        ),
        ("model._target_=repq_cli.models.repvg.repvg", "did you mean 'repq_cli.models.repvgg.repvgg'?"),
        ("fp.lr=${nothing}", "refers to a key that there is not (nothing), in fp.lr."),
        ("quant=7", "quant=7 must be one of"),
        ("fp=3", "fp=3 must be a group option or a section with keys epochs, patience, lr, checkpoint, format"),
        ("qat.checkpoint=x", "qat.checkpoint=x is an unknown key"),
        ("hydra/launcher=nothing", "hydra/launcher=nothing must be one of"),
        ("hydra/launcher=submitit_slurm", "pip install 'repq[slurm]' brings this one"),
        ("quant=w4a4,w2a2", "quant=w4a4,w2a2 names several values, which is a sweep: add -m"),
        ("seed=range(0,3)", "seed=range(0,3) names several values, which is a sweep: add -m"),
        ("rep=orepa rep.batch_norm=false", "rep.batch_norm=false must be true."),
        ("model.name=a/b", "model.name=a/b comes with the choice of model=; choose another one"),
        ("~quant", "~quant= cannot be removed; choose another option."),
        ("data=null", "data=null must be one of"),
        ("data.size=4", "data.size=4 must be a whole number, at least 8."),
        ("data.crop=-1", "data.crop=-1 must be a whole number, from 0 to 64."),
        ("fp.lr=inf", "fp.lr=inf must be a number, above 0."),
        ("model.width=nan", "model.width=nan must be a number, above 0."),
        ("model.strides=[0,1,1,1,1]", "must be a list, each item a whole number, at least 1."),
        ("runtime.threads=100000000", "runtime.threads=100000000 must be a whole number, from 1 to 1024 or null."),
        ("-m hydra/sweeper=ax", "hydra/sweeper=ax must be one of basic, optuna"),
        ("hydra/sweeper=optuna", "hydra/sweeper=optuna is for a sweep: add -m"),
        ("-m fp.lr=interval(0,1)", "is an interval: list values, or add hydra/sweeper=optuna"),
        ("-m --cfg job", "cannot be used with -m or -r"),
        ("--config-dir", "The flag --config-dir takes a value"),
        ("--config-name zzz", "The flag --config-name cannot be used"),
    ],
)
def test_every_mistake_is_one_sentence_with_the_right_word(
    argument: str, sentence: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in complaint(capsys, "+model=repvgg_a0", *argument.split(" "))


@pytest.mark.no_cover  # many cases of lines that other tests cover as well
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rep=none", "mode=merged"], "mode=merged has nothing to merge with rep=none; use mode=plain"),
        (["fp.epochs=0"], "fp.epochs=0 leaves QAT without FP weights"),
        (["model.blocks=[1,2]"], "model.blocks and model.widths take 4 numbers"),
        (["model.num_classes=3"], "model.num_classes=3 is less than the 10 classes of digits"),
        (["data.batch_size=5000"], "data.batch_size=5000 is larger than the training split of 1259 images"),
        (["runtime.device=warp"], "runtime.device=warp is not available here"),
    ],
)
def test_combinations_that_cannot_work_say_why(
    arguments: list[str], sentence: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "+model=repvgg_a0", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert error.startswith("repq: ")


def test_a_path_of_any_letters_needs_no_quotes(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("my (dir)", "größe", "a=b", "it's"):
        text = complaint(capsys, "+model=repvgg_a0", "data=image_folder", f"data.root={path}", code=3)
        assert text.startswith(f"repq: data.root={path} has no folder 'train'")
    assert """quoted like 'loss="my (loss)"'""" in complaint(capsys, "+model=repvgg_a0", "loss=my (loss)")


def test_all_problems_come_in_one_message(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = complaint(
        capsys, "+model=repvgg_a0", "mod=x", "quant.weight_bits=3.5", "fp.epochs=-1", "rep=none", "mode=merged"
    )
    assert text.startswith("repq: 4 problems in the configuration:\n")
    for key in ("mod=x", "quant.weight_bits=3.5", "fp.epochs=-1", "mode=merged"):
        assert f"\n  {key}" in text


def test_problems_of_a_sweep_are_found_before_it_starts(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = complaint(capsys, "-m", "+model=repvgg_a0", "quant=w4a4,w3a3", "seed=0,one", "mode=repq,mergd")
    assert "quant=w3a3" in text
    assert "seed=one" in text
    assert "did you mean 'merged'?" in text


def test_an_unwritable_output_folder_is_exit_3(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (in_folder / "outputs").write_text("a file in the way")
    assert main(["train", *TINY]) == 3
    error = capsys.readouterr().err
    assert "cannot be made" in error
    assert "hydra.run.dir=DIR" in error
    assert "Traceback" not in error


def test_missing_data_is_exit_3(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "data=cifar10", "data.root=nowhere"]) == 3
    assert "data.root=nowhere holds no intact CIFAR10" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 4"),
    ],
)
def test_no_memory_left_is_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def grow(command: object, name: str, arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(type(COMMANDS["bench"]), "run", grow)
    assert main(["bench"]) == 1
    assert capsys.readouterr().err.startswith("repq: Memory ran out: take smaller batches")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["bench"]) == 1
    assert type(error).__name__ in capsys.readouterr().err  # with its traceback


def test_a_traceback_only_on_request(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["train", "quant=w4a4"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.no_cover  # many cases of lines that other tests cover as well
@pytest.mark.parametrize(
    ("arguments", "model"),
    [
        (["model=repvgg_b0"], "repvgg_b0"),
        (["+model=repvgg_b0"], "repvgg_b0"),
        (["++model=repvgg_b0"], "repvgg_b0"),
        (["experiment=cifar10_repvgg_a0"], "repvgg_a0_cifar"),
        (["+experiment=cifar10_repvgg_a0"], "repvgg_a0_cifar"),
        (["experiment=cifar10_repvgg_a0", "model=repvgg_b0"], "repvgg_b0"),
        (["+model=repvgg_b0", "+experiment=cifar10_repvgg_a0"], "repvgg_b0"),
        (["+experiment=cifar10_repvgg_a0", "+model=repvgg_b0"], "repvgg_b0"),
        (["model=repvgg_b0", "sweep=bits"], "repvgg_b0"),
        (["+sweep=bits", "+experiment=cifar10_repvgg_a0"], "repvgg_a0_cifar"),
        (["+model=repvgg_a0", "rep=none", "sweep=bits", "+experiment=cifar10_repvgg_a0"], "repvgg_a0"),
    ],
)
def test_model_experiment_and_sweep_with_and_without_plus(
    arguments: list[str], model: str, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "--cfg", "job"]) == 0
    assert f"name: {model}\n" in capfd.readouterr().out


def test_a_configuration_folder_of_the_users_is_searched_too(
    in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (in_folder / "mine/quant").mkdir(parents=True)
    (in_folder / "mine/quant/w6a6.yaml").write_text("weight_bits: 6\nact_bits: 6\n")
    arguments = ["train", "+model=repvgg_a0", "--config-dir", str(in_folder / "mine")]
    assert main([*arguments, "quant=w6a6", "--cfg", "job"]) == 0
    assert "weight_bits: 6" in capfd.readouterr().out
    assert main([*arguments, "quant=w6b6"]) == 2
    assert "did you mean 'w6a6'?" in capfd.readouterr().err


def test_a_plugin_package_may_be_named(in_folder: Path, monkeypatch: pytest.MonkeyPatch, run_repq: Run) -> None:
    (in_folder / "my_package.py").write_text(
        "from repq_cli.reparam.repvgg import repvgg_block\n\n\ndef block(geometry, activation=None, identity=True):\n"
        "    return repvgg_block(geometry, activation)\n"
    )
    monkeypatch.syspath_prepend(str(in_folder))
    assert run_repq("train", *QUICK, "rep._target_=my_package.block")[0] == 2
    assert run_repq("train", *QUICK, "rep._target_=my_package.block", "plugins=[my_package]")[0] == 0


def test_batch_norm_modes_need_batch_norm() -> None:
    from repq_cli import build
    from repq_cli.cli.jobs import compose_plain
    from repq_cli.schema import validate

    config = compose_plain(["+model=repvgg_a0", "mode=repq_bn"])
    tree = config.as_dict() | {"rep": config.rep.keys() | {"batch_norm": False}}
    (problem,) = validate(tree, build.target_arguments)
    assert str(problem).startswith("mode=repq_bn needs batch norm, which rep=repvgg has none of")


@pytest.mark.parametrize("folder", ["/proc/nope", "file"])
def test_a_run_folder_that_cannot_be_made_is_exit_3(
    folder: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_folder / "file").write_text("in the way")
    assert main(["train", *TINY, f"hydra.run.dir={folder}"]) == 3
    error = capsys.readouterr().err
    assert "cannot be used" in error
    assert "Traceback" not in error


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_a_reader_that_leaves_early_is_no_error(in_folder: Path) -> None:
    for arguments in ("table --published | head -1", "train --help | true"):
        command = f"{sys.executable} -m repq_cli {arguments}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_training_goes_on_without_a_terminal(in_folder: Path, start_repq: Callable[..., Process]) -> None:
    process = start_repq("train", *QUICK, "verbosity=normal", "hydra.run.dir=mine", log=None)
    assert process.wait() == 0
    assert json.loads((in_folder / "mine/summary.json").read_text())["status"] == "done"


def test_two_runs_of_one_second_get_two_folders(in_folder: Path) -> None:
    from repq_cli.runs.outputs import reserve

    made = {reserve(Path("outputs/train"), "a") for _ in range(4)}
    assert len(made) == 4
    assert all(path.is_dir() for path in made)


IMAGENET = ["input_shape=[3,224,224]", "model.num_classes=1000"]


@pytest.mark.no_cover  # many cases of lines that other tests cover as well
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+model=repvgg_a0", "quant=w4a4"], ["mode repq_bnest", "7,839,818", "7,040,330", "dense+point+identity"]),
        (["+model=repvgg_a0", *IMAGENET, "quant.first_last=same"], ["9,108,968", "8,309,384", "1361.451", "87.133"]),
        (["+model=repvgg_b0", *IMAGENET, "quant=w4a4"], ["15,817,960", "14,339,048", "3057.601", "50.0"]),
        (
            ["+model=resnet18", "rep=orepa", *IMAGENET, "quant=w4a4"],
            ["11,684,712", "1814.073", "34.7", "orepa deep", "BN(dense+average+frequency+point_dense+point"],
        ),
        (["+model=resnet18", "rep=acnet", "mode=branchwise", "quant=w4a4"], ["square+row+column", "branchwise"]),
        (
            ["experiment=imagenet_qarepvgg_a0"],
            ["imagenet: 3x224x224, 1000 classes", "qarepvgg v2", "BN(dense+point+identity)"],
        ),
        (["+model=resnet18", "data=svhn"], ["SVHN: 3x32x32, 10 classes"]),
    ],
)
def test_info_shows_the_network(
    arguments: list[str], words: list[str], in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layer by layer with totals, and without the images where the data set is a known one."""
    assert main(["info", *arguments]) == 0
    text = capsys.readouterr().out
    for word in [*words, "in training", "MMACs", "GBOPs", "bytes", "torch"]:
        assert word in text
    assert list(in_folder.iterdir()) == []


def test_totals_of_info_are_the_sums_of_its_lines(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "+model=resnet18_cifar", "rep=dbb", "model.width=0.25", "quant=w4a4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines[lines.index(next(x for x in lines if x.startswith("layer"))) + 1 :]]
    *layers, total = table[: next(index for index, words in enumerate(table) if words and words[0] == "total") + 1]
    for column in (-5, -4, -1):  # parameters and bytes are whole numbers
        numbers = [int(words[column].replace(",", "")) for words in layers]
        assert sum(numbers) == int(total[column].replace(",", ""))
    for column in (-3, -2):
        assert sum(float(words[column]) for words in layers) == pytest.approx(float(total[column]), abs=0.02)


REFUSED = [
    ("rep=none mode=branchwise", "mode=branchwise has no branches to quantize with rep=none"),
    (
        "mode=branchwise quant=fp32",
        "mode=branchwise has nothing to quantize at quant.weight_bits=32; use 8 or less.",
    ),
    ("rep=none mode=merged", "mode=merged has nothing to merge with rep=none"),
    ("rep=acnet optim.custom_l2=true", "optim.custom_l2=true is the penalty of RepVGG's blocks"),
    ("mode=plain optim.custom_l2=true", "it needs rep=repvgg with batch norm and a mode other than plain"),
    ("rep.kernels=[5]", "rep.kernels=[5] makes no block of this network, whose kernels are of size 3"),
    ("rep.kernels=[0]", "rep.kernels=[0] must be a list, each item a whole number, at least 1."),
    ("model.groups=7", "Layer blocks.2: groups=7 must divide in_channels=48"),
    ("model=resnet18 rep=acnet rep.kernels=[1,3]", "Layer stages.1.0.shortcut: rep=acnet adds a middle row"),
    ("rep=qarepvgg rep.variant=v5", "rep.variant=v5 must be one of v1, v2, v3, v4"),
    ("fp.format=repvgg", "fp.format=repvgg must be one of auto, repq, torchvision, timm, repvgg_official"),
    ("mode=ptqq", "did you mean 'ptq'?"),
    ("fp.format=torchvision", "fp.format=torchvision has no file to describe; set fp.checkpoint as well."),
    ("fp.head=new", "fp.head=new has no file to describe; set fp.checkpoint as well."),
    ("optim.bias_lr=-1", "optim.bias_lr=-1 must be a number, at least 0."),
    ("rep.gamma_init=1", "rep.gamma_init=1 is an unknown key"),
]


@pytest.mark.no_cover  # many cases of lines that other tests cover as well
def test_blocks_and_modes_that_cannot_be_are_refused(
    in_folder: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    for arguments, sentence in REFUSED:
        with subtests.test(arguments=arguments):
            given = arguments.split()
            model = [] if any(word.startswith("model=") for word in given) else ["+model=repvgg_a0"]
            assert main(["train", *model, *given]) == 2
            assert sentence in capsys.readouterr().err

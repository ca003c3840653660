"""A thousand wrong command lines: each is carried out, or one sentence with exit code 2 or 3; never a traceback."""

# ruff: noqa: SIM905 (lists of words read better as text)

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from repq_cli.cli import jobs, main, sweep
from repq_cli.schema import KEYS

LONG = "a" * 300
VALUES = [
    *"0 -1 1e308 5e-324 -0.0 nan inf .5 1_000 99999999999999999999 true null ~ [] [1] [0,0] [a,[b]] {} a,b".split(),
    *"[ { } \" ' a=b ${nothing} ${oc.env:NOTHING} ${ ${oc.decode:[} ${hydra:job.num} ${repq_run_dir:} $ \\ #".split(),
    *"builtins.ValueError repq_cli.errors.ConfigError os.system !!python/name:os.system *a privateuseone".split(),
    *"cuda:99 meta mps /dev/null /dev/null/x ../.. . / ~/x \u202e é auto w4a4 digits resnet18 none sgd joblib".split(),
    *"range(0) glob(*) choice() interval(0,1) sort(a) range(1,1e9) tag(a) int(1) 1:2 00 0x 1e -- -m %s {0} ...".split(),
    *("", "{a: b}", "{a: {b: [1]}}", "'a b'", "&a b", "\t", "a\nb", LONG),
]
KEYS_TO_SET = [
    *"model rep data quant mode optim schedule runtime experiment sweep hydra seed model.width model.blocks".split(),
    *"model.name model._target_ rep.kernels rep._target_ data.batch_size data.size data.crop fp.lr fp.epochs".split(),
    *"fp.checkpoint qat.lr optim.betas optim.weight_decay optim.decay_also schedule.warmup_epochs".split(),
    *"runtime.device runtime.threads quant.weight_bits plugins quant.layers mode.freeze_bn_after task".split(),
    *"verbosity psnr_rounding input_shape nothing a.b hydra.verbose hydra.run.dir hydra.job.name hydra.mode".split(),
    *"hydra.launcher hydra/launcher hydra.job hydra.sweep.dir hydra.callbacks hydra/job_logging resume".split(),
    *"hydra.output_subdir hydra.job.env_set hydra.searchpath hydra.sweeper.params hydra.help data@x .".split(),
    *("hydra.job_logging", "model@_global_", LONG),
]
FLAGS = [
    "-m",
    "--multirun",
    "--config-dir",
    "--config-name",
    "--cfg",
    "--info",
    "--package",
    "--resolve",
    "-x",
    "--",
    "-",
]
PREFIXES = ["", "", "", "", "+", "++", "~"]
OTHERS = ["eval", "predict", "export", "upscale", "bench", "diagnose", "table", "plot", "report", "cache"]
# What was found first, so that it is tried each time.
FOUND = [
    ["train", "+model=repvgg_a0", "~model"],
    ["train", "+model=repvgg_a0", "hydra.verbose=[1]"],
    ["train", "+model=repvgg_a0", "rep._target_=repq_cli.errors.ConfigError"],
    ["train", "+model=repvgg_a0", "runtime.device=privateuseone"],
    ["train", "+model=repvgg_a0", "model.width=1e300"],
    ["train", "+model=repvgg_a0", "fp.lr=1e308"],
    ["train", "+model=repvgg_a0", "seed=99999999999999999999"],
    ["train", "+model=repvgg_a0", "data=image_folder", f"data.root={LONG}"],
    ["train", "+model=repvgg_a0", "-m", "seed=glob(*)"],
    ["train", "+model=repvgg_a0", "-m", "seed=range(1,1000000000)"],
    ["train", "+model=repvgg_a0", "optim=5e-324"],
    ["train", f"resume={LONG}"],
    ["train", "resume=auto", "+model=repvgg_a0", "runtime.threads=["],
    ["eval", f"run={LONG}"],
    ["table", LONG],
]


def lines(generator: random.Random, count: int) -> Iterator[list[str]]:
    """Command lines, most of a command that trains, with one to three things that may be wrong."""
    for _ in range(count):
        command = generator.choice(["train"] * 6 + ["info"] + OTHERS)
        words = ["+model=repvgg_a0"] if command in ("train", "info") and generator.random() < 0.9 else []
        own = list(KEYS.get(command, ())) if generator.random() < 0.5 else KEYS_TO_SET
        for _ in range(generator.randint(1, 3)):
            if generator.random() < 0.1:
                words.append(generator.choice(FLAGS))
            key, value = generator.choice(own or KEYS_TO_SET), generator.choice(VALUES)
            words.append(f"{generator.choice(PREFIXES)}{key}={value}" if generator.random() < 0.95 else value)
        yield [command, *words]


@pytest.mark.parametrize("count", [10, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_wrong_command_lines_end_in_a_sentence(
    count: int, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained: what could be is cut off where a job would begin."""
    monkeypatch.setattr(jobs, "run_job", lambda tree: 0.0)
    monkeypatch.setattr(sweep, "_launch", lambda *arguments: (0, None))
    (in_folder / "broken").mkdir()
    (in_folder / "broken/x.yaml").write_text("a: [")
    refused = 0
    for number, line in enumerate([*FOUND, *lines(random.Random(0), count)]):
        torch.set_num_threads(1)
        try:
            code = main(line)
        except SystemExit as stop:  # argparse's
            code = int(stop.code or 0)
        except BaseException as error:
            raise AssertionError(line) from error
        said = capsys.readouterr().err
        unfinished = code == 1 and ({"-m", "--multirun"} & set(line) or "Memory ran out" in said)
        assert code in (0, 2, 3) or unfinished, (line, code, said)
        assert "Traceback" not in said, (line, said)
        assert code in (0, 1) or re.search(r"^(repq: |usage: )", said, re.MULTILINE), (line, said)
        refused += code != 0
        assert number >= len(FOUND) or code in (2, 3), (line, said)
    assert refused > count / 2


BROKEN = [
    *("a: [", "\t", "a: b: c", "- 1", "3", "[" * 2000, "a: &a {b: *a}"),
    *("!!python/name:os.system", "\x00", "a: !x 1", "? {}", '"'),
]


def test_a_broken_file_of_the_users_is_named(
    in_folder: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    for group in ("experiment", "quant", "sweep"):
        (in_folder / group).mkdir()
    for number, text in enumerate(BROKEN):
        group = ("experiment", "quant", "sweep")[number % 3]
        with subtests.test(f"{group}: {text[:20]!r}"):
            (in_folder / group / "x.yaml").write_text(text)
            assert main(["train", "+model=repvgg_a0", f"{group}=x", "--config-dir", "."]) == 2
            assert capsys.readouterr().err.startswith("repq: ")

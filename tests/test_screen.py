"""What stands on a terminal: lines that end at words, colours, commands to copy, and guesses at what was meant."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from repq_cli.cli import main
from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.terminal import Shown, complaint
from repq_cli.text import command, setting

RUN = ["train", "+model=repvgg_a0"]
MEANT: list[tuple[list[str], str]] = [
    ([*RUN, "--epochs", "3"], "write fp.epochs=3 qat.epochs=3."),
    ([*RUN, "--lr=0.1"], "write fp.lr=0.1 qat.lr=0.1."),
    ([*RUN, "--batch-size", "32"], "write data.batch_size=32."),
    ([*RUN, "--gpu", "0"], "write runtime.device=cuda."),
    ([*RUN, "--dry-run"], "--cfg job (shows the configuration) or fast_dev_run=true"),
    ([*RUN, "--help-all"], "--help (groups and keys) or --cfg job"),
    ([*RUN, "--seed", "3"], "write seed=3."),
    ([*RUN, "--bn-momentum"], "options are key=value, and repq train --help lists the keys"),
    ([*RUN, "--multrun"], "did you mean --multirun?"),
    ([*RUN, "amp=true"], "amp=true is an unknown key; write runtime.precision=bf16."),
    ([*RUN, "epochs=3"], "write fp.epochs=3 qat.epochs=3."),
    ([*RUN, "bs=32"], "write data.batch_size=32."),
    ([*RUN, "device=cuda"], "write runtime.device=cuda."),
    ([*RUN, "fp.checkpoint=a,b"], """quote it: 'fp.checkpoint="a,b"'"""),
    (["eval", "run=a,b"], """names several values, and takes one; for one name with commas, quote it: 'run="a,b"'."""),
    (["eval", "run=a", "engine=onnx,fp"], "engine=onnx,fp names several values, and takes one."),
    ([*RUN, "fp.epochs", "=", "3"], "write it as one word, fp.epochs=3."),
    ([*RUN, "fp.epochs=", "3"], "write it as one word, fp.epochs=3."),
    ([*RUN, "fp.epochs", "=3"], "write it as one word, fp.epochs=3."),
    ([*RUN, "model.blocks=[1,", "1,", "1]"], "write it as one word, 'model.blocks=[1,1,1]'."),
    (["train", "+modle=repvgg_a0"], "modle=repvgg_a0 is an unknown key; did you mean 'model'?"),
    (["export", "run=a", "out=b.onnx"], "out=b.onnx names a folder"),
    (["table", "--format", "html"], "repq table: --format: invalid choice: 'html'"),
    (["table", "--tabel", "overview"], "did you mean --table?"),
    (["cache"], "repq cache: the following arguments are required: list | prune"),
    (["eval", "run=a", "--bn-momentum", "3"], "options are key=value, and repq eval --help lists the keys"),
    (["upscale", "run=a", "in=b", "out=c", "--device", "cuda"], "write device=cuda"),
    (["eval", "run=a", "--lr", "0.1"], "There is no flag --lr: options are key=value"),
    ([*RUN, "data.root=a"], "write data=NAME beside it, for data that has such a key."),
    ([*RUN, "seed"], "seed is no setting: write key=value."),
    ([*RUN, "fp.lr=${oc.nothing:a}"], "holds ${NAME:…} with a NAME that nobody knows"),
    ([*RUN, "fp.lr=${"], "cannot be read"),
    ([*RUN, f"seed={'a' * 5000}"], "…"),
    ([*RUN, f"{'k' * 5000}=1"], "…"),
]


def test_what_was_meant_is_said(in_folder: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests) -> None:
    for arguments, sentence in MEANT:
        with subtests.test(" ".join(arguments)[:60]):
            assert main(arguments) == 2
            said = capsys.readouterr().err
            assert sentence in said
            assert len(said) < 700 and "omegaconf" not in said.lower() and "full_key" not in said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_end_at_words_and_colours_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "data.root=/home/somebody/pictures has no folder 'train': it takes train/CLASS/IMAGE. " * 3
    for columns, environment, coloured in (
        (80, {}, True),
        (200, {}, True),
        (40, {"NO_COLOR": "1"}, False),
        (80, {"TERM": "dumb"}, False),
    ):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", Shown(screen, bars=True))
        complaint(sentence)
        text = screen.getvalue()
        assert ("\x1b[31m" in text) == coloured
        plain = text.replace("\x1b[31m", "").replace("\x1b[0m", "")
        assert plain.startswith("repq: data.root") and plain.split() == f"repq: {sentence}".split()
        assert all(len(line) <= min(columns, 120) for line in plain.splitlines())
        printed = Terminal()  # what a command prints fits as well, but for tables of Markdown and what programs read
        print(sentence, f"| {sentence}", file=Shown(printed, bars=False), sep="\n")
        *lines, table = printed.getvalue().splitlines()
        assert table == f"| {sentence}" and all(len(line) <= min(columns, 120) for line in lines)
        Shown(printed, bars=False).writelines([sentence])
        assert printed.getvalue().endswith(sentence)
    quiet = io.StringIO()  # a file, or a pipe: one line, which can be searched
    monkeypatch.setattr(sys, "stderr", Shown(quiet, bars=True))
    complaint(sentence)
    assert quiet.getvalue() == f"repq: {sentence}\n"


def test_commands_can_be_copied_and_home_is_found(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "resume=runs/my run") == "repq train 'resume=runs/my run'"
    assert command("eval", setting("run", 'a,"b"')) == """repq eval 'run="a,\\"b\\""'"""
    home = os.path.expanduser("~")
    parsed = CommandLine.parse(["run=~/a", "data.train=[~/b,'~/c']", "data.test={set5: ~/d}", "seed=~/e"])
    assert parsed.overrides == [
        f"run={home}/a",
        f"data.train=[{home}/b,'{home}/c']",
        f"data.test={{set5: {home}/d}}",
        "seed=~/e",
    ]
    (folder := Path("my run")).mkdir()
    (folder / "summary.json").write_text('{"status": "interrupted"}')
    assert main(["eval", "run=my run"]) == 3
    assert "go on with it by repq train 'resume=my run'." in capsys.readouterr().err
    for name in ("eval", "export", "diagnose"):
        assert main([name, "run=nowhere"]) == main(["train", "resume=nowhere"]) == main(["table", "nowhere"]) == 3
        assert main([name, "run="]) == main(["train", "resume="]) == 2

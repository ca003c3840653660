"""Every command of README and docs is one that repq understands; links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from repq_cli.cli import main
from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.overrides import Checker

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
COMMAND = re.compile(r"(?:    |```\w*\n)?(?:\$ )?(?:scripts/)?repq (?P<words>.+)")
READS_FILES = ("table", "plot", "report", "cache")


def commands(page: Path) -> Iterator[list[str]]:
    """The words of those that stand on lines of their own: indented or fenced, and not answered with a complaint."""
    lines = re.sub(r"\\\n\s*", "", page.read_text()).splitlines()
    for line, answer in zip(lines, [*lines[1:], ""], strict=True):
        found = COMMAND.fullmatch(line)
        shown = line.startswith((" ", "$")) or (found and found["words"].split()[0] in READS_FILES)
        if found and shown and "..." not in line and "…" not in line and not answer.strip().startswith("repq:"):
            yield shlex.split(found["words"], comments=True)


def one_job(words: list[str]) -> list[str]:
    """The first of a sweep's jobs, in this process."""
    if not {"-m", "--multirun"} & set(words):
        return words
    kept = [word for word in words if not word.startswith(("-m", "--multirun", "hydra"))]
    kept = [re.sub(r"=.*interval\((.*?),.*", r"=\1", word) for word in kept]
    return [word if "[" in word or "{" in word else word.split(",")[0] for word in kept]


def test_every_command_of_the_pages_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """What needs files is composed, or its flags are read; what resumes a run has its configuration."""
    monkeypatch.chdir(tmp_path)
    found = {tuple(one_job(words)): page for page in PAGES for words in commands(page)}
    assert len(found) > 40
    for words, page in found.items():
        if any(word.startswith("resume=") for word in words):
            continue
        with subtests.test(page=page.name, command=shlex.join(words)):
            if words[0] in READS_FILES:
                import_module(f"repq_cli.cli.{words[0]}").parser().parse_args(words[1:])
                continue
            if words[0].startswith("-"):
                assert main(list(words)) == 0
                continue
            composed = "train" if words[0] == "info" else words[0]  # which composes what train does
            Checker(composed, CommandLine.parse([*words[1:], "--cfg", "job"])).check()


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_results_are_what_their_rows_say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables of docs/RESULTS.md, byte for byte."""
    monkeypatch.chdir(ROOT)
    assert main(["table", "docs/results"]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "RESULTS.md").read_text()

"""What submitit asks of Slurm, on this machine: ``sbatch``, ``srun``, ``sacct`` and ``scontrol requeue``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

NAMES = ("sbatch", "srun", "sacct", "scontrol")


def install(folder: Path) -> None:
    """Scripts of these names in ``folder``, which keeps their state."""
    for name in NAMES:
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {folder} {name} "$@"\n')
        script.chmod(0o755)


def sbatch(folder: Path, script: str) -> None:
    """Start every task of the array, each in a process that starts it again as long as that is asked for."""
    last = int(re.search(r"--array=0-(\d+)", Path(script).read_text())[1])  # type: ignore[index]
    for task in range(last + 1):
        command = [sys.executable, __file__, folder, "node", script, str(task)]
        subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("Submitted batch job 77")


def node(folder: Path, script: str, task: str) -> None:
    """A task on its node, from its first start to its end."""
    env = os.environ | {"SLURM_JOB_ID": f"77{task}", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": task}
    asked = folder / f"requeue 77_{task}"
    while True:
        subprocess.run(["bash", script], env=env, check=False)
        if not asked.exists():
            break
        asked.unlink()
        (folder / f"started again 77_{task}").touch()
    (folder / f"ended 77_{task}").touch()


def srun(folder: Path, *words: str) -> None:
    """Become what is to run."""
    rest = list(words)
    while rest[0].startswith("-"):
        del rest[: 2 if rest[0] in ("--output", "--error") else 1]
    os.execvp(rest[0], rest)


def sacct(folder: Path, *words: str) -> None:
    """The state of all tasks."""
    print("JobID|State|NodeList")
    for task in range(10):
        state = "COMPLETED" if (folder / f"ended 77_{task}").exists() else "RUNNING"
        print(f"77_{task}|{state}|here")


def scontrol(folder: Path, word: str, job: str) -> None:
    """Only ``requeue``."""
    assert word == "requeue"
    (folder / f"requeue {job}").touch()


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]), *sys.argv[3:])

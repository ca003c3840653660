"""What each command prints: the commands below, carried out one after the other in one empty folder.

A line is a heading or a command. Behind ``!! TEXT`` it is stopped by Ctrl-C as soon as it prints TEXT; behind ``<< N``
its first N lines are shown.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TINY = "+model=repvgg_a0 'model.blocks=[1,1,1,1]' model.width=0.125 data.size=16 runtime.threads=1"
SCRIPT = f"""\
## Before training
repq --version
repq info {TINY} quant=w4a4 << 21
repq train {TINY} quant=w4a4 fast_dev_run=true
## A run
repq train {TINY} quant=w4a4 fp.epochs=2 qat.epochs=3 hydra.run.dir=run
repq eval run=run
repq eval run=run engine=integer
repq predict run=run in=pictures out=classes.csv
head -n 3 classes.csv
repq diagnose run=run
repq export run=run
repq bench "runs=[run]" rounds=5 threads=1 out=timing
## Stopped, gone on with, and longer
repq train {TINY} quant=w4a4 fp.epochs=2 qat.epochs=4 hydra.run.dir=second !! QAT epoch   1/4
repq train resume=second
repq train resume=second qat.epochs=5
## A sweep
repq train -m {TINY} fp.epochs=2 qat.epochs=2 quant=w4a4 mode=merged,repq_bn,repq_bnest hydra.sweep.dir=sweep
repq table sweep --table overview
repq plot sweep --out figures
repq report sweep --out page.html
repq cache list
## Pictures
repq train +model=ecbsr_m4c8 fp.epochs=1 qat.epochs=1 data.batch_size=16 hydra.run.dir=pictures_run runtime.threads=1
repq upscale run=pictures_run in=pictures/0.png out=large
## Mistakes
repq train +model=repvgg_a0 --epochs 3
repq train +model=repvgg_a0 amp=true
repq train +model=repvgg_a0 mod=merged quant=w4b4
repq train +model=repvgg_a0 data=image_folder data.root=nowhere
repq train {TINY} quant=w4a4 fp.epochs=2 qat.epochs=3 hydra.run.dir=run
repq predict run=run in=pictures out=classes.csv
repq eval run=nothing
repq train resume=nothing
repq table nothing
"""


def main() -> None:
    """Write the page."""
    page = Path(sys.argv[1])
    parts = [
        "# What each command prints\n\n"
        "Made by `scripts/record`, real output, as files get it (terminals break lines at words and show bars), of "
        "networks\n"
        "that are too small to be good. An exit code other than 0 stands behind. Times are those of a busy machine."
    ]
    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder, "pictures"))
        for line in SCRIPT.splitlines():
            parts.append(line if line.startswith("#") else recording(line, folder))
            print(parts[-1], flush=True)
    page.write_text("\n\n".join(parts) + "\n")


def pictures(folder: Path) -> None:
    """A few handwritten digits as files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir()
    for number, image in enumerate(load_digits().images[:5]):
        Image.fromarray((image * 255 / 16).astype("uint8")).save(folder / f"{number}.png")


def recording(line: str, folder: str) -> str:
    """A command and its output, fenced."""
    line, _, most = line.partition(" << ")
    line, _, stop = line.partition(" !! ")
    found = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    words = ["/bin/bash", "-c", f"exec {line}"]
    process = subprocess.Popen(  # noqa: S603 of our own lines
        words, cwd=folder, env=os.environ | found, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    printed = ""
    for text in process.stdout:
        printed += text
        if stop and stop in text:
            process.send_signal(signal.SIGINT)
            stop = ""
    code = process.wait()
    if most:
        printed = "".join([*printed.splitlines(keepends=True)[: int(most)], "...\n"])
    ending = f"[exit code {code}]\n" if code else ""
    return f"```console\n$ {line}\n{printed}{ending}```"


if __name__ == "__main__":
    main()

"""``fast_dev_run=true``: two steps of everything, of which nothing is left."""

from __future__ import annotations

from pathlib import Path
from tempfile import gettempdir

import pytest
from conftest import TINY
from PIL import Image

from repq_cli.cli import main
from repq_cli.data.trial import STEPS
from repq_cli.train.stage import StageTrainer


def test_a_trial_takes_two_steps_of_everything_and_leaves_nothing(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    take = StageTrainer._take
    monkeypatch.setattr(StageTrainer, "_take", lambda *a: taken.append(a[0].stage.name) or take(*a))  # type: ignore[func-returns-value]
    before = set(Path(gettempdir()).glob("repq-trial-*"))
    line = ["train", *(text for text in TINY if "epochs" not in text and "reuse" not in text), "fast_dev_run=true"]
    assert main([*line, "verbosity=normal", "fp.epochs=100"]) == 0
    said = capsys.readouterr().out
    assert "works" in said and "nothing is kept" in said and "top1" not in said
    assert taken == ["fp"] * STEPS + ["qat"] * STEPS
    assert not list(in_folder.glob("outputs/train/*")) and not list(in_folder.glob("outputs/cache/fp/*"))
    for label in ("a", "b"):
        for split in ("train", "test"):
            (folder := Path("mine", split, label)).mkdir(parents=True)
            for number in range(9):
                Image.new("L", (32, 32), 25 * number).save(folder / f"{number}.png")
    Path("mine/test/b/8.png").write_bytes(b"broken, and not looked at")
    assert main([*line, "data=image_folder", "data.root=mine", "data.disk_cache=true"]) == 0
    assert not Path("outputs/cache/images").exists()
    capsys.readouterr()

    # Of a sweep each run that can be is tried, and what is broken in one hides no other.
    weights = Path("weights.pt")
    weights.write_bytes(b"no weights")
    assert main([*line, "-m", "fp.checkpoint=null,weights.pt", "mode=plain", "verbosity=normal"]) == 3
    out, err = capsys.readouterr()
    assert "1 of 2 ran two steps" in out and "weights.pt" in err
    assert main([*line, "hydra.run.dir=kept"]) == 2
    assert main([*line, "qat.lr=nothing"]) == 2
    assert set(Path(gettempdir()).glob("repq-trial-*")) <= before and not Path("outputs/sweep").exists()

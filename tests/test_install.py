"""Installation: a wheel that works from any folder, and scripts that install once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def check_output(*command: object, **options: object) -> str:
    return subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True, timeout=240, **options
    ).stdout  # type: ignore[call-overload, no-any-return]


def test_a_wheel_composes_its_configuration_from_any_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "outputs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    check_output(sys.executable, *build)
    (wheel,) = tmp_path.glob("*.whl")
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "repq_cli").rglob("*.py")}
    assert ours <= set(zipfile.ZipFile(wheel).namelist()), "a package that pyproject.toml does not list"
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    # The new environment sees the packages of this one, but not the editable installation of the project.
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    check_output(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    repq = tmp_path / "venv/bin/repq"
    text = check_output(repq, "train", "+model=repvgg_a0", "quant=w4a4", "--cfg", "job", cwd=elsewhere)
    assert "name: repvgg_a0" in text
    assert "72.41" in check_output(repq, "table", "--published", cwd=elsewhere)
    page = tmp_path / "page.html"
    assert "34 runs" in check_output(repq, "report", ROOT / "tests" / "table_rows", "--out", page, cwd=elsewhere)
    code = "import repq_cli, repq_cli.configs as configs; print(repq_cli.__file__, configs.__file__)"
    where = check_output(python, "-c", code, cwd=elsewhere)
    assert all(path.startswith(str(tmp_path)) for path in where.split())
    assert list(elsewhere.iterdir()) == []


FAKE_PYTHON = """\
#!/bin/bash
# Stands for python3: counts installations and can be told to fail.
case "$*" in
    *version_info*) exit 0 ;;
    *sha256*) exec {python} "$@" ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; printf '#!/bin/bash\\necho ran "$@"\\n' > "$3/bin/repq"
        chmod +x "$3/bin/repq" ;;
    *"import pip"*) [ -e "$(dirname "$0")/repq" ] ;;
    *"pip install"*) echo "$*" >> {log}; [ ! -e {fail} ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the scripts and a Python that only counts."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    fake = tmp_path / "python3"
    fake.write_text(FAKE_PYTHON.format(python=sys.executable, log=tmp_path / "log", fail=tmp_path / "fail"))
    fake.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(fake))
    return tmp_path


def run_script(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "scripts/repq"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60, env=dict(os.environ))


def installations(checkout: Path) -> int:
    log = checkout / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_scripts_install_once_and_again_when_pyproject_changes(checkout: Path) -> None:
    first = run_script(checkout, "train", "+model=repvgg_a0")
    assert (first.returncode, first.stdout) == (0, "ran train +model=repvgg_a0\n")
    assert installations(checkout) == 1
    assert run_script(checkout).stderr == ""
    assert installations(checkout) == 1
    (checkout / "pyproject.toml").write_text("[project]\nname = 'changed'\n")
    assert run_script(checkout).returncode == 0
    assert installations(checkout) == 2


def test_an_interrupted_installation_is_taken_up_again(checkout: Path) -> None:
    (checkout / "fail").touch()
    failed = run_script(checkout)
    assert failed.returncode == 3
    assert "run the same command again" in failed.stderr
    (checkout / "fail").unlink()
    assert run_script(checkout, "x").stdout == "ran x\n"
    assert installations(checkout) == 2


def test_a_half_made_environment_is_made_anew(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").write_text("broken")
    assert run_script(checkout, "x").stdout == "ran x\n"


def test_an_old_python_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for tool in ("bash", "dirname", "flock", "env"):
        os.symlink(shutil.which(tool) or f"/bin/{tool}", empty / tool)
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv("PYTHON")
    result = run_script(checkout)
    assert result.returncode == 3
    assert "Python 3.10 or newer" in result.stderr

"""``repq report`` in headless Chromium: nothing is fetched, every figure shows, every table sorts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from synthetic_runs import ROWS

from repq_cli.cli import main

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH: apt-get install chromium")

# Stands before all else in a copy of the page: clicks every heading three times, and writes down what comes of it.
PROBE = """
const problems = [];
addEventListener("error", (event) => problems.push(String(event.message || event.target.outerHTML)), true);
addEventListener("securitypolicyviolation", (event) => problems.push(`${event.violatedDirective} ${event.blockedURI}`));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
for (const name of ["error", "warn", "log"]) console[name] = (...words) => problems.push(words.join(" "));
addEventListener("load", () => {
  const headings = (table) => [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const cells = (table, index) => [...table.tBodies[0].rows].map((row) => row.cells[index]);
  const state = (table, heading, index) => ({
    sorts: headings(table).map((other) => other.getAttribute("aria-sort")),
    texts: cells(table, index).map((cell) => cell.textContent),
    values: cells(table, index).map((cell) => cell.dataset.value ?? null),
  });
  const clicked = (table, heading, index) => {
    heading.querySelector("button").click();
    return state(table, heading, index);
  };
  const columns = [...document.querySelectorAll("table")].map((table) =>
    headings(table).map((heading, index) => ({
      name: heading.textContent,
      numeric: heading.classList.contains("number"),
      before: state(table, heading, index),
      after: [1, 2, 3].map(() => clicked(table, heading, index)),
    }))
  );
  const found = {
    problems,
    columns,
    images: [...document.images].map((image) => image.naturalWidth),
    fetched: performance.getEntriesByType("resource").map((entry) => entry.name),
    widths: [document.documentElement.scrollWidth, innerWidth],
    padding: getComputedStyle(document.querySelector("th")).paddingLeft,
  };
  const place = document.createElement("pre");
  place.id = "found";
  place.textContent = JSON.stringify(found);
  document.body.append(place);
});
"""


class Found(HTMLParser):
    """What the probe wrote."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside, self.text = False, ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = ("id", "found") in attrs

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""


def probed(page: str) -> str:
    """The page with the probe, which its policy is told to allow."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    allowed, count = re.subn("script-src ('[^']+')", rf"script-src \1 'sha256-{digest}'", page, count=1)
    changed = allowed.replace('<meta name="viewport"', f'<script>{PROBE}</script>\n<meta name="viewport"', 1)
    assert count == 1 and changed != allowed
    return changed


def opened(page: Path, screenshot: Path, folder: Path) -> dict[str, Any]:
    """Open a page in a window nearly as narrow as a phone, with no way to the network; what the probe found."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=390,844"]
    flags += [f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-dev-shm-usage"]
    flags += ["--no-first-run", "--disable-background-networking", "--enable-logging=stderr", "--dump-dom"]
    command = [str(CHROMIUM), *flags, f"--screenshot={screenshot}", page.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in ended.stderr, ended.stderr
    found: dict[str, Any] = json.loads(Found(ended.stdout).text)
    return found


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one screenshot goes."""
    return tmp_path_factory.mktemp("shot") / "page.png"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, shot: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("browser")
    assert main(["report", str(ROWS), "--out", str(folder / "page.html")]) == 0
    copy = folder / "copy.html"
    copy.write_text(probed((folder / "page.html").read_text()))
    return opened(copy, shot, folder / "profile")


def test_nothing_is_fetched_and_nothing_complains(found: dict[str, Any]) -> None:
    assert found["problems"] == []
    assert [name for name in found["fetched"] if not name.startswith("data:")] == []


def test_every_figure_shows(found: dict[str, Any]) -> None:
    assert len(found["images"]) > 0 and all(width > 0 for width in found["images"])


def test_the_style_holds_and_only_tables_are_wider_than_a_phone(found: dict[str, Any], shot: Path) -> None:
    assert found["padding"] == "8px"  # as the rules for phones say
    width, window = found["widths"]
    assert width <= window <= 500  # Chromium makes no narrower ones
    with Image.open(shot) as image:
        colours = image.convert("L").getextrema()
    assert colours[0] < 100 and colours[1] > 240


def test_every_column_of_every_table_sorts_both_ways_and_back(found: dict[str, Any]) -> None:
    assert len(found["columns"]) > 10
    for column in (column for table in found["columns"] for column in table):
        up, down, back = column["after"]
        assert back == column["before"] and set(back["sorts"]) == {None}
        for state, direction in ((up, "ascending"), (down, "descending")):
            assert sorted(map(str, state["sorts"])) == sorted([direction, *["None"] * (len(state["sorts"]) - 1)])
            assert sorted(state["texts"]) == sorted(back["texts"])
        if column["numeric"]:
            ups, downs = ([float(text) for text in state["values"] if text is not None] for state in (up, down))
            assert ups == sorted(ups) and downs == ups[::-1]
            kept = [state["values"][: len(ups)] for state in (up, down)]
            assert None not in kept[0] + kept[1]  # lines without a number stay last
        else:
            ups, downs = ([text for text in state["texts"] if text] for state in (up, down))
            assert downs == ups[::-1] and up["texts"][: len(ups)] == ups and down["texts"][: len(ups)] == downs


def test_widths_sort_as_numbers_and_folders_too(found: dict[str, Any]) -> None:
    bits = next(column for column in found["columns"][0] if column["name"].startswith("Bits"))
    assert list(dict.fromkeys(bits["after"][0]["texts"])) == ["2 bit", "4 bit", "8 bit"]
    deployed = next(column for column in found["columns"][0] if column["name"].startswith("Deployed"))
    assert deployed["after"][1]["texts"][0] == "72.16 ± 0.37 (2)"

"""The report in a real browser: headless Chromium opens the one file, offline, and draws all of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from report_runs import write_run

from dyn_probe.report.build import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OFFLINE = "MAP * ~NOTFOUND"
COUNT = """<script>
const pictures = [...document.images]
document.title = pictures.filter(picture => picture.naturalWidth).length + "/" + pictures.length
</script>"""
BLOCKED = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'"><script>1</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open ``page`` headless, without a network, with the console on standard error."""
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"),
        *("--enable-logging=stderr", "--virtual-time-budget=5000", f"--host-resolver-rules={OFFLINE}"),
        *(f"--user-data-dir={profile}", *options, page.as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def complaints(log: str) -> list[str]:
    """What the page wrote to the console: script errors, blocked or missing resources."""
    return [line for line in log.splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a synthetic run."""
    return build_report([write_run(tmp_path_factory.mktemp("browser") / "run")])


def pictures_drawn(text: str, folder: Path) -> tuple[int, int]:
    """(pictures that the browser could draw, pictures) of a page; its policy against foreign scripts is put aside."""
    page = folder / "counted.html"
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text)
    page.write_text(text.replace("</body>", COUNT + "</body>"), encoding="utf-8")
    title = re.search(r"<title>(\d+)/(\d+)</title>", browse(page, folder / "profile", "--dump-dom").stdout)
    assert title is not None
    return int(title[1]), int(title[2])


def test_every_picture_of_the_report_is_drawn(report: Path, tmp_path: Path) -> None:
    drawn, pictures = pictures_drawn(report.read_text(encoding="utf-8"), tmp_path)
    assert drawn == pictures > 5


def test_a_broken_picture_is_counted(tmp_path: Path) -> None:
    broken = '<!doctype html><title>x</title><body><img src="data:image/png;base64,AAAA"></body>'
    assert pictures_drawn(broken, tmp_path) == (0, 1)


def test_the_report_opens_without_complaint_and_is_not_blank(report: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    log = browse(report, tmp_path / "profile", f"--screenshot={shot}", "--window-size=1200,3000").stderr
    assert complaints(log) == []
    with Image.open(shot) as picture:
        assert picture.size == (1200, 3000)
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 200


@pytest.mark.parametrize("body", ["<script>nothing()</script>", BLOCKED])
def test_a_complaint_is_seen(body: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>x</title><body>{body}</body>", encoding="utf-8")
    assert complaints(browse(page, tmp_path / "profile", f"--screenshot={tmp_path / 'x.png'}").stderr)

"""Puts the demo's real output, and a picture of its page, where the README shows them.

Use: make readme, which runs the demo first. Needs Chromium for the picture; without it the old picture stays and a line
says so.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path("docs/results/demo.png")
BLOCK = re.compile(r"(<!-- demo-output: [^>]*-->\n).*(<!-- end of demo-output -->)", re.DOTALL)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def table(demo: Path) -> str:
    """What the demo printed, from its run records."""
    argv = ["report", str(demo / "runs"), "--bundle", str(demo / "bundle"), "--out", str(demo / "readme.html")]
    done = subprocess.run(
        [sys.executable, "-m", "splitboard.cli.main", *argv], stdout=subprocess.PIPE, text=True, check=True
    )
    lines = [line.rstrip() for line in done.stdout.splitlines() if not line.startswith("Page: ")]
    return "\n".join(lines).strip("\n")


def take_picture(page: Path, picture: Path) -> bool:
    """Screenshot of the top of the page; whether there was a browser to take it."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as profile:
        quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
        size = ("--window-size=1100,1180", "--hide-scrollbars", f"--screenshot={picture}")
        argv = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={profile}", *size]
        subprocess.run([*argv, page.as_uri()], check=True, capture_output=True)
    return True


def main() -> None:
    """Rewrites the block of the README."""
    demo = Path(sys.argv[1])
    output = table(demo)
    pictured = take_picture((demo / "report.html").resolve(), ROOT / PICTURE)
    print("picture taken" if pictured else "no browser found: the old picture stays", file=sys.stderr)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    block = (
        f"`splitboard demo` on the machine that wrote this page ({machine}; loopback, so the link costs\n"
        f"what a socket costs, not what a radio would):\n\n"
        f"```text\n{output}\n```\n\n![The top of report.html]({PICTURE})\n"
    )
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(BLOCK.sub(lambda found: found[1] + block + found[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The HTML page: what it says, that it loads nothing, and how Chromium sees it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pages import Page

from splitboard.contract.bundle import Bundle
from splitboard.contract.record import RunRecord
from splitboard.report.page import LOOPBACK, latency_bars, render_page, write_report
from splitboard.report.results import summarise

Records = Callable[..., list[RunRecord]]
COMMAND = "splitboard demo -o report.html"
VOID = {"meta", "br", "hr", "img", "link", "input"}
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


class DiagnosisPage(Page):
    def bars(self) -> list[str]:
        """Splits with a row in the latency chart."""
        return [attributes["data-split"] for _, attributes in self.elements if "data-split" in attributes]


def test_page_tells_the_whole_story(records: list[RunRecord], bundle: Bundle) -> None:
    page = DiagnosisPage(render_page(records, bundle, COMMAND, LOOPBACK))
    assert page.bars() == [split.id for split in bundle.splits]
    for expected in (
        "Remote only (s00) was fastest",
        "On defect, ",
        "Not measured: no meter on this machine.",
        LOOPBACK,
        COMMAND,
        "not measured: no thermal zone",
        "CONV_2D",
        *bundle.notes,
        "functional",
        bundle.model_sha256,
        bundle.calibration.sha256,
        "litert-torch 0.6.0",
        "onnxruntime 1.22.0",
    ):
        assert expected in page.text


def test_page_loads_nothing(records: list[RunRecord], bundle: Bundle) -> None:
    html = render_page(records, bundle, COMMAND)
    for tag, attributes in DiagnosisPage(html).elements:
        assert tag not in {"script", "img", "link", "iframe", "object"}
        assert not {"src", "href", "srcset", "data"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html


def test_every_text_is_escaped(records: list[RunRecord], bundle: Bundle) -> None:
    attack = "<script>alert(1)</script>\"'><b>"
    odd = [replace(records[0]), *(replace(r, scope=attack, energy_reason=attack) for r in records[1:])]
    html = render_page(odd, bundle, attack, attack)
    assert "<script" not in html
    assert "<b>x" not in html
    assert "&lt;script&gt;" in html
    assert not [tag for tag, _ in DiagnosisPage(html).elements if tag == "script"]


def test_intervals_that_overlap_are_not_told_apart(records: list[RunRecord]) -> None:
    twin = replace(records[1], split="s01", scope="stem", engine="litert 2.2.0")
    text = DiagnosisPage(render_page([records[0], records[1], twin], None, COMMAND)).text
    assert "had the lowest median" in text
    assert "overlaps with that of s01 (after stem)" in text


def test_emulated_times_are_not_shown(make_records: Records) -> None:
    html = render_page(make_records(emulated=True), None, COMMAND)
    assert html.count("emulated: times not shown") == 6
    assert " ms" not in DiagnosisPage(html).text.partition("Provenance")[0]


def test_a_throttled_run_is_marked_and_not_ranked(records: list[RunRecord]) -> None:
    hot = replace(records[1].before, throttled="throttled=0x4")
    text = DiagnosisPage(render_page([replace(records[1], before=hot, after=hot), *records[2:]], None, COMMAND)).text
    assert "s00 inconclusive" in text
    assert "Left out of this ranking: s00" in text
    assert "Remote only (s00) was fastest" not in text


def test_no_conclusive_times_at_all(make_records: Records) -> None:
    text = DiagnosisPage(render_page(make_records(n=3), None, COMMAND)).text
    assert "Inconclusive: no split has times that can be compared" in text


def test_page_without_labels_bundle_or_link(make_records: Records) -> None:
    text = DiagnosisPage(render_page(make_records(labels={}), None, COMMAND)).text
    assert "Not measured: the images have no labels." in text
    assert "The records do not say what the link was." in text
    assert "Operators of the edge file" not in text


def test_a_bar_is_as_long_as_the_median_of_the_whole(records: list[RunRecord]) -> None:
    summary = summarise(records, None)
    longest = max(split.total_ms_p95 or 0.0 for split in summary.splits)
    for bar in latency_bars(summary.splits):
        assert bar.split.total_ms_p50 is not None
        assert sum(one.width_percent for one in bar.segments) == pytest.approx(100 * bar.split.total_ms_p50 / longest)
        for segment in bar.segments:
            assert segment.ms == getattr(bar.split, f"{segment.name}_ms_p50")
    assert [segment.name for segment in latency_bars(summary.splits)[-1].segments] == ["pre", "edge", "post"]


def test_heads_on_the_board_are_named(records: list[RunRecord], bundle: Bundle) -> None:
    assert "on the board)" not in render_page(records, bundle, "splitboard bench")
    splits = tuple(
        replace(split, local_tasks=("cell_type",)) if split.id == "s09" else split for split in bundle.splits
    )
    page = render_page(records, replace(bundle, splits=splits), "splitboard bench")
    assert "after backbone.blocks.6 (cell_type on the board)" in page


def test_nothing_half_written_is_left(tmp_path: Path, records: list[RunRecord], bundle: Bundle) -> None:
    target = tmp_path / "new" / "report.html"
    write_report(target, records, bundle, COMMAND)
    assert [file.name for file in target.parent.iterdir()] == ["report.html"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_chromium_shows_a_bar_per_split_and_no_error(tmp_path: Path, records: list[RunRecord], bundle: Bundle) -> None:
    assert CHROMIUM is not None
    report = tmp_path / "report.html"
    write_report(report, records, bundle, COMMAND, LOOPBACK)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update"]
    command += ["--disable-background-networking", "--disable-sync", "--disable-quic"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", report.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    page = DiagnosisPage(shown.stdout)
    assert page.bars() == [split.id for split in bundle.splits]
    assert sum("segment edge" in attributes.get("class", "") for _, attributes in page.elements) == 5
    assert "CONSOLE" not in shown.stderr
    assert "Refused to" not in shown.stderr  # what the page's own security policy would say

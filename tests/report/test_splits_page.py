"""The picture of the split points: what it says, where it draws, and how Chromium sees it."""

from __future__ import annotations

import html
import json
import math
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pages import Page

from export.splits import Crossing, SplitPoint
from splitboard.contract.folder import check_file
from splitboard.report.splits_page import BEGINNING, draw, in_order_of_depth, render_splits_page, write_splits_page

ATTACK = "<script>alert(1)</script>\"'><b>"
TOTAL_MACS = 1000
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def point(split_id: str, scope: str, tensors: dict[str, int], macs: int, *, natural: bool = False) -> SplitPoint:
    """A split point; tensors by name with their number of values."""
    crossing = tuple(Crossing(name, f"{scope}.{name}", (1, n), 4 * n, n) for name, n in tensors.items())
    return SplitPoint(
        id=split_id,
        scope=scope,
        crossing=crossing,
        fp32_bytes=4 * sum(tensors.values()),
        int8_bytes=sum(tensors.values()),
        natural=natural,
        block=split_id.endswith("5"),
        edge_macs=macs,
        server_macs=TOTAL_MACS - macs,
        edge_share=macs / TOTAL_MACS,
        edge_parameters=10 * macs,
        server_parameters=10 * (TOTAL_MACS - macs),
        edge_peak_bytes=5000,
        local_tasks=(),
    )


REMOTE = replace(point("s00", "remote", {"image": 3000}, 0), fp32_bytes=3000)
LOCAL = replace(point("s61", "local", {}, TOTAL_MACS, natural=True), server_macs=0)


def network() -> list[SplitPoint]:
    """60 single-tensor cuts whose payload falls and 60 of two tensors, as `export.splits.list_splits` orders them."""
    single = [
        point(f"s{i:02d}", f"backbone.blocks.{i // 4}.depthwise.{i % 4}", {f"t{i}": 90000 // i}, 16 * i, natural=i > 9)
        for i in range(1, 61)
    ]
    multi = [
        point(f"m{i:02d}", "a + b", {f"t{i}": 90000 // i, f"u{i}": 7}, 16 * i + 3, natural=i > 20) for i in range(1, 61)
    ]
    return [REMOTE, *single, LOCAL, *multi]


class SplitsPage(Page):
    def kinds(self, attribute: str) -> dict[str, set[str]]:
        """Classes by split id, of the elements with an attribute that holds the id."""
        return {a[attribute]: set(a.get("class", "").split()) for _, a in self.elements if attribute in a}


@pytest.fixture(scope="module")
def text() -> str:
    """The page of the whole network."""
    return render_splits_page("net", network(), REMOTE)


def shown(points: Sequence[SplitPoint], name: str = "net") -> SplitsPage:
    return SplitsPage(render_splits_page(name, points, REMOTE))


def test_chart_and_table_hold_every_point_and_mark_exactly_the_natural_ones(text: str) -> None:
    points = network()
    page = SplitsPage(text)
    for attribute in ("data-split", "data-row"):
        kinds = page.kinds(attribute)
        assert set(kinds) == {one.id for one in points}
        for kind, expected in {
            "natural": {one.id for one in points if one.natural},
            "block": {one.id for one in points if one.block},
            "multi": {one.id for one in points if one.id.startswith("m")},
            "end": {"s00", "s61"},
        }.items():
            assert {split_id for split_id, found in kinds.items() if kind in found} == expected


def test_the_findings_are_those_of_the_cuts(text: str) -> None:
    text = SplitsPage(text).text
    assert "Natural bottlenecks: 91 of the 120 cuts shown" in text
    assert "The first natural bottleneck is s10, after backbone.blocks.2.depthwise.2: 9,000 B at INT8" in text
    assert "Remote only sends the image itself, uint8: 3,000 B." in text
    assert "The first cut that sends less is s31," in text  # 90000 / 30 is no less than 3000
    assert "The smallest payload is that of s60," in text


def test_multi_tensor_cuts_stand_between_the_cuts_around_them() -> None:
    one, two = point("s01", "one", {"a": 50}, 100), point("s02", "two", {"b": 40}, 300)
    last = replace(LOCAL, id="s03")
    waiting = point("m01", "x", {"a": 50, "c": 5}, 300)  # as much work as s02, but s01's tensor is still needed
    between = point("m02", "y", {"d": 50, "e": 5}, 200)
    start = point("m03", "z", {"f": 50, "g": 5}, 0)
    late = point("m04", "heads", {"h": 5, "i": 5}, TOTAL_MACS)
    ordered = in_order_of_depth([REMOTE, one, two, last, waiting, between, start, late], REMOTE)
    assert [found.id for found in ordered] == ["s00", "m03", "s01", "m02", "m01", "s02", "m04", "s03"]


def test_without_single_tensor_cuts_the_work_orders() -> None:
    several = [point("m01", "x", {"a": 5, "b": 5}, 300), point("m02", "y", {"c": 5, "d": 5}, 200)]
    assert [found.id for found in in_order_of_depth(several, REMOTE)] == ["m02", "m01"]


def test_inputs_that_cross_together_are_no_multi_tensor_cut() -> None:
    both = point("s00", "remote", {"image": 300, "meta": 6}, 0)
    picture = draw([both, point("s01", "one", {"a": 50}, 100)], both)
    assert [spot.kinds for spot in picture.spots] == [("end",), ()]


def test_payload_is_drawn_on_a_logarithmic_scale() -> None:
    scale = draw(network(), REMOTE).scale
    decade = scale.y(100) - scale.y(1000)
    assert decade > 0
    for n_bytes in (1508, 3000, 90000):
        assert scale.y(100) - scale.y(n_bytes) == pytest.approx(decade * math.log10(n_bytes / 100))
    assert scale.y(0) > scale.y(1508)


@pytest.mark.parametrize("highest", [0, 1, 3, 999, 1_655_808, 3_000_000, 7_000_000_000])
def test_the_memory_fits_its_axis(highest: int) -> None:
    *_, memory = draw([replace(REMOTE, edge_peak_bytes=highest)], REMOTE).strips
    heights = [float(part.partition("H")[0]) for part in memory.outline.split("V")[1:-1]]
    assert memory.top <= min(heights) <= max(heights) <= memory.bottom
    assert 3 <= len(memory.ticks) <= 4
    assert [tick.y for tick in memory.ticks] == pytest.approx(
        [memory.bottom - i * (memory.bottom - memory.top) / (len(memory.ticks) - 1) for i in range(len(memory.ticks))]
    )


def test_errors_are_shown_where_there_are_any(text: str) -> None:
    verified = replace(network()[7], error={"left": 1.25e-7, "right": 3.5e-6})
    page = shown([network()[6], verified])
    assert "largest error" in page.text
    assert "3.5e-06" in page.text
    assert "1.2e-07" not in page.text  # in the tooltip
    assert any("left 1.2e-07" in attributes.get("title", "") for _, attributes in page.elements)
    assert "largest error" not in text


def test_every_text_is_escaped() -> None:
    odd = [
        replace(
            found,
            scope=ATTACK,
            crossing=tuple(replace(one, name=ATTACK, scope=ATTACK) for one in found.crossing),
            local_tasks=(ATTACK,),
            error={ATTACK: 0.5},
        )
        for found in (network()[5], network()[-1])
    ]
    text = render_splits_page(ATTACK, odd, REMOTE)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    page = SplitsPage(text)
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.text.count("alert(1)") > 4


def test_page_loads_nothing(text: str) -> None:
    for tag, attributes in SplitsPage(text).elements:
        assert tag not in {"script", "img", "image", "link", "iframe", "object", "use", "foreignobject"}
        assert not {"src", "srcset", "data", "xlink:href"} & attributes.keys()
        assert tag == "a" or "href" not in attributes
    assert text.count("://") == text.count('<a href="https://arxiv.org/')
    assert "@import" not in text
    assert "url(" not in text


@pytest.mark.parametrize(
    "points",
    [[], [REMOTE], [LOCAL], [REMOTE, LOCAL], [network()[30]], [network()[-1]], network()[62:]],
    ids=["none", "remote", "local", "ends", "one", "one multi", "only multi"],
)
def test_few_points(points: list[SplitPoint]) -> None:
    page = shown(points)
    assert set(page.kinds("data-split")) == {one.id for one in points}
    assert "estimate" in page.text
    assert {"1 kB", "2 kB", "5 kB"} & set(page.text.split("\n")) or not points


def test_the_page_takes_the_place_of_an_earlier_one_only(tmp_path: Path) -> None:
    target = tmp_path / "new" / "splits.html"
    for points in ([], network()):
        write_splits_page(target, "net", points, REMOTE)
        check_file(target, BEGINNING)
    assert [file.name for file in target.parent.iterdir()] == ["splits.html"]


HARNESS = """<!DOCTYPE html><title>measures pages in frames of some widths</title>
{frames}<pre id="measured"></pre><script>
addEventListener("load", () => {{
  const frames = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, box = element => element.getBoundingClientRect();
    const labels = [...page.querySelectorAll("svg.label")].filter(one => getComputedStyle(one).display != "none");
    const texts = labels.map(one => box(one.querySelector("text")));
    return {{
      width: frame.clientWidth, needed: page.documentElement.scrollWidth,
      bottom: box(page.querySelector(".plot")).bottom, lowest: Math.max(...texts.map(one => one.bottom)),
      labels: texts.map(one => one.right),
      marks: [...page.querySelectorAll(".point")].map(one => {{
        const hit = box(one.querySelector(".hit")), mark = box(one.querySelector(".mark"));
        return [(hit.left + hit.right) / 2, (mark.left + mark.right) / 2, mark.width];
      }}),
    }};
  }});
  document.getElementById("measured").textContent = JSON.stringify(frames);
}});
</script>"""


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """The document after loading, and what the browser logged."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update"]
    command += ["--disable-background-networking", "--disable-sync", "--disable-quic", "--window-size=1300,900"]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_chromium_shows_every_point_and_no_error(tmp_path: Path) -> None:
    target = tmp_path / "splits.html"
    points = [replace(network()[1], scope=ATTACK), *network()[50:80]]
    write_splits_page(target, ATTACK, points, REMOTE)
    document, log = browse(target, tmp_path / "profile")
    kinds = SplitsPage(document).kinds("data-split")
    assert {split_id: "natural" in found for split_id, found in kinds.items()} == {
        one.id: one.natural for one in points
    }
    assert "<script" not in document
    assert "CONSOLE" not in log
    assert "Refused to" not in log  # what the page's own security policy would say


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_chromium_lays_out_without_overlaps_at_any_width(tmp_path: Path, text: str) -> None:
    page = html.escape(text)
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{page}"></iframe>' for width in (420, 800, 1250))
    (tmp_path / "harness.html").write_text(HARNESS.format(frames=frames), encoding="utf-8")
    document, _ = browse(tmp_path / "harness.html", tmp_path / "profile")
    measured = json.loads(document.partition('<pre id="measured">')[2].partition("</pre>")[0])
    assert [frame["width"] for frame in measured] == [420, 800, 1250]
    apart_px = 12 / math.sin(math.radians(62))  # lines of 12 px, slanted by 62 degrees
    for frame in measured:
        assert frame["needed"] <= frame["width"]  # the chart and the table scroll, the page does not
        assert len(frame["labels"]) >= 8
        assert min(right - left for left, right in zip(frame["labels"], frame["labels"][1:], strict=False)) >= apart_px
        assert frame["lowest"] <= frame["bottom"]
        assert len(frame["marks"]) == len(network())
        for step_px, mark_px, width_px in frame["marks"]:
            assert mark_px == pytest.approx(step_px, abs=0.6)
            assert width_px > 4

"""The page of a diagnosis: every layer and task on it, its words those of the finding, and how Chromium sees it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from pages import Page
from rich.console import Console

from calib.diagnose.finding import Exclusion, LayerLoss, LayerNoise, TaskLoss
from splitboard.contract.folder import check_file
from splitboard.report.diagnosis_page import BEGINNING, heat, render_diagnosis_page, write_diagnosis_page
from splitboard.report.diagnosis_table import print_diagnosis
from splitboard.report.outputs import DiagnoseOutput

ATTACK = "<script>alert(1)</script>\"'><b>"
TASKS = ("defect", "cell_type")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
HARNESS = """<!DOCTYPE html><body>{frames}<pre id="measured"></pre><script>
onload = () => document.getElementById("measured").textContent = JSON.stringify(
  [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument;
    return {{
      width: frame.clientWidth,
      needed: page.documentElement.scrollWidth,
      cells: [...page.querySelectorAll("[data-layer] .heat[data-task]")].map(cell => ({{
        paper: getComputedStyle(cell).backgroundColor,
        ink: getComputedStyle(cell.querySelector("small")).color,
        fits: cell.scrollWidth <= cell.clientWidth,
      }})),
    }};
  }}));
</script></body>"""


def cost(task: str, loss: float, noise: float) -> TaskLoss:
    return TaskLoss(task, "top1", "points", 0.95, 0.95 - loss / 100, loss, 1.0, loss <= 1, noise)


def network(count: int = 24) -> DiagnoseOutput:
    """Layers by depth, every third of which was measured; the later, the noisier."""
    names = [f"features.{i}.conv/with_a_long_name_{i}" for i in range(count)]
    layers = tuple(
        LayerNoise(name, i, noise=1e-4 * (i + 1), added=1e-5 * (i + 1), steps=None, sqnr_db=40.0 - i, cosine=0.999)
        for i, name in enumerate(names)
    )
    worst = tuple(
        LayerLoss(
            names[i],
            tuple(cost(task, 0.1 * i, 0.002 * (i + 1)) for task in TASKS),
            tuple(cost(task, 2.5, 0.1) for task in TASKS),
        )
        for i in range(count - 1, 0, -3)
    )
    excluded = Exclusion((names[-1],), (names[-1],), True, tuple(cost(task, 0.5, 0.03) for task in TASKS), True, 9)
    return DiagnoseOutput(
        page="diagnosis.html",
        bundle="net.bundle",
        name="net",
        bundle_sha256="ab" * 32,
        model_sha256="cd" * 32,
        board="rpi5",
        split="s11",
        data_sha256="ef" * 32,
        n=1200,
        n_noise=32,
        deviation=0.0,
        met=False,
        tasks=tuple(cost(task, 2.7, 0.12) for task in TASKS),
        not_judged=(),
        keep_float=(),
        modules={name: f"backbone.blocks.{i}.conv" for i, name in enumerate(names) if i % 2},
        layers=layers,
        worst=worst,
        exclusion=excluded,
        command=f"splitboard build MODEL --keep-float {names[-1]}",
    )


class DiagnosisPage(Page):
    def having(self, attribute: str) -> list[str]:
        return [found[attribute] for _, found in self.elements if attribute in found]


def test_the_map_has_every_measured_layer_by_depth_and_every_task_twice() -> None:
    found = network()
    page = DiagnosisPage(render_diagnosis_page(found))
    measured = sorted((one.layer for one in found.worst), key=[one.layer for one in found.layers].index)
    assert page.having("data-layer") == ["", *measured]
    assert page.having("data-noise") == [one.layer for one in found.layers]
    # Once as built; each layer alone in INT8 and left in float.
    assert page.having("data-task") == [*TASKS, *(2 * TASKS * len(measured))]
    assert page.having("data-built") == page.having("data-excluded") == list(TASKS)


def test_colours_grow_with_the_error_of_the_output() -> None:
    noises = [0.0, 1e-4, 1e-3, 2e-3, 0.05, 0.5, 1.4]
    shares = heat([cost("task", 0.0, noise) for noise in noises])
    ordered = [shares[noise] for noise in noises]
    assert ordered == sorted(ordered)
    assert ordered[:3] == [0, 0, 0]
    assert ordered[3] > 0
    assert 50 <= ordered[-1] <= 70
    assert set(heat([cost("task", 0.0, 1e-5)]).values()) == {0}
    assert heat([]) == {}


def test_page_and_terminal_say_the_same() -> None:
    found = network()
    page = re.sub(r"\s+", " ", DiagnosisPage(render_diagnosis_page(found)).text)
    console = Console(width=400, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_diagnosis(console, found)
    console.file.close()
    terminal = re.sub(r"\s+", " ", console.export_text())
    for text in (page, terminal):
        assert "With 1 layer in float, the gate is met" in text
        assert "defect: top1 92.30 %, float 95.00 %: loses 2.70 points, 1 allowed; its output is off by 12 %" in text
        assert "cell_type: top1 94.50 %, float 95.00 %: loses 0.50 points" in text
        assert found.command is not None
        assert found.command in text
        assert "is for splitboard check to test" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"met": True, "exclusion": None, "command": None}, "INT8 meets the gate"),
        ({"exclusion": None, "command": None, "worst": ()}, "no layer can be left in float"),
        ({"deviation": 0.04}, "off the bundle's by 4 % of what INT8 changes"),
        ({"not_judged": ("texture",)}, "Not judged, no labels: texture."),
    ],
)
def test_other_findings_have_their_own_words(change: dict[str, object], words: str) -> None:
    assert words in DiagnosisPage(render_diagnosis_page(replace(network(), **change))).text  # type: ignore[arg-type]


def test_a_list_that_does_not_help_is_not_called_a_cure() -> None:
    found = network()
    assert found.exclusion is not None
    failed = replace(found, exclusion=replace(found.exclusion, met=False), command=None)
    text = DiagnosisPage(render_diagnosis_page(failed)).text
    assert "did not meet it" in text
    assert "None of 9 lists of the 8 layers that add most noise meets the gate" in text
    assert "To keep in float" not in text


def test_names_are_text(tmp_path: Path) -> None:
    found = network(3)
    layer = replace(found.layers[2], layer=ATTACK)
    odd = replace(
        found,
        name=ATTACK,
        layers=(*found.layers[:2], layer),
        worst=(replace(found.worst[0], layer=ATTACK),),
        modules={ATTACK: ATTACK},
    )
    write_diagnosis_page(tmp_path / "page.html", odd)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.startswith(BEGINNING)
    assert "<script" not in text
    assert DiagnosisPage(text).having("data-layer") == ["", ATTACK]
    check_file(tmp_path / "page.html", BEGINNING)


def browse(page: Path, profile: Path, *options: str) -> tuple[str, str]:
    """What Chromium makes of a page: its document and its log."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update"]
    command += ["--disable-background-networking", "--disable-sync", "--disable-quic", "--window-size=1300,900"]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def luminance(colour: str) -> float:
    """Relative luminance of a computed colour (WCAG 2.1)."""
    parts = [float(part) for part in re.findall(r"[\d.]+", colour.replace("color(srgb", ""))[:3]]
    unit = parts if colour.startswith("color(srgb") else [part / 255 for part in parts]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in unit)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chromium_shows_readable_cells_at_any_width(scheme: str, tmp_path: Path) -> None:
    page = html.escape(render_diagnosis_page(network()))
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{page}"></iframe>' for width in (420, 800, 1250))
    (tmp_path / "harness.html").write_text(HARNESS.format(frames=frames), encoding="utf-8")
    options = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    document, log = browse(tmp_path / "harness.html", tmp_path / "profile", *options)
    assert "CONSOLE" not in log
    assert "Refused to" not in log  # what the page's own security policy would say
    measured = json.loads(document.partition('<pre id="measured">')[2].partition("</pre>")[0])
    assert [frame["width"] for frame in measured] == [420, 800, 1250]
    for frame in measured:
        assert frame["needed"] <= frame["width"]  # the tables scroll, the page does not
        assert len(frame["cells"]) == 2 + 4 * 8
        assert len({cell["paper"] for cell in frame["cells"]}) > 4
        for cell in frame["cells"]:
            assert cell["fits"]
            ink, paper = luminance(cell["ink"]), luminance(cell["paper"])
            assert (ink < paper) == (scheme == "light")
            assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5  # WCAG 2.1, AA

"""The energy of a split from windows that differ, against numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from splitboard.contract.record import MeterFacts, RunRecord, Window
from splitboard.report.energy import EnergyDetail, energy_per_inference
from splitboard.report.page import render_page
from splitboard.report.results import summarise
from splitboard.report.table import markdown_table

SAMPLED = "power samples, trapezoids between them"
METER = MeterFacts(
    "ina3221: VDD_IN", SAMPLED, ("VDD_IN", "VDD_SOC"), ("VDD_IN",), "carrier board, fan", 0.01, 0.04, None
)
CHECK = MeterFacts("ina226: 1-0040", SAMPLED, ("1-0040",), ("1-0040",), "", 0.035, 0.01, None)

SECONDS = np.array([10.0, 10.2, 10.1, 10.4, 10.05])
JOULES = np.array([52.0, 55.5, 51.0, 57.2, 53.3])
ERRORS = np.array([0.9, 1.0, 0.8, 1.1, 0.95])
INFERENCES = np.array([400, 410, 398, 420, 401])
IDLE_J = np.array([21.0, 20.4, 20.8, 21.1, 20.2])


def windows(joules: np.ndarray, source: str, n: np.ndarray, errors: np.ndarray) -> tuple[Window, ...]:
    rows = zip(SECONDS.tolist(), joules.tolist(), n.tolist(), errors.tolist(), strict=True)
    return tuple(
        Window(0, round(seconds * 1e9), energy_j, source, n_done, error_j, round(60 * seconds), 1, {"VDD_SOC": seconds})
        for seconds, energy_j, n_done, error_j in rows
    )


@pytest.fixture
def measured(records: list[RunRecord]) -> RunRecord:
    return replace(
        records[2],
        windows=windows(JOULES, METER.source, INFERENCES, ERRORS),
        idle_windows=windows(IDLE_J, METER.source, np.zeros(5, int), 0.5 * ERRORS),
        energy_reason=None,
        meter=METER,
        check_windows=windows(JOULES * 1.04, CHECK.source, INFERENCES, ERRORS),
        check_meter=CHECK,
    )


def detail_of(record: RunRecord) -> EnergyDetail:
    detail = energy_per_inference(record).detail
    if detail is None:
        raise RuntimeError("no energy")
    return detail


def test_every_figure_against_numpy(measured: RunRecord) -> None:
    energy, detail = energy_per_inference(measured), detail_of(measured)
    each, idle_w = JOULES / INFERENCES, np.median(IDLE_J / SECONDS)
    assert energy.whole_j == pytest.approx(np.median(each))
    assert energy.above_idle_j == pytest.approx(np.median((JOULES - idle_w * SECONDS) / INFERENCES))
    assert (detail.low_j, detail.high_j) == (pytest.approx(each.min()), pytest.approx(each.max()))
    assert detail.error_j == pytest.approx(np.median(ERRORS / INFERENCES))
    idle_error = np.median(0.5 * ERRORS / SECONDS) * np.median(SECONDS / INFERENCES)
    assert detail.above_idle_error_j == pytest.approx(np.median(ERRORS / INFERENCES) + idle_error)
    assert detail.power_w == pytest.approx(np.median(JOULES / SECONDS))
    assert detail.idle_power_w == pytest.approx(idle_w)
    assert (detail.n_windows, detail.window_s, detail.n_failed) == (5, 10.0, 5)
    assert detail.sampling_hz == pytest.approx(60, rel=1e-2)
    assert detail.rails_w == {"VDD_SOC": pytest.approx(1.0)}
    assert (detail.total, detail.leaves_out, detail.resolution_w) == (("VDD_IN",), "carrier board, fan", 0.04)
    assert detail.check_source == "ina226: 1-0040"
    assert detail.check_difference == pytest.approx(0.04)


def test_a_meter_that_states_no_error(measured: RunRecord) -> None:
    unknown = tuple(replace(window, error_j=None) for window in measured.windows)
    detail = detail_of(replace(measured, windows=unknown))
    assert (detail.error_j, detail.above_idle_error_j) == (None, None)


def test_a_counter_has_no_sampling_rate(measured: RunRecord) -> None:
    counted = tuple(replace(window, n_power_samples=0) for window in measured.windows)
    assert detail_of(replace(measured, windows=counted)).sampling_hz is None


def test_windows_without_energy_do_not_count(measured: RunRecord) -> None:
    failed = replace(measured.windows[0], energy_j=None, error_j=None, source="ina3221: VDD_IN: no power sample")
    energy = energy_per_inference(replace(measured, windows=(*measured.windows[1:], failed)))
    assert (energy.whole_j, energy.detail, energy.reason) == (None, None, "ina3221: VDD_IN: no power sample")
    energy = energy_per_inference(replace(measured, windows=(*measured.windows, failed)))
    assert energy.whole_j == pytest.approx(np.median(JOULES / INFERENCES))


def test_short_windows_do_not_count_and_say_so(measured: RunRecord) -> None:
    short = tuple(replace(window, end_ns=2_500_000_000) for window in measured.windows[:2])
    energy = energy_per_inference(replace(measured, windows=(*measured.windows[2:], *short)))
    assert energy.reason == "3 windows of at least 10 s, 5 are needed; 2 are shorter, down to 2.5 s"


def test_table_and_page_tell_it(measured: RunRecord, with_energy: Callable[..., RunRecord]) -> None:
    notes = markdown_table(summarise([measured], None)).replace("\\", "")
    for words in (
        f"energy: 5 windows of at least 10 s; {SAMPLED}; resolution 40 mW; leaves out carrier board, fan",
        "s03: energy: windows 128.1 to 136.2 mJ, at most 2.4 mJ off, mean power 5.30 W",
        f"idle {np.median(IDLE_J / SECONDS):.2f} W, 60.0 samples a second",
        "5 readings failed, cross-check 138.2 mJ (+4.0 %, ina226: 1-0040)",
    ):
        assert words in notes
    page = render_page([measured], None, "splitboard bench")
    for words in (
        '<td class="n"><b>132.9</b></td><td class="n">2.4</td><td class="n">128.1</td><td class="n">136.2</td>',
        "rails in W: VDD_SOC 1.00; 5 readings failed; cross-check by ina226: 1-0040: 138.2 mJ, +4.0 %",
    ):
        assert words in page
    simple = render_page([with_energy(measured)], None, "splitboard bench")
    assert '<td class="n"><b>1200.0</b></td><td class="n">\u2013</td>' in simple


def test_emulated_joules_are_not_shown(measured: RunRecord) -> None:
    (split,) = summarise([replace(measured, emulated=True)], None).splits
    assert (split.energy_j, split.energy_detail, split.energy_reason) == (
        None, None, "emulated: no board drew any power",
    )  # fmt: skip

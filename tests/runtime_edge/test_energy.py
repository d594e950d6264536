"""Windows of energy: their rounds, their meters, and the way from the command line to the record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from serving import Running
from sysfs.traces import BURSTS, exact_j

from boards.zipapp import build_zipapp
from runtime_edge.bench.energy import Plan, between, measure_energy
from runtime_edge.engines.engine import FakeEngine
from runtime_edge.meters.find import find_meter
from runtime_edge.meters.meter import FakeMeter, NoMeter, Reading
from runtime_edge.pipeline import Pipeline
from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.record import RunRecord, Window, read_records
from splitboard.contract.samples import Samples, load_samples
from splitboard.report.results import summarise


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def samples(tiny_samples: Path) -> Samples:
    return load_samples(tiny_samples, channels=1)


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zipapp(tmp_path_factory.mktemp("app"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """`BURSTS` as a file."""
    path = tmp_path / "bursts.csv"
    path.write_text("seconds,watts\n" + "".join(f"{at},{watts}\n" for at, watts in BURSTS))
    return path


def local_pipeline(bundle: Bundle, engine: FakeEngine) -> Pipeline:
    return Pipeline(bundle, "0" * 64, bundle.splits[-1:], engine, None)


def check_power(windows: tuple[Window, ...], power_w: float) -> None:
    for window in windows:
        if window.energy_j is None or window.error_j is None:
            raise RuntimeError(window.source)
        assert window.energy_j == pytest.approx(power_w * (window.end_ns - window.start_ns) / 1e9)
        assert window.error_j > 0


def test_rounds_of_windows(bundle: Bundle, samples: Samples) -> None:
    local = bundle.splits[-1]
    progress: list[tuple[int, int]] = []
    with FakeEngine(bundle, bundle.splits) as engine:
        found = measure_energy(
            local_pipeline(bundle, engine),
            [local],
            samples.images,
            FakeMeter(2.0),
            lambda *at: progress.append(at),
            Plan(3, 0.05),
            FakeMeter(3.0),
        )
    assert found.reason is None
    assert progress == [(i, 6) for i in range(1, 7)]
    windows, (checks,) = found.by_split[local.id], (found.check_by_split or {}).values()
    assert (len(found.idle), len(windows), len(checks)) == (3, 3, 3)
    check_power(found.idle + windows, 2.0)
    check_power(checks, 3.0)
    assert all((window.end_ns - window.start_ns) >= 50_000_000 for window in (*found.idle, *windows))
    assert all("estimate" in window.source for window in windows)
    assert all(window.n_samples == 0 for window in found.idle)
    assert [window.n_samples for window in windows] == [window.n_samples for window in checks]
    assert all(window.n_samples > 0 for window in windows)
    assert found.meter is not None
    assert found.check_meter is not None


def test_without_a_meter_no_window_is_timed(bundle: Bundle, samples: Samples) -> None:
    def never(done: int, total: int) -> None:
        raise AssertionError("a window was timed")

    with FakeEngine(bundle, bundle.splits) as engine:
        found = measure_energy(
            local_pipeline(bundle, engine), bundle.splits[-1:], samples.images, NoMeter("none here"), never
        )
    assert (found.by_split, found.idle, found.reason, found.meter) == ({}, (), "none here", None)


def reading(time_ns: int, energy_j: float | None, **changes: object) -> Reading:
    made = {
        "time_ns": time_ns,
        "energy_j": energy_j,
        "rails_j": {"x": energy_j or 0.0},
        "error_j": 0.25 * time_ns / 1e9,
        "edge_j": 0.125,
        "n_samples": time_ns // 10**8,
        "n_failed": 0,
        "n_gaps": 0,
        "reason": None,
    }
    return Reading(**{**made, **changes})  # type: ignore[arg-type]


def test_a_window_is_a_subtraction() -> None:
    window = between("m", reading(10**9, 5.0), reading(3 * 10**9, 9.0), 7)
    expected = Window(10**9, 3 * 10**9, 4.0, "m", 7, 0.5 + 2 * 0.125, 20, 0, {"x": 4.0})
    assert window == expected


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (reading(3 * 10**9, None, reason="unplugged"), "m: unplugged"),
        (reading(3 * 10**9, 9.0, n_gaps=1, reason="no power sample for 2 s"), "m: no power sample for 2 s"),
        (reading(3 * 10**9, 5.0), "m: the sensor tells 0 W all the time"),
    ],
)
def test_no_energy_is_never_zero(end: Reading, said: str) -> None:
    window = between("m", reading(10**9, 5.0), end, 7)
    assert (window.energy_j, window.error_j, window.source) == (None, None, said)


# The command line


def run(pyz: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(pyz), "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=300)


def check_simulated(records: list[RunRecord]) -> None:
    """Every window against the integral of the trace between its own two moments."""
    for record in records:
        for window in (*record.windows, *record.idle_windows, *record.check_windows):
            if window.energy_j is None or window.error_j is None:
                raise RuntimeError(window.source)
            exact = exact_j(BURSTS, window)
            assert abs(window.energy_j - exact) <= window.error_j
            assert "simulated" in window.source
            assert window.n_power_samples > 0


def test_a_simulated_meter_from_bench_to_the_record(
    pyz: Path, tiny_bundle: Path, tiny_samples: Path, server: Running, trace: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs.jsonl"
    data = ("--bundle", tiny_bundle, "--data", tiny_samples, "--server", server.url, "--out", out, "--limit", 40)
    short = ("--windows", 2, "--window-s", 0.6, "--warmup", 1)
    energy = ("--energy", "--require-energy", "--meter", f"simulated:{trace}@75,0.04")
    done = run(pyz, *data, *short, *energy, "--cross-check", f"simulated:{trace}@40,0.1")
    assert done.returncode == 0, done.stderr
    records = read_records(out)
    assert len(records) == len(load_bundle(tiny_bundle).splits)
    check_simulated(records)
    for record in records:
        assert (len(record.windows), len(record.idle_windows), len(record.check_windows)) == (2, 2, 2)
        assert record.meter is not None
        assert record.check_meter is not None
        assert (record.meter.source, record.meter.resolution_w) == ("bursts.csv (simulated): simulated", 0.04)
        assert (record.meter.total, record.check_meter.resolution_w) == (("simulated",), 0.1)
    short_windows = [split.energy_reason for split in summarise(records, None).splits]
    assert all(
        (reason or "").startswith("0 windows of at least 10 s, 5 are needed; 2 are shorter, down to 0.6")
        for reason in short_windows
    )


def test_energy_that_is_required_and_is_not_there(
    pyz: Path, tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, bundle: Bundle
) -> None:
    if not isinstance(find_meter(), NoMeter):
        pytest.skip("this machine has a meter")
    data = ("--bundle", tiny_bundle, "--data", tiny_samples, "--splits", bundle.splits[-1].id)
    out = tmp_path / "runs.jsonl"
    done = run(pyz, *data, "--out", out, "--require-energy")
    assert (done.returncode, out.exists()) == (2, False)
    assert 'energy is required and there is none: "no energy meter: no INA3221' in done.stderr
    assert "\nTry: --meter NAME\n" in done.stderr
    done = run(pyz, *data, "--out", out, "--energy", "--limit", 2, "--warmup", 0)
    assert (done.returncode, done.stdout) == (0, "")
    (record,) = read_records(out)
    assert (record.windows, record.meter) == ((), None)
    assert (record.energy_reason or "").startswith("no energy meter: no INA3221")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--meter", "rapl"], '"--meter" and "--cross-check" are of --energy'),
        (["--cross-check", "rapl"], '"--meter" and "--cross-check" are of --energy'),
        (["--energy", "--windows", "0"], '--windows is "0"'),
        (["--energy", "--window-s", "-1"], '--window-s is "-1.0"'),
        (["--energy", "--window-s", "nan"], '--window-s is "nan"'),
        (["--energy", "--meter", "wattmeter"], '"wattmeter" names no meter'),
        (["--energy", "--meter", "csv:/nowhere"], 'the meter "csv:/nowhere" cannot be read'),
        (["--energy", "--cross-check", "wattmeter", "--meter", "none"], '"wattmeter" names no meter'),
    ],
)
def test_refusals(
    options: list[str], said: str, pyz: Path, tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, bundle: Bundle
) -> None:
    out = tmp_path / "runs.jsonl"
    data = ("--bundle", tiny_bundle, "--data", tiny_samples, "--splits", bundle.splits[-1].id, "--out", out)
    done = run(pyz, *data, *options)
    assert (done.returncode, done.stdout, out.exists()) == (3, "", False)
    assert said in done.stderr
    assert "\nTry: " in done.stderr

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_edge.bench.meters import FakeMeter, NoMeter, RaplMeter, find_meter
from splitboard.contract.errors import UserError


@pytest.fixture
def rapl(tmp_path: Path) -> Path:
    """The folder as an x86 kernel shows it."""
    folder = tmp_path / "class/powercap/intel-rapl:0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("package-0\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    (folder / "energy_uj").write_text("262143000000\n")
    return folder


def test_joules_since_the_meter_was_made_across_the_wrap(rapl: Path, tmp_path: Path) -> None:
    meter = RaplMeter(tmp_path)
    assert meter.read_j() == 0.0
    readings = []
    for counter_uj in (262143200000, 100000, 1500000, 1500000):
        (rapl / "energy_uj").write_text(f"{counter_uj}\n")
        readings.append(meter.read_j())
    assert readings == pytest.approx([0.2, 0.42885, 1.82885, 1.82885])
    assert (meter.source, meter.resolution_j) == ("RAPL package-0", 1e-6)


def test_the_meter_is_found(rapl: Path, tmp_path: Path) -> None:
    assert isinstance(find_meter(tmp_path), RaplMeter)


def test_without_a_counter_the_reason_is_told(tmp_path: Path) -> None:
    meter = find_meter(tmp_path)
    assert isinstance(meter, NoMeter)
    assert meter.source == f'no energy counter at "{tmp_path}/class/powercap/intel-rapl:0/max_energy_range_uj"'
    assert (meter.read_j(), meter.resolution_j) == (None, None)


def test_a_counter_for_root_only(rapl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # the tests may run as root, whom no file mode stops
    with pytest.raises(UserError, match="may be read by root only") as caught:
        RaplMeter(tmp_path)
    assert caught.value.tries[0].startswith("sudo chmod a+r ")


def test_a_counter_that_is_not_a_number(rapl: Path, tmp_path: Path) -> None:
    (rapl / "energy_uj").write_text("?\n")
    assert "no energy counter at" in find_meter(tmp_path).source


def test_the_fake_says_that_it_is_an_estimate() -> None:
    times = iter([0, 2_000_000_000])
    meter = FakeMeter(3.0, lambda: next(times))
    assert (meter.read_j(), meter.read_j()) == (0.0, 6.0)
    assert "estimate" in meter.source

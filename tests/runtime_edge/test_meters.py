"""Counters of joules, and which meter is found on which machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sysfs import trees

from runtime_edge.bench.energy import between
from runtime_edge.meters.counters import CounterMeter, WrappingCounter
from runtime_edge.meters.find import find_meter
from runtime_edge.meters.meter import AbsentError, FakeMeter, MeterError, NoMeter
from runtime_edge.meters.nvml import nvml_meter
from runtime_edge.meters.rapl import rapl_meter
from splitboard.contract.errors import UserError


@pytest.fixture(autouse=True)
def nothing_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without vcgencmd and tegrastats; the folder on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


# RAPL


def test_joules_of_all_packages_across_the_wrap(root: Path) -> None:
    first = trees.rapl(root)
    meter = rapl_meter(root)
    assert meter.read_j() == 0.0
    readings = []
    for counter_uj in (262143200000, 100000, 1500000, 1500000):
        (first / "energy_uj").write_text(f"{counter_uj}\n")
        readings.append(meter.read_j())
    assert readings == pytest.approx([0.2, 0.42885, 1.82885, 1.82885])
    (root / "sys/class/powercap/intel-rapl:1/energy_uj").write_text("262143000001\n")
    assert meter.read().rails_j == pytest.approx({"package-0": 1.82885, "package-1": 1e-6})
    facts = meter.facts()
    if facts is None:
        raise RuntimeError("no facts")
    assert (facts.source, facts.rails, facts.total) == (
        "RAPL: package-0 + package-1", ("package-0", "package-1"), ("package-0", "package-1"),
    )  # fmt: skip
    assert (facts.method, facts.resolution_j, facts.resolution_w) == ("energy counter", 1e-6, None)
    assert "memory" in facts.leaves_out


def test_a_counter_for_root_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.rapl(root)

    read = Path.read_text

    def refuse(self: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, encoding, errors)

    monkeypatch.setattr(Path, "read_text", refuse)  # the tests may run as root, whom no file mode stops
    with pytest.raises(UserError, match="may be read by root only: sudo chmod a\\+r "):
        find_meter(root, "rapl")


def test_a_counter_that_is_not_a_number(root: Path) -> None:
    (trees.rapl(root) / "energy_uj").write_text("?\n")
    with pytest.raises(UserError, match='the meter "rapl" cannot be read: no energy counter at'):
        find_meter(root, "rapl")
    assert "no energy counter at" in find_meter(root).source


def test_a_counter_that_disappears_is_no_energy(root: Path) -> None:
    folder = trees.rapl(root)
    meter = rapl_meter(root)
    start = meter.read()
    (folder / "energy_uj").unlink()
    window = between(meter.source, start, meter.read(), 3)
    assert (window.energy_j, window.error_j, window.n_samples) == (None, None, 3)
    assert window.source.startswith('RAPL: package-0 + package-1: no energy counter at "')


def test_the_age_of_a_count_is_in_the_bound() -> None:
    """A counter that moves once a second only, at 5 W: each end may be one second late."""
    times = iter([0, 10_000_000_000, 20_000_000_000])
    counts = iter([0, 0, 50_000, 100_000])
    counter = WrappingCounter(lambda: next(counts), 1 << 32, 1e-3)
    meter = CounterMeter("slow", {"all": counter}, "", 1e-3, 1.0, lambda: next(times))
    meter.read()
    window = between("slow", meter.read(), meter.read(), 1)
    assert (window.start_ns, window.end_ns, window.energy_j) == (10_000_000_000, 20_000_000_000, pytest.approx(50.0))
    assert window.error_j == pytest.approx(2 * (5.0 + 1e-3))
    assert window.n_power_samples == 0


def test_the_fake_says_that_it_is_an_estimate() -> None:
    times = iter([0, 2_000_000_000])
    meter = FakeMeter(3.0, lambda: next(times))
    assert (meter.read_j(), meter.read_j()) == (0.0, 6.0)
    assert "estimate" in meter.source


# NVML: a stand-in in C with the library's own signatures

_NVML = """
#include <stddef.h>
static unsigned long long mj = {energy};
int nvmlInit_v2(void) {{ return {init}; }}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **card) {{ *card = &mj; return i ? 6 : 0; }}
int nvmlDeviceGetTotalEnergyConsumption(void *card, unsigned long long *e) {{ *e = mj += 1500; return {no_energy}; }}
int nvmlDeviceGetPowerUsage(void *card, unsigned *p) {{ *p = 42000; return {no_power}; }}
const char *nvmlErrorString(int code) {{ return code == 3 ? "Not Supported" : "Driver Not Loaded"; }}
"""


def _library(folder: Path, init: int = 0, no_energy: int = 0, no_power: int = 0) -> str:
    source = folder / f"nvml{init}{no_energy}{no_power}.c"
    source.write_text(_NVML.format(energy=2**40, init=init, no_energy=no_energy, no_power=no_power))
    made = source.with_suffix(".so")
    try:
        subprocess.run(["/usr/bin/cc", "-shared", "-fPIC", "-o", made, source], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    return str(made)


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


@pytest.mark.usefixtures("compiling")
def test_the_energy_of_a_graphics_card(tmp_path: Path) -> None:
    meter = nvml_meter(_library(tmp_path))
    first, second = meter.read_j(), meter.read_j()
    if first is None or second is None:
        raise RuntimeError("no energy")
    assert second - first == pytest.approx(1.5)
    assert first > 2**40 * 1e-3  # more than 32 bits
    assert meter.source == "nvml: gpu"


@pytest.mark.usefixtures("compiling")
def test_the_power_of_an_older_card(tmp_path: Path) -> None:
    meter = nvml_meter(_library(tmp_path, no_energy=3))
    facts = meter.facts()
    assert (meter.source, facts and facts.method) == ("nvml power: gpu", "power samples, trapezoids between them")
    assert meter.read().n_samples == 1


@pytest.mark.usefixtures("compiling")
def test_a_jetsons_library_starts_and_supports_nothing(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match="nvmlDeviceGetTotalEnergyConsumption: Not Supported"):
        nvml_meter(_library(tmp_path, no_energy=3, no_power=3))
    with pytest.raises(MeterError, match="nvmlInit_v2: Driver Not Loaded"):
        nvml_meter(_library(tmp_path, init=9))
    with pytest.raises(MeterError, match="no NVML"):
        nvml_meter("libno-such-thing.so.1")


@pytest.mark.cuda
def test_the_energy_of_this_machines_card() -> None:
    try:
        meter = nvml_meter()
    except AbsentError as error:
        pytest.skip(str(error))
    start = meter.read()
    end = meter.read()
    assert start.energy_j is not None
    assert end.energy_j is not None
    assert end.energy_j >= start.energy_j > 0


# Which one is found


def test_nothing_is_found_and_the_reason_says_what_was_looked_for(root: Path) -> None:
    meter = find_meter(root)
    assert isinstance(meter, NoMeter)
    assert meter.source.startswith(
        "no energy meter: no INA3221, no INA3221 of JetPack 4, no vcgencmd, no driver of INA2xx, no RAPL"
    )
    assert (meter.read_j(), meter.facts()) == (None, None)


def test_what_is_there_and_cannot_be_read_is_the_better_reason(root: Path, nothing_on_path: Path) -> None:
    trees.program(nothing_on_path, "vcgencmd", "echo VCHI initialization failed; exit 255")
    assert find_meter(root).source == "pmic_read_adc: exit 255: VCHI initialization failed"


@pytest.mark.parametrize("board", trees.BOARDS)
def test_the_boards_own_monitor_comes_first(board: str, root: Path, nothing_on_path: Path) -> None:
    tree, source, _, _ = trees.BOARDS[board]
    tree(root)
    trees.ina2xx(root, device="7-0045")
    trees.rapl(root)
    trees.program(nothing_on_path, "tegrastats", "echo VDD_IN 1/1")
    assert find_meter(root).source == source


def test_the_order_of_the_others(root: Path, nothing_on_path: Path) -> None:
    trees.rapl(root)
    assert find_meter(root).source == "RAPL: package-0 + package-1"
    trees.ina2xx(root)
    assert find_meter(root).source == "ina226: 1-0040"
    (trees.program)(nothing_on_path, "vcgencmd", f"cat <<'E'\n{trees.capture('rpi5_pmic_read_adc')}E")
    (nothing_on_path / "cat").symlink_to("/bin/cat")
    assert find_meter(root).source.startswith("pmic: VDD_CORE + 3V3_SYS + ")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("rapl", "no RAPL"),
        ("ina3221", "no INA3221 of JetPack 4"),
        ("pmic", "no vcgencmd"),
        ("tegrastats", "no tegrastats"),
        ("ina226", "no driver of ina226"),
        ("ina226@1-0x40", 'no I2C bus "'),
        ("ina238@1-0x40", "is read through the kernel's driver only"),
        ("ina226@1-0x40:-1", '"-1" is no positive number'),
        ("csv:nowhere.csv", '"nowhere.csv" cannot be read'),
        ("serial:/dev/null@9600", '"/dev/null" is no serial port'),
        ("serial:/dev/nowhere", '"/dev/nowhere" cannot be opened'),
        ("serial:/dev/null@123", '"123" is no speed of a serial port'),
        ("simulated:nowhere.csv", '"nowhere.csv" cannot be read'),
        ("simulated:nowhere.csv@fast", '"fast" is no positive number'),
        ("nowhere.module:Meter", "ModuleNotFoundError"),
    ],
)
def test_a_meter_that_was_named_and_is_not_there_is_refused(spec: str, said: str, root: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_meter(root, spec)
    assert caught.value.message.startswith(f'the meter "{spec}" cannot be read: ')
    assert said in caught.value.message
    assert caught.value.tries == ("--meter auto",)


def test_an_unknown_name_is_refused_with_the_known_ones(root: Path) -> None:
    with pytest.raises(UserError, match='"wattmeter" names no meter') as caught:
        find_meter(root, "wattmeter")
    assert "--meter rapl" in caught.value.tries
    assert find_meter(root, "none").source == "energy was switched off (--meter none)"


# A meter of the user's own

_OWN = """
class Meter:
    source, resolution_j, leaves_out = "bench supply (mine)", 0.25, "nothing"
    joules, entered = 10.0, False
    def __enter__(self): Meter.entered = True; return self
    def __exit__(self, *error): Meter.entered = False
    def read_j(self):
        assert Meter.entered, "not entered"
        Meter.joules += 2.5
        return Meter.joules
class Half:
    source = "half"
class Broken:
    def __init__(self): raise OSError("unplugged")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/my_bench_supply.py").write_text(_OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path / "own"


def test_a_meter_of_the_users_own(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(own))
    meter = find_meter(spec="my_bench_supply:Meter")
    reading = meter.read()
    assert (reading.energy_j, reading.reason) == (None, "bench supply (mine): AssertionError: not entered")
    with meter:
        window = between(meter.source, meter.read(), meter.read(), 1)
    assert (window.energy_j, window.source) == (2.5, "bench supply (mine)")
    assert window.error_j == 0.5
    assert meter.read_j() is None
    for name, said in (
        ("Half", "it has no read_j, resolution_j"),
        ("Broken", "OSError: unplugged"),
        ("No", "AttributeError"),
    ):
        with pytest.raises(UserError, match=said):
            find_meter(spec=f"my_bench_supply:{name}")


def test_it_is_found_by_an_isolated_interpreter_too(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Path(__file__).parents[2]
    program = "import sys; sys.path.insert(0, sys.argv[1]); from runtime_edge.meters.find import find_meter; "
    program += "print('my_bench_supply' in sys.modules, find_meter(spec='my_bench_supply:Meter').source)"
    argv = [sys.executable, "-I", "-c", program, str(repository)]
    done = subprocess.run(argv, capture_output=True, text=True, env={"PYTHONPATH": str(own)}, check=True)
    assert done.stdout == "False bench supply (mine)\n"

"""Readers of power on the file systems and captured outputs of real boards."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from sysfs import trees

from runtime_edge.meters.external import parse_serial
from runtime_edge.meters.find import find_meter
from runtime_edge.meters.hwmon import external_meter, jetson_sensor
from runtime_edge.meters.i2c import LinuxBus
from runtime_edge.meters.ina2xx import Ina2xxMeter, Ina2xxSensor, ina2xx_meter, ina228_counter
from runtime_edge.meters.integral import Power
from runtime_edge.meters.meter import AbsentError, Meter, MeterError, Reading
from runtime_edge.meters.pmic import parse_adc
from runtime_edge.meters.rails import RULES, find_total
from runtime_edge.meters.sampled import SampledMeter
from runtime_edge.meters.tegrastats import parse_line
from splitboard.contract.errors import UserError


def power_w(meter: Meter) -> dict[str, float]:
    """Mean power by rail between two readings, and of the total as ``total``."""
    first, last = meter.read(), meter.read()
    seconds = (last.time_ns - first.time_ns) / 1e9
    found = {rail: (joules - first.rails_j[rail]) / seconds for rail, joules in last.rails_j.items()}
    return {**found, "total": _joules(last, first) / seconds}


def _joules(last: Reading, first: Reading) -> float:
    if last.energy_j is None or first.energy_j is None:
        raise RuntimeError(last.reason)
    return last.energy_j - first.energy_j


# Jetson


@pytest.mark.parametrize("board", trees.BOARDS)
def test_the_total_of_every_board(board: str, tmp_path: Path) -> None:
    tree, source, watts, rails = trees.BOARDS[board]
    tree(tmp_path)
    meter = find_meter(tmp_path)
    assert meter.source == source
    assert power_w(meter)["total"] == pytest.approx(watts)
    facts = meter.facts()
    if facts is None:
        raise RuntimeError("no facts")
    assert facts.total == rails
    assert set(rails) <= set(facts.rails)
    assert "power supply" in facts.leaves_out


def test_rails_within_the_total_are_told_and_not_added(tmp_path: Path) -> None:
    trees.orin_nano(tmp_path)
    sensor, now_ns = jetson_sensor(tmp_path), [0]
    meter = SampledMeter(sensor, find_total(sensor.rails), lambda: now_ns[0])
    meter.read()
    now_ns[0] = 10**9
    reading = meter.read()
    assert reading.rails_j == pytest.approx({"VDD_IN": 4.2, "VDD_CPU_GPU_CV": 0.519168, "VDD_SOC": 1.39776})
    assert reading.energy_j == pytest.approx(4.2)


def test_negative_currents_of_a_rail_near_zero(tmp_path: Path) -> None:
    """As the logs of a Thor have them: one step of 20 mA at 19.6 V."""
    trees.thor(tmp_path)
    assert jetson_sensor(tmp_path).read(("VDD_GPU",))["VDD_GPU"].watts == pytest.approx(-0.392)


def test_channels_that_are_not_connected_or_off_are_no_rails(tmp_path: Path) -> None:
    trees.agx_orin(tmp_path)
    assert jetson_sensor(tmp_path).rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")
    (tmp_path / "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon4/in2_enable").write_text("0\n")
    assert jetson_sensor(tmp_path).rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")


def test_the_number_that_the_kernel_gives_does_not_matter(tmp_path: Path) -> None:
    for number in (0, 11):
        root = tmp_path / str(number)
        trees.ina3221(root, [("VDD_IN", 5000, 840)], number=number)
        trees.write(root / f"sys/class/hwmon/hwmon{number + 1}", {"name": "pwmfan", "in1_label": "VDD_IN"})
        assert jetson_sensor(root).rails == ("VDD_IN",)


@pytest.mark.parametrize(
    ("shunt_uohm", "step_a"), [(5000, 8e-3), (2000, 20e-3), (10000, 4e-3), (30000, 40e-6 / 0.03 + 1e-3)]
)
def test_the_resolution_follows_from_the_shunt(shunt_uohm: int, step_a: float, tmp_path: Path) -> None:
    """40 uV over the shunt and 8 mV of voltage; what is no whole milliampere is cut by the driver."""
    trees.ina3221(tmp_path, [("VDD_IN", 19600, 500)], shunt_uohm=shunt_uohm)
    told = jetson_sensor(tmp_path).read(("VDD_IN",))["VDD_IN"]
    assert told.watts == pytest.approx(9.8)
    assert told.step_w == pytest.approx(19.6 * step_a + 0.5 * 8e-3 + step_a * 8e-3)


def test_the_coarsest_shunt_is_taken_where_none_is_told(tmp_path: Path) -> None:
    folder = trees.ina3221(tmp_path, [("VDD_IN", 19600, 500)])
    (folder / "shunt1_resistor").unlink()
    assert jetson_sensor(tmp_path).read(("VDD_IN",))["VDD_IN"].step_w == pytest.approx(19.6 * 0.02, rel=0.02)


def test_unknown_rails_have_no_total_and_are_told_one_by_one(tmp_path: Path) -> None:
    trees.ina3221(tmp_path, [("VDD_A", 5000, 100), ("VDD_B", 5000, 200), ("NC", 0, 0)])
    meter = find_meter(tmp_path)
    meter.read()
    reading = meter.read()
    assert meter.source == "ina3221: no total"
    assert (reading.energy_j, reading.reason) == (None, 'no total is known for the rails "VDD_A, VDD_B"')
    assert reading.rails_j["VDD_B"] == pytest.approx(2 * reading.rails_j["VDD_A"], rel=1e-2)


def test_thor_without_its_carriers_monitor_has_no_total(tmp_path: Path) -> None:
    trees.ina3221(tmp_path, [("VDD_GPU", 19600, 20), ("VDD_CPU_SOC_MSS", 19600, 200), ("VIN_SYS_5V0", 5024, 2000)])
    assert find_meter(tmp_path).source == "ina3221: no total"


def test_a_chip_that_stops_answering(tmp_path: Path) -> None:
    folder = trees.ina3221(tmp_path, [("VDD_IN", 5000, 840)])
    meter = find_meter(tmp_path)
    assert meter.read_j() == 0.0
    (folder / "curr1_input").unlink()
    reading = meter.read()
    assert reading.energy_j is None
    assert reading.n_failed == 3
    assert re.fullmatch(
        r'no power sample: ".*/curr1_input" cannot be read: No such file or directory', reading.reason or ""
    )


# Which rails


def test_no_rule_adds_a_rail_to_the_one_that_feeds_it() -> None:
    for rule in RULES:
        assert not rule.nested & {*rule.total, *rule.also}, rule.boards


@pytest.mark.parametrize(
    ("rails", "total"),
    [
        (["VDD_IN", "VDD_CPU", "SOMETHING"], ("VDD_IN",)),  # in front of everything, whatever else there is
        (["VIN", "VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"], ("VIN",)),
        (["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"], ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        (["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "SOMETHING"], ()),
        (["VDD_GPU_SOC", "VDD_CPU_CV"], ()),
        (["GPU", "CPU", "SOC", "CV", "VDDRQ"], ()),
        ([], ()),
    ],
)
def test_totals(rails: list[str], total: tuple[str, ...]) -> None:
    found = find_total(rails)
    assert found.rails == total
    assert (found.reason is None) == bool(total)


def test_what_is_not_added_is_said() -> None:
    assert (
        "VDDQ_VDD2_1V8AO is within VIN_SYS_5V0" in find_total(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")).leaves_out
    )


# tegrastats


@pytest.mark.parametrize(
    ("name", "milliwatts", "total"),
    [
        ("nano_jp4", {"POM_5V_IN": 900, "POM_5V_GPU": 0, "POM_5V_CPU": 123}, ("POM_5V_IN",)),
        ("tx1", {"VDD_IN": 2532, "VDD_CPU": 76, "VDD_GPU": 19}, ("VDD_IN",)),
        (
            "tx2_jp4",
            {"VDD_IN": 2003, "VDD_CPU": 320, "VDD_GPU": 400, "VDD_SOC": 400, "VDD_WIFI": 0, "VDD_DDR": 240},
            ("VDD_IN",),
        ),
        (
            "tx2_later",
            {
                "VDD_SYS_GPU": 182, "VDD_SYS_SOC": 730, "VDD_4V0_WIFI": 0, "VDD_IN": 5297, "VDD_SYS_CPU": 1917,
                "VDD_SYS_DDR": 1241,
            },
            ("VDD_IN",),
        ),
        *(
            (
                release,
                {"GPU": 0, "CPU": 216, "SOC": 864, "CV": 0, "VDDRQ": 144, "SYS5V": 1889},
                ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
            )
            for release in ("agx_xavier_jp4", "agx_xavier_jp5")
        ),
        ("orin_nano_jp6", {"VDD_IN": 4200, "VDD_CPU_GPU_CV": 520, "VDD_SOC": 1400}, ("VDD_IN",)),
        (
            "agx_orin_jp7_2",
            {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500},
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        ),
    ],
)  # fmt: skip
def test_lines_of_tegrastats(name: str, milliwatts: dict[str, int], total: tuple[str, ...]) -> None:
    found = parse_line(trees.capture(f"tegrastats_{name}"))
    assert {rail: round(power.watts * 1e3) for rail, power in found.items()} == milliwatts
    assert find_total(found).rails == total


def test_tegrastats_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = trees.capture("tegrastats_orin_nano_jp6").strip()
    script = f'test "$1 $2" = "--interval 100" || exit 1\nwhile echo "{line}"; do sleep 0.05; done'
    trees.program(tmp_path / "bin", "tegrastats", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with find_meter(tmp_path, "tegrastats") as meter:
        assert meter.source == "tegrastats: VDD_IN"
        assert power_w(meter) == pytest.approx({"VDD_IN": 4.2, "VDD_CPU_GPU_CV": 0.52, "VDD_SOC": 1.4, "total": 4.2})


def test_tegrastats_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.program(tmp_path / "bin", "tegrastats", "echo VDD_IN 4200mW/4300mW")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with find_meter(tmp_path, "tegrastats") as meter:
        reading = meter.read()
    assert (reading.energy_j, reading.reason) == (None, "tegrastats has ended")
    trees.program(tmp_path / "bin", "tegrastats", "echo RAM 1/2MB")
    with pytest.raises(UserError, match="tegrastats tells no power"):
        find_meter(tmp_path, "tegrastats")


# Raspberry Pi 5


def test_the_rails_of_a_raspberry_pi_5() -> None:
    """Volts and amperes of the same name multiplied; the input and the battery have no current."""
    said = trees.capture("rpi5_pmic_read_adc")
    by_hand = {
        "VDD_CORE": 10.87674 * 0.8974594, "3V3_SYS": 0.06245952 * 3.306322, "1V8_SYS": 0.1610285 * 1.798289,
        "1V1_SYS": 0.1756674 * 1.104394, "DDR_VDD2": 0.00780744 * 1.102929, "DDR_VDDQ": 0.0, "3V7_WL_SW": 0.0,
        "0V8_SW": 0.3279125 * 0.8025633, "3V3_DAC": 0.0003663 * 3.304942, "3V3_ADC": 0.00042735 * 3.302194,
        "0V8_AON": 0.00579975 * 0.7973619, "HDMI": 0.0136752 * 5.07056,
    }  # fmt: skip
    assert {rail: power.watts for rail, power in parse_adc(said).items()} == pytest.approx(by_hand)
    assert set(find_total(parse_adc(said)).rails) == set(by_hand)
    assert "USB" in find_total(parse_adc(said)).leaves_out


def test_a_firmware_with_another_name_for_a_rail() -> None:
    said = trees.capture("rpi5_pmic_read_adc")
    renamed = parse_adc(said.replace("0V8_SW", "0V8_SYS"))
    assert "0V8_SYS" in find_total(renamed).rails
    assert find_total(parse_adc(said.replace("0V8_SW", "0V8_NEW"))).reason == (
        'unknown rail "0V8_NEW" beside those of Raspberry Pi 5, Compute Module 5: no total is known'
    )
    with pytest.raises(MeterError, match='the current of "0V8_SW" and not its voltage'):
        parse_adc(said.replace("0V8_SW_V", "0V8_SYS_V"))


def test_a_raspberry_pi_4_tells_no_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.program(tmp_path / "bin", "vcgencmd", "echo 'error=1 error_msg=\"Command not registered\"'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(UserError, match="vcgencmd tells no current on this board"):
        find_meter(tmp_path, "pmic")


def test_the_sum_of_a_raspberry_pi_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "said").write_text(trees.capture("rpi5_pmic_read_adc"))
    trees.program(tmp_path / "bin", "vcgencmd", f'test "$1" = pmic_read_adc && cat {tmp_path / "said"}')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert power_w(find_meter(tmp_path))["total"] == pytest.approx(10.8, rel=0.01)


# INA2xx with a driver of the kernel


def test_a_sensor_of_the_users_own(tmp_path: Path) -> None:
    trees.ina2xx(tmp_path)
    for spec in ("ina2xx", "ina226", "ina226@1-0x40", "ina226@1-40"):
        meter = find_meter(tmp_path, spec)
        assert (meter.source, power_w(meter)["total"]) == ("ina226: 1-0040", pytest.approx(3.128))
    with pytest.raises(UserError, match="no driver of ina219"):
        find_meter(tmp_path, "ina219")


def test_its_resolution(tmp_path: Path) -> None:
    """INA226 with 100 mOhm: 25 uA and 1.25 mV a step, and the product in steps of 25 times the current's."""
    trees.ina2xx(tmp_path)
    meter = external_meter(tmp_path)
    meter.read()
    facts = meter.facts()
    assert facts is not None
    assert facts.resolution_w == pytest.approx(5.112 * 25e-6 + 3.128 / 5.112 * 1.25e-3 + 25 * 25e-6, rel=1e-3)


def test_of_two_one_must_be_named(tmp_path: Path) -> None:
    trees.ina2xx(tmp_path)
    trees.hwmon(tmp_path, "ina2xx", "1-0041", 5, {"name": "ina219", "in1_input": 5000, "power1_input": 1000000})
    with pytest.raises(MeterError, match='"2" external power sensors, name one: ina219@1-0x41, ina226@1-0x40'):
        external_meter(tmp_path)
    assert find_meter(tmp_path, "ina219@1-0x41").source == "ina219: 1-0041"
    assert find_meter(tmp_path, "ina226").source == "ina226: 1-0040"


def test_the_energy_register_of_an_ina228_is_read_as_it_is(tmp_path: Path) -> None:
    folder = trees.ina2xx(tmp_path, "ina228", energy1_input=7_000_000)
    meter = find_meter(tmp_path)
    facts = meter.facts()
    assert (meter.read_j(), facts and facts.method) == (7.0, "energy counter")
    (folder / "energy1_input").write_text("9500000\n")
    assert meter.read_j() == 9.5


# INA2xx on the bus


class Registers:
    """A chip's registers."""

    def __init__(self, **values: int) -> None:
        self.values = {int(name[1:], 16): value for name, value in values.items()}

    def read(self, register: int, n_bytes: int) -> int:
        value = self.values[register]
        assert value < 1 << 8 * n_bytes
        return value

    def write(self, register: int, value: int) -> None:
        self.values[register] = value


@pytest.mark.parametrize(
    ("kind", "registers", "ohm", "volts", "amperes"),
    [
        # INA219 data sheet, 8.5.1 (programming example): 1 A through 0.1 ohm is 0x2710; 11.98 V is 0x5D98
        ("ina219", {"r01": 0x2710, "r02": 0x5D98}, 0.1, 11.98, 1.0),
        # INA226 data sheet, 7.5.3 (table 1): 20 mV over 2 mOhm is 0x1F40, 11.98 V is 0x2570
        ("ina226", {"r01": 0x1F40, "r02": 0x2570}, 0.002, 11.98, 10.0),
        ("ina226", {"r01": 0x10000 - 0x1F40, "r02": 0x2570}, 0.002, 11.98, -10.0),
        # INA260: 1.25 mA a step, inside
        ("ina260", {"r01": 8000, "r02": 0x2570}, 1.0, 11.98, 10.0),
    ],
)  # fmt: skip
def test_the_data_sheets_own_examples(
    kind: str, registers: dict[str, int], ohm: float, volts: float, amperes: float
) -> None:
    told = Ina2xxSensor(kind, Registers(**registers), "x", ohm).read(("x",))["x"]
    assert told.watts == pytest.approx(volts * amperes, rel=1e-3)


def test_averaging_is_switched_on_and_put_back() -> None:
    chip = Registers(r00=0x4127, r01=100, r02=4000)
    sensor = Ina2xxSensor("ina226", chip, "x", 0.1)
    with Ina2xxMeter(sensor) as meter:
        assert chip.values[0] == 0x4527  # AVG = 2: 16 of each, data sheet table 6
        assert power_w(meter)["total"] == pytest.approx(100 * 2.5e-6 / 0.1 * 4000 * 1.25e-3)
    assert chip.values[0] == 0x4127


def test_a_shunt_that_was_not_told_makes_an_estimate() -> None:
    chip = Registers(r00=0x4127, r01=100, r02=4000)
    assert "estimate: shunt of 0.1 ohm assumed" in ina2xx_meter("ina226", chip, "1-0x40", None).source
    assert "estimate" not in ina2xx_meter("ina226", chip, "1-0x40", 0.1).source
    assert "estimate" not in ina2xx_meter("ina260", chip, "1-0x40", None).source


def test_the_energy_register_across_its_wrap() -> None:
    """Data sheet, 8.2.2 (design example): 10 A at most, so 19.0735 uA a step, and 16.2 mOhm: SHUNT_CAL 4050."""
    chip = Registers(r00=0x0000, r02=4050, r09=(1 << 40) - 1000)
    counter, step_j = ina228_counter(chip, 0.0162)
    assert step_j == pytest.approx(16 * 3.2 * 19.0735e-6, rel=1e-4)
    chip.values[9] = 500
    assert counter() == pytest.approx(1500 * step_j)
    chip.values[0] = 0x0010  # ADCRANGE: SHUNT_CAL is four times as much
    assert ina228_counter(chip, 0.0162)[1] == pytest.approx(step_j / 4)
    with pytest.raises(MeterError, match="not calibrated"):
        ina228_counter(Registers(r02=0), 0.0162)


def test_a_bus_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="no I2C bus"):
        LinuxBus(tmp_path, 1, 0x40)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/i2c-1").touch()
    with pytest.raises(MeterError, match="Inappropriate ioctl"):
        LinuxBus(tmp_path, 1, 0x40)


# The thread


def test_the_thread_samples_by_itself(tmp_path: Path) -> None:
    trees.orin_nano(tmp_path)
    meter = find_meter(tmp_path)
    assert isinstance(meter, SampledMeter)
    switch_s = sys.getswitchinterval()
    with meter:
        assert sys.getswitchinterval() < switch_s
        start = meter.read()
        while meter.read().n_samples < start.n_samples + 20:
            pass
        end = meter.read()
    assert _joules(end, start) == pytest.approx(4.2 * (end.time_ns - start.time_ns) / 1e9)
    assert end.n_failed == 0
    assert sys.getswitchinterval() == switch_s


def test_lines_of_a_serial_meter() -> None:
    assert parse_serial("3.214\r") == {"external": Power(3.214, 0.001)}
    told = parse_serial(" 5.12, 0.61")
    assert told is not None
    assert told["external"].watts == pytest.approx(5.12 * 0.61)
    assert told["external"].step_w == pytest.approx(5.12 * 0.01 + 0.61 * 0.01 + 1e-4)
    for line in ("", "watts", "1,2,3", "5.1 V"):
        assert parse_serial(line) is None

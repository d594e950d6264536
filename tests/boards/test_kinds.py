"""Kinds of board: every file loads, nothing unknown is accepted, and what they say is what boards print."""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from boards.kinds import kind_names, load_kind, require_precision, runs_bundles_of, systems_for, this_machine
from calib.quantise import PRECISIONS
from splitboard.cli.main import run
from splitboard.contract.board import BoardKind
from splitboard.contract.decode import decode
from splitboard.contract.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
FOLDER = Path(__file__).parents[2] / "boards" / "kinds"
CAPTURES: dict[str, Any] = tomllib.loads((HERE / "captures" / "kinds.toml").read_text())
KERNELS_USE = {"asimd", "crc32", "atomics", "fphp", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16"}

# Of NVIDIA's release notes: Jetson Linux -> TensorRT, CUDA, Python.
JETPACKS = {
    "32.7.1": ("8.2.1", "10.2", "3.6"),
    "35.4.1": ("8.5.2", "11.4", "3.8"),
    "36.3.0": ("8.6.2", "12.2", "3.10"),
    "36.4.3": ("10.3.0", "12.6", "3.10"),
    "36.5.0": ("10.3.0", "12.6", "3.10"),
    "38.2.0": ("10.13", "13.0", "3.12"),
    "38.4.0": ("10.13.3", "13.0", "3.12"),
    "39.2.0": ("10.16.2", "13.2", "3.12"),
}
RUN_BY = {
    "jetson-nano": ["32.7.1"],
    "jetson-tx2": ["32.7.1"],
    "jetson-xavier-nx": ["32.7.1", "35.4.1"],
    "jetson-agx-xavier": ["32.7.1", "35.4.1"],
    "jetson-orin-nano": ["35.4.1", "36.3.0", "36.4.3", "36.5.0", "39.2.0"],
    "jetson-orin-nx": ["35.4.1", "36.3.0", "36.4.3", "36.5.0", "39.2.0"],
    "jetson-agx-orin": ["35.4.1", "36.3.0", "36.4.3", "36.5.0", "39.2.0"],
    "jetson-thor": ["38.2.0", "38.4.0", "39.2.0"],
}
# SoC, cores, name of the cores, memory in GiB: the makers' data sheets.
SOLD = {
    "rpi-zero2w": ("RP3A0", 4, "A53", [0.5]),
    "rpi3": ("BCM2837B0", 4, "A53", [1]),
    "rpi4": ("BCM2711", 4, "A72", [1, 2, 4, 8]),
    "cm4": ("BCM2711", 4, "A72", [1, 2, 4, 8]),
    "rpi5": ("BCM2712", 4, "A76", [1, 2, 4, 8, 16]),
    "cm5": ("BCM2712", 4, "A76", [2, 4, 8, 16]),
    "jetson-nano": ("T210", 4, "A57", [2, 4]),
    "jetson-tx2": ("T186", 6, "Denver", [8]),
    "jetson-xavier-nx": ("T194", 6, "Carmel", [8, 16]),
    "jetson-agx-xavier": ("T194", 8, "Carmel", [32, 64]),
    "jetson-orin-nano": ("T234", 6, "A78AE", [4, 8]),
    "jetson-orin-nx": ("T234", 8, "A78AE", [8, 16]),
    "jetson-agx-orin": ("T234", 12, "A78AE", [32, 64]),
    "jetson-thor": ("T264", 14, "V3AE", [128]),
}


def rails(kind: BoardKind) -> list[str]:
    return [rail for chip in kind.meter.chips for rail in chip.rails]


def test_the_kinds_are_these() -> None:
    assert kind_names() == sorted([*SOLD, "linux-arm64", "linux-x86-64"])


@pytest.mark.parametrize("name", kind_names())
def test_every_kind_loads_and_is_whole(name: str) -> None:
    kind = load_kind(name)
    assert kind.name == name
    assert kind.format == ("onnx" if "tensorrt" in kind.runtime else "tflite")
    assert {*kind.precisions, *kind.refused} == set(PRECISIONS)
    assert not set(kind.precisions) & kind.refused.keys()
    assert all(len(reason) > 20 for reason in kind.refused.values())
    assert kind.flash.method in ("sd-image", "l4t-initrd", "none")
    assert kind.meter.leaves_out
    assert set(kind.meter.total) <= set(rails(kind))
    assert bool(kind.meter.total) == bool(kind.meter.chips)
    assert all(set(system.runtimes) <= set(kind.runtime) for system in kind.systems)
    assert all(set(system.numpy) <= set(system.runtimes) for system in kind.systems)
    assert all(re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", usb) for usb in kind.flash.recovery_usb)


@pytest.mark.parametrize("name", kind_names())
def test_every_figure_has_its_source(name: str) -> None:
    """A comment in front of, or behind, every group of figures."""
    text = (FOLDER / f"{name}.toml").read_text()
    for key in ("soc", "isa", "ram_mib") if name in SOLD else ():
        line = next(i for i, one in enumerate(text.splitlines()) if one.startswith(f"{key} = "))
        assert "# " in text.splitlines()[line] or text.splitlines()[line - 1].startswith("# "), key
    tables = ["[[systems]]", "[device_tree]", *(["[meter]"] if load_kind(name).meter.chips else [])]
    for table in tables if name in SOLD else ():
        assert re.search(rf"^# .*\n{re.escape(table)}", text, re.MULTILINE), table


@pytest.mark.parametrize("name", SOLD)
def test_processor_and_memory_are_the_data_sheet_s(name: str) -> None:
    soc, cores, cpu, gibibytes = SOLD[name]
    kind = load_kind(name)
    assert soc in kind.soc
    assert cpu in kind.cpu
    assert (kind.cores, [mib / 1024 for mib in kind.ram_mib]) == (cores, gibibytes)


@pytest.mark.parametrize("name", CAPTURES["features"])
def test_instructions_are_those_of_a_captured_cpuinfo(name: str) -> None:
    assert set(load_kind(name).isa) == set(CAPTURES["features"][name].split()) & KERNELS_USE


def test_only_thor_multiplies_int8_matrices() -> None:
    assert [name for name in kind_names() if "i8mm" in load_kind(name).isa] == ["jetson-thor"]


@pytest.mark.parametrize("name", RUN_BY)
def test_jetpack_cuda_and_tensorrt_of_every_release(name: str) -> None:
    for release, (tensorrt, cuda, python) in JETPACKS.items():
        fitting = [one for one in load_kind(name).systems if release.startswith(tuple(f"{a}." for a in one.l4t))]
        assert len(fitting) == (release in RUN_BY[name]), release
        for system in fitting:
            assert (system.runtimes, system.cuda, system.python) == ({"tensorrt": tensorrt}, cuda, python)


def test_pis_have_these_interpreters() -> None:
    for name in (name for name in SOLD if not name.startswith("jetson")):
        trixie, bookworm = load_kind(name).systems
        assert (trixie.python, list(trixie.runtimes)) == ("3.13", ["ai-edge-litert"])
        assert (bookworm.python, bookworm.glibc) == ("3.11", "2.36")
        assert bookworm.numpy == {"tflite-runtime": "<2"}


@pytest.mark.parametrize("name", CAPTURES["tegrastats"])
def test_rails_are_those_of_a_captured_tegrastats(name: str) -> None:
    shown = re.findall(r"([A-Z]\w+) \d+(?:mW)?/\d+(?:mW)?(?:/\d+mW)?(?= |$)", CAPTURES["tegrastats"][name])
    kind = load_kind(name)
    nested = {"jetson-agx-orin": ["VDDQ_VDD2_1V8AO"]}.get(name, [])  # which tegrastats does not show
    assert rails(kind) == [*shown, *nested]


@pytest.mark.parametrize("name", ["jetson-nano", "jetson-tx2", "jetson-xavier-nx", "jetson-orin-nano", "jetson-thor"])
def test_a_rail_that_holds_the_others_is_the_total_alone(name: str) -> None:
    total = load_kind(name).meter.total
    assert total in (("POM_5V_IN",), ("VDD_IN",), ("VIN",))


def test_agx_boards_have_no_total_rail() -> None:
    assert load_kind("jetson-agx-orin").meter.total == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    xavier = load_kind("jetson-agx-xavier")
    assert list(xavier.meter.total) == rails(xavier)


@pytest.mark.parametrize("name", ["rpi5", "cm5"])
def test_rails_of_the_pi_are_those_with_a_current(name: str) -> None:
    printed = (HERE / "captures" / "pmic_read_adc.txt").read_text()
    kind = load_kind(name)
    assert rails(kind) == re.findall(r"^ *(\w+)_A current", printed, re.MULTILINE)
    assert list(kind.meter.total) == rails(kind)


def test_pis_without_a_sensor_say_so() -> None:
    for name in ("rpi-zero2w", "rpi3", "rpi4", "cm4"):
        assert load_kind(name).meter.chips == ()
        assert "no current" in load_kind(name).meter.leaves_out


@pytest.mark.parametrize("name", CAPTURES["nvpmodel"])
def test_power_modes_are_those_of_a_captured_configuration(name: str) -> None:
    captured = [re.findall("NAME=(\\S+)", line)[0] for line in CAPTURES["nvpmodel"][name]]
    modes = load_kind(name).clocks.power_modes
    assert sorted(modes) == sorted(captured)
    watts = [int(number[1]) for number in (re.search(r"(\d+)W", mode) for mode in modes) if number]
    assert watts == sorted(watts, reverse=True)
    assert all(mode.startswith("MAXN") for mode in modes[: len(modes) - len(watts)])


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        load_kind("rpi55")
    assert error.value.message == 'unknown board "rpi55"'
    assert error.value.tries[0] == '"rpi5" is the nearest'


@pytest.mark.parametrize(
    ("place", "wrong", "says"),
    [
        ("", "core", 'unknown key "core"'),
        ("meter", "chip", 'unknown key "chip"'),
        ("clocks", "power_mode", '"power_modes" is the nearest'),
        ("flash", "methode", '"method" is the nearest'),
        ("device_tree", "models", '"model" is the nearest'),
    ],
)
def test_an_unknown_key_is_refused_wherever_it_stands(place: str, wrong: str, says: str) -> None:
    data = {"name": "rpi5", **tomllib.loads((FOLDER / "rpi5.toml").read_text())}
    decode(BoardKind, data, "x")
    (data[place] if place else data)[wrong] = "x"
    with pytest.raises(UserError) as error:
        decode(BoardKind, data, "x")
    assert says in str(error.value)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match='unknown precision "int4"'):
        require_precision(load_kind("rpi5"), "int4")


@pytest.mark.parametrize("name", ["jetson-nano", "jetson-tx2"])
def test_no_int8_hardware_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UserError, match=f'"{name}" does not run "int8": .*has no INT8 hardware') as error:
        require_precision(load_kind(name), "int8")
    assert error.value.tries == (f"{name} runs: fp16, fp32",)


@pytest.mark.parametrize("name", RUN_BY)
def test_jetsons_build_fp16_and_no_16_bit_integers(name: str) -> None:
    for precision in ("fp16", "fp32"):
        require_precision(load_kind(name), precision)
    with pytest.raises(UserError, match="TensorRT has no 16-bit integer activations"):
        require_precision(load_kind(name), "int16x8")


def test_int8_is_not_for_systems_that_the_edge_runtime_does_not_run_on() -> None:
    """JetPack 4 has Python 3.6: there is trtexec alone, in fp16."""
    for name in RUN_BY:
        kind = load_kind(name)
        assert systems_for(kind, "fp16") == kind.systems
        assert {one.python for one in kind.systems} - {one.python for one in systems_for(kind, "int8")} <= {"3.6"}
    assert [one.jetpack for one in systems_for(load_kind("jetson-xavier-nx"), "int8")] == ["5.1"]
    assert len(systems_for(load_kind("rpi5"), "int8")) == len(load_kind("rpi5").systems)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tflite_kinds_build_every_precision(precision: str) -> None:
    for name in ("rpi-zero2w", "rpi5", "linux-x86-64"):
        require_precision(load_kind(name), precision)


def test_this_machine_is_of_a_generic_kind() -> None:
    assert this_machine().machine == platform.machine()


def test_bundles_of_the_own_and_the_generic_kind_run() -> None:
    assert runs_bundles_of(load_kind("rpi5"), "rpi5")
    assert runs_bundles_of(load_kind("rpi5"), "linux-arm64")
    assert not runs_bundles_of(load_kind("rpi5"), "rpi4")
    assert not runs_bundles_of(load_kind("rpi5"), "linux-x86-64")
    assert not runs_bundles_of(load_kind("linux-arm64"), "rpi5")


# The command line


@pytest.mark.parametrize("name", kind_names())
def test_show_says_all_of_a_kind(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    kind = load_kind(name)
    assert run(["boards", "show", name]) == 0
    out = capfd.readouterr().out
    said = [kind.title, kind.soc, kind.throttle, kind.meter.leaves_out, kind.flash.method, *kind.refused.values()]
    said += [*kind.isa, *rails(kind), *kind.clocks.power_modes, *(one.name for one in kind.systems)]
    said += [*kind.flash.recovery_usb, *kind.flash.board_configs.values(), *kind.flash.first_boot]
    assert [one for one in said if one not in out] == []


def test_the_list_and_one_kind_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs/schema/boards-output.schema.json").read_text())
    assert run(["boards", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert run(["boards", "show", "rpi5", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    for one in (listed, shown):
        jsonschema.validate(one, schema)
    assert [kind["name"] for kind in listed["kinds"]] == kind_names()
    assert shown["kinds"] == [kind for kind in listed["kinds"] if kind["name"] == "rpi5"]


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["show", "rpi6"], '"rpi6"'),
        (["rpi5"], '"rpi5"'),
        (["--json", "show", "rpi5"], '"--json"'),
        (["show"], '"kind"'),
    ],
)
def test_wrong_words_are_refused(arguments: list[str], value: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["boards", *arguments]) == 3
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert value in error.splitlines()[0]
    assert "\nTry: " in error

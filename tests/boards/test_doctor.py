"""The doctor: captured texts of sick boards, read by a real shell, and what mends them."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import jsonschema
import pytest
from sshd import Desk, real_sshd

from boards.doctor.doctor import doctor
from boards.doctor.finding import Finding, Findings, Level
from boards.doctor.readings import READINGS
from boards.doctor.wheels import WHEELS, below, misfits, number
from boards.kinds import this_machine
from boards.shell.local import LocalShell
from boards.shell.recorded import RecordedShell
from boards.shell.shell import Completed
from boards.stations import Station
from splitboard.cli.main import run
from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.errors import UserError

PI5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
ORIN = f"{PI5} uscat ilrcpc flagm paca pacg"
BOOKWORM = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\n'
GOVERNOR = "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"
MEMINFO = "MemTotal:        8245312 kB\nMemFree:         7000000 kB\nMemAvailable:    7400000 kB\n"
SUPER = "".join(f"< POWER_MODEL ID={i} NAME={name} >\n" for i, name in enumerate(["15W", "25W", "MAXN_SUPER", "7W"]))
NO_VCIO = "Can't open device file: /dev/vcio\nTry creating a device file with: sudo mknod /dev/vcio c 100 0\n"


class FakeBoard:
    """A board's files in a folder, and its programs on PATH."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.programs = folder / "bin"
        self.home = folder / "home"
        for one in (self.root, self.programs, self.home):
            one.mkdir(parents=True)

    def file(self, path: str, content: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(content)

    def prints(self, program: str, output: str, code: int = 0) -> None:
        """A program that prints this whatever it is asked."""
        text = self.programs / f".{program}.txt"
        text.write_text(output)
        path = self.programs / program
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\ncat '{text}'\nexit {code}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def python(self, version: str, bits: int = 64, **packages: str) -> None:
        found = {name.replace("_", "-"): one for name, one in packages.items()}
        said = {"version": version, "path": "/usr/bin/python3", "packages": found, "bits": bits}
        self.prints("python3", json.dumps(said) + "\n")

    def doctor(self, kind: str | None = None, bundle: Bundle | None = None, meter: str | None = None) -> Findings:
        station = Station("pi1", "pi", "10.0.0.7", kind=kind, meter=meter)
        return doctor(LocalShell("pi1", self.home), station, bundle, PurePosixPath(self.root))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    """Nothing but a processor and a C library."""
    made = FakeBoard(tmp_path)
    monkeypatch.setenv("PATH", f"{made.programs}:/usr/bin:/bin")
    made.prints("uname", "aarch64\n")
    made.prints("id", "pi\n")
    made.prints("dpkg-query", "", 1)
    (made.programs / "getconf").write_text('#!/bin/sh\n[ "$1" = LONG_BIT ] && echo 64 || echo "glibc 2.36"\n')
    (made.programs / "getconf").chmod(0o755)
    made.file("proc/meminfo", MEMINFO)
    return made


@pytest.fixture
def pi5(empty: FakeBoard) -> FakeBoard:
    """In good health."""
    empty.file("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    empty.file("proc/device-tree/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0")
    empty.file("proc/cpuinfo", f"processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: {PI5}\nCPU part\t: 0xd0b\n")
    empty.file("etc/os-release", BOOKWORM)
    empty.file(GOVERNOR, "performance\n")
    empty.file("dev/vcio", "")
    empty.prints("vcgencmd", "throttled=0x0\n")
    empty.python("3.11.2", ai_edge_litert="2.3.0", numpy="2.4.6")
    return empty


@pytest.fixture
def orin(empty: FakeBoard) -> FakeBoard:
    """An Orin Nano (Super) with JetPack 6.2, in good health."""
    empty.file("proc/device-tree/model", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    empty.file(
        "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"
    )
    empty.file("proc/cpuinfo", f"Features\t: {ORIN}\n")
    empty.file("etc/os-release", 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\n')
    empty.file("etc/nv_tegra_release", "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic\n")
    empty.file("etc/nvpmodel.conf", SUPER)
    empty.file(GOVERNOR, "performance\n")
    empty.prints("nvpmodel", "NV Power Mode: MAXN_SUPER\n2\n")
    packages = {"libnvinfer10": "10.3.0.30-1+cuda12.5", "python3-libnvinfer": "10.3.0.30-1+cuda12.5"}
    packages |= {"nvidia-jetpack": "6.2.1+b38", "libnvinfer-dev": ""}
    empty.prints("dpkg-query", "".join(f"{name}\t{version}\n" for name, version in packages.items()))
    empty.file("usr/local/cuda/version.json", '{"cuda" : {\n "name" : "CUDA SDK",\n "version" : "12.6.11"\n }}\n')
    hwmon = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    for i, rail in enumerate(["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"], 1):
        empty.file(f"{hwmon}/in{i}_label", f"{rail}\n")
        empty.file(f"{hwmon}/in{i}_input", "5008\n")
    for i in (1, 2, 3):
        empty.file(f"sys/class/hwmon/hwmon3/oc{i}_event_cnt", "0\n")
    empty.python("3.10.12", tensorrt="10.3.0", numpy="1.26.4", pycuda="2024.1")
    return empty


def of(findings: Findings, check: str) -> list[Finding]:
    return [one for one in findings.findings if one.check == check]


def worst(findings: Findings, check: str) -> Finding:
    order = ["in the way", "warning", "ok"]
    return min(of(findings, check), key=lambda one: order.index(one.level))


def test_a_healthy_pi_has_nothing_to_mend(pi5: FakeBoard) -> None:
    findings = pi5.doctor("rpi5")
    assert (findings.station, findings.kind, findings.detected.kind) == ("pi1", "rpi5", "rpi5")
    assert {one.level for one in findings.findings} == {"ok"}, findings
    assert "Debian GNU/Linux 12 (bookworm), 64-bit, glibc 2.36" in of(findings, "system")[0].what


def test_a_healthy_orin_has_nothing_to_mend(orin: FakeBoard) -> None:
    findings = orin.doctor()
    assert findings.kind == "jetson-orin-nano"
    assert {one.level for one in findings.findings} == {"ok"}, findings
    assert of(findings, "tensorrt")[0].what == "10.3.0.30-1+cuda12.5"
    assert of(findings, "cuda")[0].what == "12.6.11"
    assert of(findings, "jetpack")[0].what == (
        "Jetson Linux 36.4.7, JetPack 6.1 and 6.2 (Ubuntu 22.04), nvidia-jetpack 6.2.1+b38"
    )


def test_looking_changes_nothing(orin: FakeBoard) -> None:
    def tree() -> dict[str, bytes]:
        files = sorted(one for one in orin.root.parent.rglob("*") if one.is_file())
        return {str(one): one.read_bytes() for one in files}

    before = tree()
    orin.doctor()
    assert tree() == before


def test_all_is_read_in_one_round_trip() -> None:
    shell = captured({**HEALTHY, "time": "1770000000"})
    assert doctor(shell, Station("pi1", "pi", "10.0.0.7")).kind == "rpi5"
    assert shell.ran == [("sh", "-s", "--", "", "splitboard", "python3")]


def test_an_orin_without_a_binding_of_cuda(orin: FakeBoard) -> None:
    orin.python("3.10.12", tensorrt="10.3.0", numpy="1.26.4")

    def mended() -> tuple[str, ...]:
        return next(one.mend for one in of(orin.doctor(), "cuda") if one.what == "Python has no CUDA binding yet")

    assert mended()[0].startswith("splitboard deploy")
    orin.file("etc/nv_tegra_release", "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: generic\n")
    assert [one.endswith("-m pip install pycuda") for one in mended()] == [True]


@pytest.mark.parametrize(
    ("meter", "known"), [("nonsense", False), ("csv:", False), ("ina226@1-0x40", True), ("my.lab:Meter", True)]
)
def test_a_meter_that_is_none(pi5: FakeBoard, meter: str, known: bool) -> None:
    said = [one.what for one in of(pi5.doctor("rpi5", meter=meter), "energy")]
    assert (f'"{meter}" names no meter' in said) != known


# Python, numpy and the interpreter


@pytest.mark.parametrize(
    ("python", "packages", "check", "level", "says", "mend"),
    [
        ("3.11.2", {"tflite_runtime": "2.14.0", "numpy": "1.26.4"}, "numpy", "ok", "1.26.4", ""),
        (
            "3.11.2",
            {"tflite_runtime": "2.14.0", "numpy": "2.1.3"},
            "numpy",
            "in the way",
            "tflite-runtime 2.14.0 needs numpy < 2 and finds numpy 2.1.3",
            '/usr/bin/python3 -m pip install "numpy<2"',
        ),
        (
            "3.11.2",
            {"tflite_runtime": "2.14.0"},
            "numpy",
            "in the way",
            "tflite-runtime is there, numpy is not",
            '/usr/bin/python3 -m pip install "numpy<2"',
        ),
        # The runtime takes ai-edge-litert if both are there, and that goes with numpy 2.
        (
            "3.11.2",
            {"tflite_runtime": "2.14.0", "ai_edge_litert": "2.3.0", "numpy": "2.1.3"},
            "numpy",
            "ok",
            "2.1",
            "",
        ),
        ("3.13.5", {}, "interpreter", "warning", "ai-edge-litert 2.3.0 fits", "splitboard deploy"),
        ("3.12.3", {}, "interpreter", "warning", "ai-edge-litert 2.3.0 fits", "splitboard deploy"),
        ("3.9.2", {}, "interpreter", "warning", "tflite-runtime 2.14.0 fits", "splitboard deploy"),
        ("3.8.10", {}, "interpreter", "in the way", "tflite-runtime needs Python 3.9 to 3.11", "splitboard flash"),
        ("3.7.3", {}, "python", "in the way", "the edge runtime needs 3.8 or newer", "sudo apt install python3.8"),
    ],
)
def test_interpreter_and_numpy(
    python: str, packages: dict[str, str], check: str, level: Level, says: str, mend: str, pi5: FakeBoard
) -> None:
    pi5.python(python, **packages)
    found = worst(pi5.doctor("rpi5"), check)
    assert found.level == level, found
    assert says in found.what
    assert mend in (found.mend or ("",))[0]


def test_bullseye_has_too_old_a_c_library_for_tflite_runtime(pi5: FakeBoard) -> None:
    pi5.python("3.9.2")
    (pi5.programs / "getconf").write_text('#!/bin/sh\n[ "$1" = LONG_BIT ] && echo 64 || echo "glibc 2.31"\n')
    found = worst(pi5.doctor("rpi5"), "interpreter")
    assert found.level == "in the way"
    assert "tflite-runtime needs glibc 2.34" in found.what
    assert "ai-edge-litert needs Python 3.10 to 3.14" in found.what


@pytest.mark.parametrize(("python", "level"), [("3.11.2", "warning"), ("3.13.5", "in the way")])
def test_a_32_bit_system_under_a_64_bit_kernel(python: str, level: Level, pi5: FakeBoard) -> None:
    """``uname -m`` says aarch64 there: only programs know. Trixie's Python has no wheel at all."""
    (pi5.programs / "getconf").write_text('#!/bin/sh\n[ "$1" = LONG_BIT ] && echo 32 || echo "glibc 2.36"\n')
    pi5.python(python, bits=32)
    findings = pi5.doctor("rpi5")
    assert "a 32-bit system" in worst(findings, "system").what
    found = worst(findings, "interpreter")
    assert found.level == level
    assert ("tflite-runtime" if level == "warning" else "has no wheel for armv7l") in found.what


def test_a_32_bit_kernel(pi5: FakeBoard) -> None:
    pi5.prints("uname", "armv7l\n")
    (pi5.programs / "getconf").write_text('#!/bin/sh\n[ "$1" = LONG_BIT ] && echo 32 || echo "glibc 2.36"\n')
    pi5.python("3.11.2", bits=32, tflite_runtime="2.14.0", numpy="1.24.2")
    findings = pi5.doctor("rpi5")
    found = worst(findings, "system")
    assert (found.level, found.mend) == ("warning", ("splitboard flash rpi5: with a 64-bit image",))
    assert not findings.in_the_way


def test_no_python_at_all(pi5: FakeBoard) -> None:
    pi5.prints("python3", "", 127)
    (found,) = of(pi5.doctor("rpi5"), "python")
    assert (found.level, found.mend) == ("in the way", ("sudo apt install python3",))


def test_a_real_python_is_asked(pi5: FakeBoard) -> None:
    """The one that runs this, with its own metadata as the reference."""
    (pi5.programs / "python3").unlink()
    (pi5.programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (pi5.programs / "python3").chmod(0o755)
    findings = pi5.doctor("rpi5")
    version = ".".join(map(str, sys.version_info[:3]))
    assert of(findings, "python")[0].what == f"{version} at {sys.executable}"
    assert of(findings, "interpreter")[0].what == f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"
    assert of(findings, "numpy")[0].what == importlib.metadata.version("numpy")


def test_the_environment_of_the_deployed_release_is_what_counts(pi5: FakeBoard) -> None:
    pi5.python("3.11.2", tflite_runtime="2.14.0", numpy="2.1.3")
    deployed = pi5.home / "splitboard/current/venv/bin/python"
    deployed.parent.mkdir(parents=True)
    said = {"version": "3.11.2", "path": "/d/python", "packages": {"tflite-runtime": "2.14.0", "numpy": "1.26.4"}}
    deployed.write_text(f"#!/bin/sh\necho '{json.dumps({**said, 'bits': 64})}'\n")
    deployed.chmod(0o755)
    findings = pi5.doctor("rpi5")
    assert of(findings, "numpy")[0].what == "1.26.4"
    assert not findings.in_the_way


# Tags of the wheels on PyPI: name, Python, machine, glibc -> whether there is one that installs.
INSTALLS = [
    ("ai-edge-litert", "3.11.2", "aarch64", "2.36", True),
    ("ai-edge-litert", "3.13.5", "aarch64", "2.41", True),
    ("ai-edge-litert", "3.10.12", "aarch64", "2.35", True),
    ("ai-edge-litert", "3.9.2", "aarch64", "2.31", False),
    ("ai-edge-litert", "3.11.2", "armv7l", "2.36", False),
    ("tflite-runtime", "3.11.2", "aarch64", "2.36", True),
    ("tflite-runtime", "3.11.2", "armv7l", "2.36", True),
    ("tflite-runtime", "3.12.3", "aarch64", "2.39", False),
    ("tflite-runtime", "3.13.5", "armv7l", "2.41", False),
    ("tflite-runtime", "3.9.2", "aarch64", "2.31", False),
]


@pytest.mark.parametrize(("name", "python", "machine", "glibc", "installs"), INSTALLS)
def test_wheels(name: str, python: str, machine: str, glibc: str, installs: bool) -> None:
    wheel = next(one for one in WHEELS if one.name == name)
    assert (misfits(wheel, machine, number(python), number(glibc)) == []) == installs


@pytest.mark.parametrize(
    ("version", "constraint", "holds"),
    [
        ("1.26.4", "<2", True),
        ("2.0.0", "<2", False),
        ("2.0.0rc1", "<2", False),
        ("1.23.5", "<1.24", True),
        ("1.24", "<1.24", False),
    ],
)
def test_constraints(version: str, constraint: str, holds: bool) -> None:
    assert below(number(version), constraint) == holds


# Clocks, throttling, sensors


def test_a_governor_that_follows_the_load(pi5: FakeBoard) -> None:
    pi5.file(GOVERNOR, "ondemand\n")
    (found,) = of(pi5.doctor("rpi5"), "governor")
    assert found.level == "warning"
    assert found.mend == ("echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor",)


@pytest.mark.parametrize(
    ("printed", "level", "says"),
    [
        ("throttled=0x0", "ok", "never"),
        ("throttled=0x50005", "in the way", "now: under-voltage, throttled (throttled=0x50005)"),
        ("throttled=0x50000", "warning", "not now: under-voltage, throttled"),
        ("throttled=0x80008", "in the way", "now: soft temperature limit"),
        ("throttled=0x20002", "in the way", "now: Arm frequency capped"),
        ("throttled=0xe0000", "warning", "not now: Arm frequency capped, throttled, soft temperature limit"),
        (NO_VCIO.strip(), "warning", "not known: Can't open device file: /dev/vcio"),
    ],
)
def test_throttling_history(printed: str, level: Level, says: str, pi5: FakeBoard) -> None:
    pi5.prints("vcgencmd", f"{printed}\n")
    (found,) = of(pi5.doctor("rpi5"), "throttling")
    assert found.level == level
    assert says in found.what


def test_without_vcgencmd(pi5: FakeBoard) -> None:
    (pi5.programs / "vcgencmd").unlink()
    (found,) = of(pi5.doctor("rpi5"), "throttling")
    assert (found.level, found.mend) == ("warning", ("sudo apt install raspi-utils",))


def captured(sections: dict[str, str]) -> RecordedShell:
    """A board whose sections are these, all others empty."""
    printed = "".join(f"\n@@splitboard {name}\n{sections.get(name, '')}\n" for name in [*READINGS, "end"])
    return RecordedShell("pi1", [Completed(("sh", "-s", "--", "", "splitboard", "python3"), 0, printed, "")])


HEALTHY = {
    "machine": "aarch64",
    "model": "Raspberry Pi 5 Model B Rev 1.0",
    "compatible": "raspberrypi,5-model-b\nbrcm,bcm2712",
    "bits": "64",
    "glibc": "glibc 2.36",
    "features": f"Features\t: {PI5}",
    "user": "pi",
    "throttled": "throttled=0x0",
    "memory": MEMINFO,
    "disk": "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/mmcblk0p2 61213000 5000000 53000000 9% /",
}


def diagnose(station: Station, **sections: str) -> Findings:
    return doctor(captured({**HEALTHY, "time": str(int(time.time())), **sections}), station)


@pytest.mark.parametrize(
    ("groups", "mend"),
    [
        ("pi adm sudo", "sudo usermod -aG video pi, then log in again"),
        ("pi video", "ls -l /dev/vcio: its group should be video, and may read and write"),
    ],
)
def test_no_permission_for_the_firmware(groups: str, mend: str) -> None:
    """Captured, since whoever runs the tests may be root, who may read everything."""
    findings = diagnose(Station("pi1", "pi", "h"), groups=groups, devices="/dev/vcio\t", throttled=NO_VCIO)
    (found,) = of(findings, "sensor")
    assert found.level == "warning"
    assert found.what == "pi may not read /dev/vcio, which energy and throttling needs"
    assert found.mend == (mend,)


def test_no_permission_for_the_i2c_bus_of_a_meter() -> None:
    station = Station("pi1", "pi", "h", meter="ina219")
    findings = diagnose(station, groups="pi video", devices="/dev/vcio\trw\n/dev/i2c-1\t")
    found = next(one for one in of(findings, "sensor") if "i2c" in one.what)
    assert found.mend == ("sudo usermod -aG i2c pi, then log in again",)
    # Nobody asks for the bus where no meter is on it.
    assert not of(diagnose(replace(station, meter=None), devices="/dev/i2c-1\t"), "sensor")


def test_a_pi_without_a_sensor_says_that_energy_is_not_measured() -> None:
    model = {"model": "Raspberry Pi 4 Model B Rev 1.4", "compatible": "raspberrypi,4-model-b"}
    (found,) = of(diagnose(Station("pi1", "pi", "h"), **model), "energy")
    assert (found.level, "no current" in found.what) == ("warning", True)
    assert not of(diagnose(Station("pi1", "pi", "h", meter="csv:power.csv"), **model), "energy")


@pytest.mark.parametrize(("may", "level"), [("", "warning"), ("r", "ok"), ("rw", "ok")])
def test_rapl_is_for_root_alone_unless_opened(may: str, level: Level) -> None:
    counter = "/sys/class/powercap/intel-rapl:0/energy_uj"
    findings = diagnose(
        Station("pc", "pi", "h"), machine="x86_64", model="", compatible="", devices=f"{counter}\t{may}"
    )
    (found,) = of(findings, "energy")
    assert found.level == level
    assert found.mend == (() if level == "ok" else (f"sudo chmod a+r {counter}",))


# Jetsons


@pytest.mark.parametrize(("ids", "number_"), [(SUPER, 2), ("< POWER_MODEL ID=0 NAME=MAXN_SUPER >\n", 0)])
def test_the_power_mode_is_set_by_the_number_that_the_board_has_for_it(ids: str, number_: int, orin: FakeBoard) -> None:
    orin.file("etc/nvpmodel.conf", ids)
    orin.prints("nvpmodel", "NVPM WARN: fan mode is not set!\nNV Power Mode: 25W\n1\n")
    (found,) = of(orin.doctor(), "power mode")
    assert (found.level, found.what) == ("warning", "25W; the largest is MAXN_SUPER")
    assert found.mend == (f"sudo nvpmodel -m {number_}",)


def test_before_the_super_configuration_15_w_is_the_largest(orin: FakeBoard) -> None:
    orin.file("etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n")
    orin.prints("nvpmodel", "NV Power Mode: 15W\n0\n")
    assert of(orin.doctor(), "power mode")[0].level == "ok"


def test_over_current_events(orin: FakeBoard) -> None:
    orin.file("sys/class/hwmon/hwmon3/oc3_event_cnt", "37\n")
    (found,) = of(orin.doctor(), "throttling")
    assert (found.level, found.what.endswith("oc3 37")) == ("warning", True)


def test_a_jetson_without_jetpack(orin: FakeBoard) -> None:
    orin.prints("dpkg-query", "nvidia-jetpack\t\nlibnvinfer10\t\n", 1)
    (orin.root / "usr/local/cuda/version.json").unlink()
    orin.python("3.10.12", numpy="1.26.4")
    findings = orin.doctor()
    assert [(one.check, one.mend) for one in findings.in_the_way] == [
        ("cuda", ("sudo apt install nvidia-jetpack",)),
        ("tensorrt", ("sudo apt install tensorrt python3-libnvinfer",)),
        ("tensorrt", ("sudo apt install python3-libnvinfer",)),
    ]
    assert worst(findings, "cuda").level == "in the way"


def test_python_that_does_not_see_the_system_s_tensorrt(orin: FakeBoard) -> None:
    orin.python("3.11.9", numpy="2.1.0", pycuda="2024.1")
    (found,) = orin.doctor().in_the_way
    assert found.check == "tensorrt"
    assert "Python 3.11.9" in found.what
    assert "NVIDIA's are for the system's Python 3.10" in found.what


def test_numpy_that_tensorrt_8_5_does_not_work_with(orin: FakeBoard) -> None:
    """NVIDIA/TensorRT issue 2557: np.bool is gone from numpy 1.24 on. JetPack 6 has another TensorRT."""
    orin.python("3.8.10", tensorrt="8.5.2.2", numpy="1.24.4", pycuda="2022.2")
    assert not orin.doctor().in_the_way
    orin.file("etc/nv_tegra_release", "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n")
    found = worst(orin.doctor(), "numpy")
    assert (found.level, found.mend) == ("in the way", ('/usr/bin/python3 -m pip install "numpy<1.24"',))


def test_versions_that_are_not_the_release_s(orin: FakeBoard) -> None:
    orin.file("etc/nv_tegra_release", "# R36 (release), REVISION: 3.0, GCID: 36106755, BOARD: generic\n")
    findings = orin.doctor()
    assert worst(findings, "tensorrt").what == "10.3.0.30-1+cuda12.5; JetPack 6.0 (Ubuntu 22.04) has 8.6.2"
    assert worst(findings, "cuda").what == "12.6.11; JetPack 6.0 (Ubuntu 22.04) has 12.2"
    orin.file("etc/nv_tegra_release", "# R40 (release), REVISION: 1.0, GCID: 1\n")
    assert worst(orin.doctor(), "jetpack").level == "warning"
    (orin.root / "etc/nv_tegra_release").unlink()
    assert worst(orin.doctor(), "jetpack").level == "in the way"


def test_jetpack_4_has_too_old_a_python(empty: FakeBoard) -> None:
    empty.file("proc/device-tree/model", "NVIDIA Jetson Nano Developer Kit\0")
    empty.file("proc/device-tree/compatible", "nvidia,p3450-0000\0nvidia,tegra210\0")
    empty.file("etc/nv_tegra_release", "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref\n")
    empty.file("usr/local/cuda/version.txt", "CUDA Version 10.2.300\n")
    empty.prints("dpkg-query", "libnvinfer8\t8.2.1-1+cuda10.2\npython3-libnvinfer\t8.2.1-1+cuda10.2\n")
    empty.python("3.6.9", tensorrt="8.2.1.9", numpy="1.13.3", pycuda="2020.1")
    iio = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    for i, rail in enumerate(["POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"]):
        empty.file(f"{iio}/rail_name_{i}", f"{rail}\n")
        empty.file(f"{iio}/in_power{i}_input", "2003\n")
    findings = empty.doctor()
    assert [one.check for one in findings.in_the_way] == ["python"]
    assert "3.6.9" in findings.in_the_way[0].what
    assert "trtexec" in findings.in_the_way[0].mend[0]
    assert of(findings, "cuda")[0].what == "10.2.300"
    (energy,) = of(findings, "energy")
    assert (energy.level, energy.what.startswith("POM_5V_IN;")) == ("ok", True)


def test_rails_that_are_not_there(orin: FakeBoard) -> None:
    (orin.root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_label").write_text("NC\n")
    (found,) = of(orin.doctor(), "energy")
    assert (found.level, found.what) == (
        "warning",
        "not measured: no rail VDD_IN; there are: NC, VDD_CPU_GPU_CV, VDD_SOC",
    )


def test_thor_s_total_is_the_carrier_s_chip(empty: FakeBoard) -> None:
    empty.file("proc/device-tree/compatible", "nvidia,p3971-0080+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0")
    assert worst(empty.doctor(), "energy").level == "warning"
    empty.file("sys/class/hwmon/hwmon4/name", "ina238\n")
    empty.file("sys/class/hwmon/hwmon4/power1_input", "41230000\n")
    assert worst(empty.doctor(), "energy").what.startswith("VIN;")


# Clock, disk, memory, bundle


@pytest.mark.parametrize(
    ("off_s", "level", "says"),
    [
        (0, "ok", "within 5 s"),
        (2, "ok", "within 5 s"),
        (-90, "warning", "behind"),
        (90, "warning", "ahead of"),
        (-90 * 86_400, "in the way", "certificates"),
    ],
)
def test_clock_skew(off_s: int, level: Level, says: str) -> None:
    (found,) = of(diagnose(Station("pi1", "pi", "h"), time=str(int(time.time()) + off_s)), "clock")
    assert found.level == level
    assert says in found.what
    assert found.mend == (() if level == "ok" else ("sudo timedatectl set-ntp true",))


def test_a_full_disk_and_memory(pi5: FakeBoard) -> None:
    pi5.prints("df", "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/root 100 100 51200 100% /\n")
    pi5.file("proc/meminfo", MEMINFO.replace("7400000", "20480"))
    findings = pi5.doctor("rpi5")
    assert {one.check for one in findings.in_the_way} == {"disk", "memory"}
    assert of(findings, "disk")[0].what.startswith("50 MiB free")
    assert of(findings, "memory")[0].what.startswith("20 MiB available")


def test_the_disk_is_the_one_that_the_station_s_folder_will_be_on(pi5: FakeBoard) -> None:
    """The folder is not there yet; the nearest that is there is asked, and nothing is made."""
    (pi5.programs / "df").write_text(f'#!/bin/sh\necho "$@" >"{pi5.home}/asked"\n')
    (pi5.programs / "df").chmod(0o755)
    pi5.doctor("rpi5")
    assert (pi5.home / "asked").read_text() == "-Pk .\n"
    (pi5.home / "splitboard").mkdir()
    pi5.doctor("rpi5")
    assert (pi5.home / "asked").read_text() == "-Pk splitboard\n"


def test_what_a_bundle_needs(tiny_bundle: Path, pi5: FakeBoard) -> None:
    """The needs grow by the files' sizes on this disk: the whole bundle on disk, twice the edge half in memory."""
    bundle = replace(load_bundle(tiny_bundle), board="rpi5")
    files = [one for one in tiny_bundle.rglob("*") if one.is_file() and one.name != "manifest.json"]
    edge = sum((tiny_bundle / path).stat().st_size for path in bundle.edge_files)
    large = replace(bundle, artifacts=tuple(replace(one, size_bytes=one.size_bytes << 12) for one in bundle.artifacts))
    findings = pi5.doctor("rpi5", large)
    disk_mib = 96 + (sum(one.stat().st_size for one in files) << 12) / (1 << 20)
    assert f"need {disk_mib:,.0f} MiB" in of(findings, "disk")[0].what
    assert f"at least {45 + (2 * edge << 12) / (1 << 20):,.0f} MiB" in of(findings, "memory")[0].what


def test_a_bundle_of_another_kind(tiny_bundle: Path, pi5: FakeBoard) -> None:
    bundle = load_bundle(tiny_bundle)
    (found,) = of(pi5.doctor("rpi5", replace(bundle, board="rpi4")), "bundle")
    assert (found.level, found.mend) == ("in the way", ("splitboard build MODEL --board rpi5",))
    assert not of(pi5.doctor("rpi5", replace(bundle, board="linux-arm64")), "bundle")


def test_a_generic_bundle_on_a_jetson_needs_a_tflite_interpreter(tiny_bundle: Path, orin: FakeBoard) -> None:
    bundle = replace(load_bundle(tiny_bundle), board="linux-arm64")
    findings = orin.doctor(None, bundle)
    assert of(findings, "interpreter")[0].what == "none yet; ai-edge-litert 2.3.0 fits"
    assert not of(findings, "tensorrt")


def test_another_board_than_the_station_says(pi5: FakeBoard) -> None:
    (found,) = pi5.doctor("rpi4").in_the_way
    assert 'station "pi1" is said to be rpi4, the board says it is rpi5' in found.what
    # A generic kind is never wrong.
    assert not pi5.doctor("linux-arm64").in_the_way


def test_a_processor_that_lacks_what_its_kind_has(pi5: FakeBoard) -> None:
    pi5.file("proc/cpuinfo", "Features\t: fp asimd evtstrm crc32 cpuid\n")
    (found,) = of(pi5.doctor("rpi5"), "processor")
    assert found.what == "a Cortex-A76 has asimddp, asimdhp, atomics, fphp; this one does not"


def test_nonsense_from_the_board_is_one_clear_line(pi5: FakeBoard) -> None:
    pi5.prints("python3", "Segmentation fault\n")
    with pytest.raises(UserError, match='the board\'s Python answers "Segmentation fault"'):
        pi5.doctor("rpi5")


# Through the command line and a real sshd


@pytest.fixture(scope="module")
def openssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with real_sshd(tmp_path_factory.mktemp("sshd")) as found:
        yield found


@pytest.fixture
def stations(openssh: Desk, tmp_path: Path) -> Path:
    one = openssh.station
    path = tmp_path / "stations.toml"
    path.write_text(
        f'[desk]\naddress = "{getpass.getuser()}@{one.host}"\nport = {one.port}\nkey = "{one.key}"\n'
        f'known_hosts = "{one.known_hosts}"\nroot = "{one.root}"\npython = "{sys.executable}"\n'
    )
    return path


def test_this_machine_through_sshd(stations: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "desk", "--stations", str(stations)])
    out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    assert out.startswith(f"desk: judged as {this_machine().name}")
    assert f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}" in out
    assert "0 in the way" in out


def test_what_is_in_the_way_is_exit_code_3(stations: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    stations.write_text(stations.read_text() + 'kind = "rpi5"\n')
    code = run(["doctor", "desk", "--stations", str(stations), "--json"])
    said = json.loads(capfd.readouterr().out)
    assert code == 3
    assert said["findings"]["kind"] == "rpi5"
    levels = {one["check"]: one["level"] for one in said["findings"]["findings"]}
    assert levels["board"] == "in the way"
    schema = Path(__file__).parents[2] / "docs" / "schema" / "doctor-output.schema.json"
    jsonschema.validate(said, json.loads(schema.read_text()))


def test_what_mends_it_is_printed(stations: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stations.write_text(stations.read_text() + 'kind = "rpi5"\n')
    assert run(["doctor", "desk", "--stations", str(stations)]) == 3
    out = capfd.readouterr().out
    assert f"the board says it is {this_machine().name}" in out
    assert f'kind = "{this_machine().name}" in stations.toml' in out
    assert "Traceback" not in out


def test_a_bundle_that_is_none_is_refused_before_the_board_is_met(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "pi@127.0.0.1:1", "--bundle", "nope"]) == 3
    assert capfd.readouterr().err.startswith("error: ")

"""File systems as the kernels of the boards show them: names, folders and units of real boards, with values to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Rails = Sequence[tuple[str, int, int]]
"""Label, millivolts, milliamperes, in the order of the channels."""

CAPTURES = Path(__file__).parent / "captures"


def capture(name: str) -> str:
    """A captured output."""
    return (CAPTURES / f"{name}.txt").read_text()


def write(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def hwmon(root: Path, driver: str, device: str, number: int, files: Mapping[str, object]) -> Path:
    """A chip with its driver: the device's own folder, and links from the driver's and the class's."""
    home = root / "sys/devices/platform" / driver / device
    folder = home / f"hwmon/hwmon{number}"
    write(folder, files)
    (folder / "device").symlink_to("../..")
    for link, target in (
        (root / f"sys/class/hwmon/hwmon{number}", folder),
        (root / f"sys/bus/i2c/drivers/{driver}/{device}", home),
    ):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    return folder


def ina3221(root: Path, rails: Rails, *, device: str = "1-0040", number: int = 3, shunt_uohm: int = 5000) -> Path:
    """One chip of JetPack 5 or later: three channels, and the driver's sums, which are no rails."""
    files: dict[str, object] = {"name": "ina3221", "samples": 1, "update_interval": 7}
    for i, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files |= {f"in{i}_label": label, f"in{i}_input": millivolts, f"curr{i}_input": milliamperes}
        files |= {f"shunt{i}_resistor": shunt_uohm, f"in{i}_enable": 1, f"curr{i}_max": 32760, f"curr{i}_crit": 32760}
        files[f"in{i + 3}_input"] = milliamperes * shunt_uohm // 1000
    return hwmon(
        root,
        "ina3221",
        device,
        number,
        {**files, "in7_input": 77, "in7_label": "sum of shunt voltages", "curr4_input": 9999},
    )


def orin_nano(root: Path) -> None:
    ina3221(root, [("VDD_IN", 5000, 840), ("VDD_CPU_GPU_CV", 4992, 104), ("VDD_SOC", 4992, 280)])


def orin_nx(root: Path) -> None:
    ina3221(root, [("VDD_IN", 19552, 320), ("VDD_CPU_GPU_CV", 19544, 80), ("VDD_SOC", 19544, 120)], number=1)


def xavier_nx_jp5(root: Path) -> None:
    ina3221(root, [("VDD_IN", 4904, 800), ("VDD_CPU_GPU_CV", 4896, 96), ("VDD_SOC", 4896, 240)], device="7-0040")


def agx_xavier_jp5(root: Path) -> None:
    ina3221(root, [("GPU", 19000, 0), ("CPU", 19000, 16), ("SOC", 19000, 48)], number=4)
    ina3221(root, [("CV", 19000, 0), ("VDDRQ", 19000, 8), ("SYS5V", 5000, 376)], device="1-0041", number=5)


def agx_orin(root: Path) -> None:
    ina3221(
        root, [("VDD_GPU_SOC", 19600, 260), ("VDD_CPU_CV", 19600, 160), ("VIN_SYS_5V0", 5024, 1100)], shunt_uohm=2000
    )
    second = [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 19600, 40), ("NC", 0, 0)]
    ina3221(root, second, device="1-0041", number=4, shunt_uohm=2000)


def thor(root: Path) -> None:
    ina3221(
        root, [("VDD_GPU", 19600, -20), ("VDD_CPU_SOC_MSS", 19600, 200), ("VIN_SYS_5V0", 5024, 2000)], shunt_uohm=2000
    )
    chip = {"name": "ina238", "in0_input": 3, "in1_input": 19600, "curr1_input": 1550, "power1_input": 30380000}
    hwmon(root, "ina238", "2-0044", 7, {**chip, "power1_max": 200000000})


def iio(root: Path, rails: Rails, *, device: str = "6-0040", name: str = "iio:device0") -> Path:
    """One chip of JetPack 4."""
    files: dict[str, object] = {"name": "ina3221x"}
    for i, (label, millivolts, milliamperes) in enumerate(rails):
        files |= {f"rail_name_{i}": label, f"in_voltage{i}_input": millivolts, f"in_current{i}_input": milliamperes}
        files[f"in_power{i}_input"] = millivolts * milliamperes // 1000
    folder = root / f"sys/bus/i2c/drivers/ina3221x/{device}/{name}"
    write(folder, files)
    return folder


def nano_jp4(root: Path) -> None:
    iio(root, [("POM_5V_IN", 5064, 200), ("POM_5V_GPU", 5064, 0), ("POM_5V_CPU", 5064, 24)])


def tx2_jp4(root: Path) -> None:
    iio(root, [("VDD_SYS_GPU", 19152, 16), ("VDD_SYS_SOC", 19152, 40), ("VDD_4V0_WIFI", 4792, 0)], device="0-0040")
    second = [("VDD_IN", 19136, 272), ("VDD_SYS_CPU", 19136, 96), ("VDD_SYS_DDR", 4768, 256)]
    iio(root, second, device="0-0041", name="iio_device")


def agx_xavier_jp4(root: Path) -> None:
    iio(root, [("GPU", 19000, 0), ("CPU", 19000, 16), ("SOC", 19000, 48)], device="1-0040")
    iio(root, [("CV", 19000, 0), ("VDDRQ", 19000, 8), ("SYS5V", 5000, 376)], device="1-0041", name="iio:device1")


def rapl(root: Path) -> Path:
    """Two packages, each with its cores within it."""
    for package in (0, 1):
        folder = root / f"sys/class/powercap/intel-rapl:{package}"
        write(folder, {"name": f"package-{package}", "max_energy_range_uj": 262143328850, "energy_uj": 262143000000})
        write(root / f"sys/class/powercap/intel-rapl:{package}:0", {"name": "core", "energy_uj": 5})
    return root / "sys/class/powercap/intel-rapl:0"


def ina2xx(root: Path, chip: str = "ina226", device: str = "1-0040", **files: object) -> Path:
    """A sensor of the user's own."""
    told = {"name": chip, "in0_input": 61, "in1_input": 5112, "curr1_input": 612, "power1_input": 3128000}
    return hwmon(root, "ina2xx", device, 2, {**told, "shunt_resistor": 100000, "update_interval": 35, **files})


def program(folder: Path, name: str, script: str) -> None:
    """An executable that stands for one of the board's own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


Tree = Callable[[Path], None]

BOARDS: Mapping[str, tuple[Tree, str, float, tuple[str, ...]]] = {
    # watts: by hand, millivolts times milliamperes of the rails of the total
    "orin-nano-jp6": (orin_nano, "ina3221: VDD_IN", 4.2, ("VDD_IN",)),
    "orin-nx-jp6": (orin_nx, "ina3221: VDD_IN", 6.25664, ("VDD_IN",)),
    "xavier-nx-jp5": (xavier_nx_jp5, "ina3221: VDD_IN", 3.9232, ("VDD_IN",)),
    "agx-xavier-jp5": (
        agx_xavier_jp5,
        "ina3221: GPU + CPU + SOC + CV + VDDRQ + SYS5V",
        0.304 + 0.912 + 0.152 + 1.88,
        ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    ),
    "agx-orin-jp6": (
        agx_orin,
        "ina3221: VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
        5.096 + 3.136 + 5.5264,
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ),
    "thor-jp7": (thor, "ina3221+ina238: VIN", 30.38, ("VIN",)),
    "nano-jp4": (nano_jp4, "ina3221 (iio): POM_5V_IN", 1.0128, ("POM_5V_IN",)),
    "tx2-jp4": (tx2_jp4, "ina3221 (iio): VDD_IN", 5.204992, ("VDD_IN",)),
    "agx-xavier-jp4": (
        agx_xavier_jp4,
        "ina3221 (iio): GPU + CPU + SOC + CV + VDDRQ + SYS5V",
        0.304 + 0.912 + 0.152 + 1.88,
        ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    ),
}

"""A kind of board, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple


@dataclass(frozen=True)
class System:
    """An operating system that runs on a kind of board, and what it brings.

    Attributes:
        name: of the release, e.g. ``Raspberry Pi OS 12 (Bookworm)``.
        python: the system's own, e.g. ``3.11``; empty where the kind leaves it open.
        glibc: its C library, e.g. ``2.36``; empty where the kind leaves it open.
        runtimes: interpreters that run there, the preferred one first, and the version that is known to.
        numpy: by interpreter that needs one, the constraint on numpy's version, e.g. ``<2``.
        l4t: of Jetson Linux, the beginnings of its releases, e.g. ``36.4``.
        jetpack: of Jetson Linux, the JetPack that the release belongs to.
        cuda: of Jetson Linux.
    """

    name: str
    python: str
    glibc: str
    runtimes: Dict[str, str]
    numpy: Dict[str, str] = field(default_factory=dict)
    l4t: Tuple[str, ...] = ()
    jetpack: Optional[str] = None
    cuda: Optional[str] = None


@dataclass(frozen=True)
class Chip:
    """One chip that measures power.

    Attributes:
        sensor: ``ina3221``, ``ina238``, ``rpi-pmic`` or ``rapl``.
        rails: names in the order of its channels.
        address: on its I2C bus, e.g. ``0x40``; ``None`` where it has none, or where that is not known.
    """

    sensor: str
    rails: Tuple[str, ...]
    address: Optional[str] = None


@dataclass(frozen=True)
class BoardMeter:
    """What the board measures of its own power.

    Attributes:
        chips: none where it measures nothing.
        total: the rails whose sum is the whole; a rail that lies inside another is never among them.
        leaves_out: what that sum leaves out, or, without a chip, why there is none.
    """

    chips: Tuple[Chip, ...]
    total: Tuple[str, ...]
    leaves_out: str


@dataclass(frozen=True)
class Clocks:
    """How the clocks are held still for a measurement.

    Attributes:
        governor: to set for it; empty where the kind leaves it open.
        power_modes: by name, the largest budget first; their numbers differ by release and are read on the board.
        tools: that set them.
    """

    governor: str
    power_modes: Tuple[str, ...]
    tools: Tuple[str, ...]


@dataclass(frozen=True)
class Flash:
    """How a system is put on it.

    Attributes:
        method: ``sd-image``, ``l4t-initrd`` or ``none``.
        first_boot: what its images may be customised by, e.g. ``cloudinit-rpi``.
        recovery_usb: ``vendor:product`` that it shows on USB in recovery mode.
        board_configs: of Jetson Linux's flash tools, by the module or carrier that they are for.
        note: what else must be known.
    """

    method: str
    first_boot: Tuple[str, ...]
    recovery_usb: Tuple[str, ...]
    board_configs: Dict[str, str]
    note: str


@dataclass(frozen=True)
class DeviceTree:
    """What its device tree says.

    Attributes:
        compatible: words of ``/proc/device-tree/compatible``, which commas and pluses separate: ``p3767-0005`` is a
            word of ``nvidia,p3768-0000+p3767-0005-super``, and what follows after a hyphen may be more.
        model: beginnings of ``/proc/device-tree/model``.
    """

    compatible: Tuple[str, ...]
    model: Tuple[str, ...]


@dataclass(frozen=True)
class BoardKind:
    """What is true of every board of a kind; the board on a desk is a station.

    Attributes:
        name: the file's name without suffix, e.g. ``rpi5``.
        title: for people.
        soc: system on chip, or the class of processor.
        cpu: name of the cores.
        cores: processor cores, 0 where the kind leaves it open.
        isa: what inference kernels make use of, as in ``/proc/cpuinfo``; empty where the kind leaves it open.
        ram_mib: sizes that it is sold with; empty where the kind leaves it open.
        machine: what ``uname -m`` prints with a 64-bit system.
        format: of the edge artefact, ``tflite`` or ``onnx``.
        runtime: interpreters that run it, the preferred one first.
        precisions: that the kind runs, the preferred one first.
        refused: reason by precision that it does not.
        systems: that are known to run on it, the newest first.
        meter: where energy is read, or why it is not.
        clocks: how they are held still.
        throttle: what tells that the board slowed down.
        flash: how a system is put on it.
        device_tree: how it is recognised.
    """

    name: str
    title: str
    soc: str
    cpu: str
    cores: int
    isa: Tuple[str, ...]
    ram_mib: Tuple[int, ...]
    machine: str
    format: str
    runtime: Tuple[str, ...]
    precisions: Tuple[str, ...]
    refused: Dict[str, str]
    systems: Tuple[System, ...]
    meter: BoardMeter
    clocks: Clocks
    throttle: str
    flash: Flash
    device_tree: DeviceTree

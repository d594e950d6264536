"""What the doctor reads on a board, all of it in one round trip, and what the texts mean."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from boards.detect import IDENTITY, ROOT, Detected, identify, root_argument
from boards.sections import read_sections
from boards.shell.shell import Shell
from boards.stations import Station
from splitboard.contract.decode import decode
from splitboard.contract.errors import UserError

TIMEOUT_S = 30.0
PACKAGES = ("numpy", "ai-edge-litert", "tflite-runtime", "tensorrt", "pycuda", "cuda-bindings")
"""Python packages that are looked for."""

# Python 3.6 is what JetPack 4 has: no importlib.metadata there.
_ASK_PYTHON = """
import json, struct, sys
try:
    from importlib.metadata import version
except ImportError:
    from pkg_resources import get_distribution
    version = lambda name: get_distribution(name).version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except Exception:
        pass
said = {"version": "%d.%d.%d" % sys.version_info[:3], "path": sys.executable, "packages": found}
said["bits"] = 8 * struct.calcsize("P")
print(json.dumps(said))
"""

READINGS = {
    "time": "date +%s",
    **IDENTITY,
    "system": 'sed -n \'s/^PRETTY_NAME="\\{0,1\\}\\([^"]*\\)"\\{0,1\\}$/\\1/p\' "$1/etc/os-release"',
    "bits": "getconf LONG_BIT",
    "glibc": "getconf GNU_LIBC_VERSION",
    "features": "grep -m 1 -E '^(Features|flags)' \"$1/proc/cpuinfo\"",
    "governor": (
        'for policy in "$1"/sys/devices/system/cpu/cpufreq/policy*; do\n'
        'read -r governor <"$policy/scaling_governor" && printf "%s\\t%s\\n" "${policy##*/}" "$governor"\ndone'
    ),
    "power_mode": "command -v nvpmodel >/dev/null && limited nvpmodel -q 2>&1",
    "power_modes": "grep -h 'POWER_MODEL ID=' \"$1/etc/nvpmodel.conf\"",
    "throttled": "command -v vcgencmd >/dev/null && limited vcgencmd get_throttled 2>&1",
    "over_current": 'for one in "$1"/sys/class/hwmon/hwmon*/oc*_event_cnt; do echo "${one##*/} $(cat "$one")"; done',
    "user": "id -un",
    "groups": "id -nG",
    "devices": (
        'for one in "$1"/dev/vcio "$1"/dev/i2c-* "$1"/sys/class/powercap/intel-rapl:0/energy_uj; do\n'
        '[ -e "$one" ] || continue\nmay=; [ -r "$one" ] && may=r; [ -w "$one" ] && may=${may}w\n'
        'printf "%s\\t%s\\n" "${one#"$1"}" "$may"\ndone'
    ),
    # hwmon: inN_label beside inN_input (in1 to in3 are rails); iio of JetPack 4: rail_name_N beside in_powerN_input.
    "rails": (
        'for one in "$1"/sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[1-3]_label '
        '"$1"/sys/bus/i2c/drivers/ina3221x/*/iio*/rail_name_[0-2]; do\n'
        '[ -e "$one" ] || continue\n'
        "case $one in *_label) value=${one%_label}_input;; *) value=${one%/*}/in_power${one##*_}_input;; esac\n"
        'may=no; cat "$value" >/dev/null && may=yes\nprintf "%s\\t%s\\n" "$(cat "$one")" "$may"\ndone\n'
        'for one in "$1"/sys/class/hwmon/hwmon*/name; do\n'
        'case $(cat "$one") in ina238) may=no; cat "${one%/*}/power1_input" >/dev/null && may=yes\n'
        'printf "VIN\\t%s\\n" "$may";; esac\ndone'
    ),
    "memory": 'cat "$1/proc/meminfo"',
    "disk": 'place=$2; while [ ! -e "$place" ]; do place=$(dirname "$place"); done; df -Pk "$place"',
    "packages": (
        "dpkg-query -W -f '${Package}\\t${Version}\\n' nvidia-jetpack 'libnvinfer[0-9]*' python3-libnvinfer "
        "'cuda-cudart-[0-9]*'"
    ),
    "cuda": 'cat "$1/usr/local/cuda/version.json" || cat "$1/usr/local/cuda/version.txt"',
    "python": (
        'for one in "$2/current/venv/bin/python" "$3"; do command -v "$one" >/dev/null && break; done\n'
        f"\"$one\" -c '{_ASK_PYTHON}' {' '.join(PACKAGES)}"
    ),
}
"""Shell commands by section. ``$1`` is the folder that the board's files are in, ``$2`` the station's folder, ``$3``
its interpreter."""


@dataclass(frozen=True)
class Python:
    """An interpreter on a board.

    Attributes:
        version: e.g. ``3.11.2``.
        path: of the one that runs: that of the deployed release where there is one, else the station's.
        packages: versions of those of `PACKAGES` that it finds.
        bits: of a pointer, 32 or 64.
    """

    version: str
    path: str
    packages: dict[str, str]
    bits: int


@dataclass(frozen=True)
class Board:
    """What a board says of itself. ``None`` and empty: it does not say.

    Attributes:
        detected: what it is.
        skew_s: by how much its clock is ahead of the host's at least; negative, behind.
        system: e.g. ``Debian GNU/Linux 12 (bookworm)``.
        bits: of the system's programs.
        glibc: e.g. ``2.36``.
        features: of the processor.
        governors: by frequency policy.
        power_mode: name of the one that is set.
        power_modes: number by name.
        throttled: what ``vcgencmd get_throttled`` says.
        over_current: events by counter.
        user: that we are.
        groups: of that user.
        devices: ``r``, ``w``, ``rw`` or empty, by path.
        rails: of power sensors, and whether their value can be read.
        memory_bytes: that programs can still have.
        disk_bytes: free where the station's folder is.
        packages: version by name, of Debian packages.
        cuda: version.
        python: the interpreter.
    """

    detected: Detected
    skew_s: float | None
    system: str
    bits: int | None
    glibc: str
    features: frozenset[str]
    governors: dict[str, str]
    power_mode: str | None
    power_modes: dict[str, int]
    throttled: str
    over_current: dict[str, int]
    user: str
    groups: tuple[str, ...]
    devices: dict[str, str]
    rails: dict[str, bool]
    memory_bytes: int | None
    disk_bytes: int | None
    packages: dict[str, str]
    cuda: str | None
    python: Python | None


def read_board(shell: Shell, station: Station, root: PurePosixPath = ROOT) -> Board:
    """Reads a board; nothing is written there.

    Args:
        shell: to the board.
        station: names its folder and its interpreter.
        root: of the board's files.

    Raises:
        UserError: it runs no scripts, or there is no kind for it.
    """
    began = time.time()
    arguments = [root_argument(root), station.root, station.python or "python3"]
    sections = read_sections(shell, READINGS, arguments, timeout_s=TIMEOUT_S)
    return parse(sections, began, time.time())


def parse(sections: Mapping[str, str], began: float, ended: float) -> Board:
    """What the sections mean.

    Args:
        sections: of `READINGS`.
        began: the host's clock before they were read, Unix seconds.
        ended: the host's clock afterwards.
    """
    return Board(
        detected=identify(sections),
        skew_s=_skew(sections["time"], began, ended),
        system=sections["system"],
        bits=int(sections["bits"]) if sections["bits"].isdigit() else None,
        glibc=sections["glibc"].removeprefix("glibc").strip(),
        features=frozenset(sections["features"].partition(":")[2].split()),
        governors=_pairs(sections["governor"]),
        power_mode=_first(r"NV Power Mode: (\S+)", sections["power_mode"]),
        power_modes={
            name: int(number) for number, name in re.findall(r"ID=(\d+)\s+NAME=([^\s>]+)", sections["power_modes"])
        },
        throttled=sections["throttled"],
        over_current={
            name: int(count) for name, count in re.findall(r"^(oc\d+)_event_cnt (\d+)$", sections["over_current"], re.M)
        },
        user=sections["user"],
        groups=tuple(sections["groups"].split()),
        devices=_pairs(sections["devices"]),
        rails={name: may == "yes" for name, may in _pairs(sections["rails"]).items()},
        memory_bytes=_kilobytes(r"^MemAvailable:\s+(\d+) kB", sections["memory"]),
        disk_bytes=_kilobytes(r"^\S+\s+\d+\s+\d+\s+(\d+)\s+\d+%", sections["disk"]),
        packages={name: version for name, version in _pairs(sections["packages"]).items() if version},
        cuda=_first(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"|CUDA Version ([\d.]+)', sections["cuda"]),
        python=_python(sections["python"]),
    )


def _skew(printed: str, began: float, ended: float) -> float | None:
    """How far the board's clock, in whole seconds, is outside of what the host's clock showed meanwhile."""
    if not printed.isdigit():
        return None
    second = int(printed)
    if second > ended:
        return second - ended
    return min(0.0, second + 1 - began)


def _pairs(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("\t") for line in text.splitlines()) if name}


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return None if match is None else next(group for group in match.groups() if group is not None)


def _kilobytes(pattern: str, text: str) -> int | None:
    match = re.search(pattern, text, re.MULTILINE)
    return None if match is None else 1024 * int(match[1])


def _python(said: str) -> Python | None:
    if not said:
        return None
    try:
        return decode(Python, json.loads(said), "the board's Python")
    except ValueError as error:
        raise UserError(f'the board\'s Python answers "{said[:80]}"', ["another: python in stations.toml"]) from error

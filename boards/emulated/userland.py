"""Arm userlands that run here: Debian's packages, an interpreter's wheels, and QEMU's emulation of the processor.

Everything is fetched once and kept under ``~/.cache/splitboard/userland`` (``XDG_CACHE_HOME``). Nothing is emulated
while a userland is made, since packages are unpacked and never configured.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boards.kinds import load_kind
from splitboard.contract.errors import UserError
from splitboard.contract.folder import new_folder

CPUS = ("cortex-a53", "cortex-a72", "cortex-a76")
"""QEMU's names of the processors that boards are emulated with; those of the Raspberry Pis."""

PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian's releases that Raspberry Pi OS is made of, and their Python."""

WHEELS = {
    "ai-edge-litert": ("ai-edge-litert==2.3.0", "numpy==2.4.6"),
    "tflite-runtime": ("tflite-runtime==2.14.0", "numpy==1.26.4"),
}
"""What each runtime is made of. Without dependencies: what else ai-edge-litert names, inference does not import."""

USER = "board"
HOME = f"/home/{USER}"
USER_ID = 1000

_PACKAGES = (
    *("bash", "coreutils", "dash", "findutils", "grep", "gzip", "procps", "sed", "tar", "util-linux"),
    *("libstdc++6", "python3", "python3-venv", "zlib1g"),
)
_QEMU_RELEASE = "trixie"
# From version 8.1 on QEMU answers /proc/cpuinfo for the processor that it emulates. Older ones let the machine's own
# shine through, and the cpuinfo library inside of ai-edge-litert 2.3 dies of the mixture.
_QEMU = "qemu-aarch64"
_TAGS = ("2_17", "2_27", "2_28", "2_34")
_IMPORTED = (
    "argparse",
    "asyncio",
    "ctypes",
    "dataclasses",
    "http.client",
    "json",
    "platform",
    "ssl",
    "venv",
    "zipfile",
)
_MARKER = "complete.json"
_RECIPE = 2
_ACCOUNTS = {
    "etc/passwd": f"root:x:0:0:root:/root:/bin/bash\n{USER}:x:{USER_ID}:{USER_ID}::{HOME}:/bin/bash\n",
    "etc/group": f"root:x:0:\n{USER}:x:{USER_ID}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    # The machine's own are mounted over these two.
    "etc/hosts": "",
    "etc/resolv.conf": "",
}

Say = Callable[[str], object]
"""Told what is being fetched."""


@dataclass(frozen=True)
class Userland:
    """What a processor and a Debian need to run here.

    Attributes:
        cpu: QEMU's name of the processor.
        release: Debian's.
        root: its file system.
        site: Python packages beside Debian's own; ``None``: the board has none yet.
        qemu: the emulator.
    """

    cpu: str
    release: str
    root: Path
    site: Path | None
    qemu: Path

    @property
    def packages(self) -> str:
        """Where Debian's Python looks for packages that are not Debian's, on the board."""
        return _packages_folder(self.release)


def prepare(kind: str, release: str = "trixie", runtime: str | None = None, say: Say | None = None) -> Userland:
    """Fetches what is not there yet.

    Args:
        kind: of board, e.g. ``rpi5``.
        release: of Debian, a key of `PYTHONS`.
        runtime: a key of `WHEELS`; ``None`` for a board without one.
        say: told what is being fetched.

    Raises:
        UserError: this cannot be emulated, a tool is missing, or something could not be fetched.
    """
    cpu = _cpu(kind)
    _check_known(PYTHONS, release, "Debian release")
    if runtime is not None:
        _check_known(WHEELS, runtime, "runtime")
        _check_runtime(runtime, release)
    _check_machine()
    qemu = cached(f"qemu-{_QEMU_RELEASE}", [_QEMU], _fetch_qemu, say)
    root = cached(f"root-{release}", _PACKAGES, lambda target: _fetch_root(release, qemu / _QEMU, target), say)
    site = None
    if runtime is not None:

        def fetch(target: Path) -> None:
            _fetch_wheels(WHEELS[runtime], release, target)
            module = runtime.replace("-", "_") + ".interpreter"
            _compile(["numpy", module], release, root, target, qemu / _QEMU)

        site = cached(f"{runtime}-{release}", WHEELS[runtime], fetch, say)
    return Userland(cpu, release, root, site, qemu / _QEMU)


def _cpu(name: str) -> str:
    """QEMU's name of the kind's processor."""
    kind = load_kind(name)
    if kind.format != "tflite" or kind.cpu.lower() not in CPUS:
        raise UserError(
            f'"{name}" cannot be emulated: its engine is {kind.runtime[0]}, its processor "{kind.cpu}"',
            [f"kinds that run TFLite on one of {', '.join(CPUS)}, e.g. rpi5"],
        )
    return kind.cpu.lower()


def _check_known(table: Mapping[str, object], name: str, what: str) -> None:
    if name not in table:
        raise UserError(f'no {what} is called "{name}"', [f"one of: {', '.join(table)}"])


def _check_runtime(runtime: str, release: str) -> None:
    if runtime == "tflite-runtime" and PYTHONS[release] != "3.11":
        raise UserError(
            f'tflite-runtime has no wheel for the Python {PYTHONS[release]} of "{release}"',
            ["ai-edge-litert", "the release bookworm"],
        )


def _check_machine() -> None:
    if platform.system() != "Linux" or platform.machine() == "aarch64":
        raise UserError(
            f'boards are emulated on Linux on another processor than theirs, and this is "{platform.machine()}"',
            ["--board local runs the same here, without emulation"],
        )
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("unshare", "util-linux"), ("tar", "tar")):
        if shutil.which(tool) is None:
            raise UserError(f'an emulated board needs "{tool}", which is not here', [f"sudo apt-get install {package}"])


def cache_folder() -> Path:
    """Where userlands are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitboard" / "userland"


def cached(name: str, content: Sequence[str], fetch: Callable[[Path], None], say: Say | None) -> Path:
    """A folder that ``fetch`` fills the first time. Two processes never fill it at once."""
    described = {"recipe": _RECIPE, "name": name, "content": list(content)}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    target = cache_folder() / f"{name}-{digest}"
    with _locked(target.with_suffix(".lock")):
        if not (target / _MARKER).is_file():
            if say is not None:
                say(f"fetching {name}")
            with new_folder(target, _MARKER) as made:
                fetch(made / "content")
                (made / _MARKER).write_text(json.dumps(described), encoding="utf-8")
    return target / "content"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115 -- closed by the with below
    except OSError as error:
        raise UserError(
            f'cannot write to "{path.parent}": {error.strerror}', ["set XDG_CACHE_HOME to another folder"]
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_qemu(target: Path) -> None:
    # The package's programs are linked statically: they run on the machine's own Debian, whichever that is.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unpack_debian(Path(folder) / "tree", _QEMU_RELEASE, ["qemu-user"], [f"./usr/bin/{_QEMU}"])
        target.mkdir()
        shutil.move(Path(folder) / "tree" / "usr" / "bin" / _QEMU, target / _QEMU)


def _fetch_root(release: str, qemu: Path, target: Path) -> None:
    hook = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
    unpack_debian(target, release, _PACKAGES, ["--exclude=./dev/*"], ["--arch=arm64", hook])
    # Nothing can be made in it later: it is mounted read-only.
    for folder in ("dev", "proc", "sys", "tmp", "run", HOME[1:], _packages_folder(release)[1:]):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for name, text in _ACCOUNTS.items():
        (target / name).write_text(text, encoding="utf-8")
    _compile(_IMPORTED, release, target, None, qemu)


def unpack_debian(
    target: Path, release: str, packages: Sequence[str], members: Sequence[str], how: Sequence[str] = ()
) -> None:
    """Packages with what they depend on, unpacked; everything belongs to who runs this.

    Args:
        target: the folder to make.
        release: of Debian.
        packages: by name.
        members: arguments for ``tar`` on what is unpacked.
        how: further arguments for ``mmdebstrap``.
    """
    archive = target.with_name(target.name + ".tar")
    argv = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(packages)}", *how]
    _succeed([*argv, release, str(archive), *_mirror(release)], f"fetch Debian {release}")
    target.mkdir()
    unpack = ["tar", "--extract", "--no-same-owner", "--file", str(archive), "--directory", str(target)]
    _succeed([*unpack, *members], f"unpack Debian {release}")
    archive.unlink()


def _mirror(release: str) -> list[str]:
    """The machine's own mirror, for a release that it may not be of; none where it is no Debian."""
    if shutil.which("apt-get") is None:
        return []
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    argv += ["Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()
    return [f"deb {said[0]} {release} main"] if said else []


def _fetch_wheels(wheels: Sequence[str], release: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        platforms = [f"--platform=manylinux_{tag}_aarch64" for tag in _TAGS]
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
        _succeed([*argv, f"--python-version={PYTHONS[release]}", f"--dest={folder}", *wheels], "fetch wheels")
        for wheel in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)


def _compile(modules: Sequence[str], release: str, root: Path, site: Path | None, qemu: Path) -> None:
    """Imports modules once, which leaves their bytecode beside them. Debian does so when it configures its packages.

    Without it every start compiles them anew, under emulation: 11 s instead of 3 s for an interpreter and numpy.
    """
    clean = ["env", "-i", *([] if site is None else [f"PYTHONPATH={site}"])]
    python = root / "usr" / "bin" / f"python{PYTHONS[release]}"
    argv = [str(qemu), "-L", str(root), str(python), "-c", f"import {', '.join(modules)}"]
    _succeed([*clean, *argv], f"start Python on Debian {release}")


def _packages_folder(release: str) -> str:
    return f"/usr/local/lib/python{PYTHONS[release]}/dist-packages"


def _succeed(argv: Sequence[str], what: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        complaints = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reasons = [line for line in complaints if line.lower().startswith(("e:", "error"))] or complaints[-1:] or ["?"]
        raise UserError(f'could not {what}: "{reasons[0]}"', [" ".join(argv)])

"""The board's half of a deploy: a program for Python 3.8 and its standard library (`boards.shell.program`).

Under the station's root::

    blobs/<sha256>          every file that was ever sent and is still used; read-only
    bundles/<sha256>/       the bundle of this manifest; hard links to the blobs
    environments/<sha256>/  a virtual environment with the wheels of this list
    releases/<n>-<bundle>/  bundle and venv (links), splitboard-edge.pyz, splitboard-edge (starts it), release.json
    current, previous       links to releases

A folder gets its name only when it is whole, so what has a name is whole; one link says which release is
current.
The environment is made by ``venv`` without pip, and wheels are unpacked into it: that is all that installing them would
do here (they run no code), it needs no pip on the board, no network, and not the package that Debian splits ensurepip
into. Their scripts are left out.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOBS, BUNDLES, ENVIRONMENTS, RELEASES = "blobs", "bundles", "environments", "releases"
RELEASE_JSON, PYZ, START = "release.json", "splitboard-edge.pyz", "splitboard-edge"
IMPORT_TIMEOUT_S = 120
"""A small board reads the libraries from its card for the first time."""

Json = Any


class Refused(Exception):
    """Why the board cannot; the message goes on after its name."""

    def __init__(self, message: str, tries: list[str]) -> None:
        super().__init__(message)
        self.tries = tries


def probe(request: Json) -> Json:
    """What this board is, as far as a deploy must know. Nothing is written."""
    root = Path(request["root"]).absolute()
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    disk = os.statvfs(there)
    return {
        "root": str(root),
        "python": sys.executable,
        "version": list(sys.version_info[:2]),
        "machine": _machine(),
        "glibc": _glibc(),
        "modules": {name: _version(sys.executable, name) for name in request["modules"]},
        "free_bytes": disk.f_bavail * disk.f_frsize,
    }


def missing(request: Json) -> Json:
    """Checksums of those wanted files that are not here, or no longer whole. Nothing is written."""
    blobs = Path(request["root"]) / BLOBS
    return [one for one in request["wanted"] if not (blobs / one).is_file() or _sha256(blobs / one) != one]


def install(request: Json) -> Json:
    """Makes a release of what was sent; it is not current yet.

    Where the current one is just the same, that is the answer, and no other is made.
    """
    root = Path(request["root"]).absolute()
    for name in (BUNDLES, ENVIRONMENTS, RELEASES):
        (root / name).mkdir(exist_ok=True)
    _bundle(root, request)
    python = _environment(root, request)
    content = {key: request[key] for key in ("bundle_sha256", "pyz_sha256", "wheels")}
    current = _linked(root, "current")
    if current is not None and current["content"] == content and current["python"] == str(python):
        return {**current, "is_new": False}
    numbers = [int(path.name.split("-")[0]) for path in (root / RELEASES).iterdir() if path.name[:4].isdigit()]
    release = f"{max(numbers, default=0) + 1:04d}-{request['bundle_sha256'][:12]}"
    return {**_release(root, release, python, request, content), "is_new": True}


def discard(request: Json) -> Json:
    """Removes a release that did not pass, or what there is of one that was not made, and whatever was sent for it."""
    root = Path(request["root"])
    if request["release"] is not None:
        shutil.rmtree(root / RELEASES / request["release"])
    _collect(root, request["keep"])


def switch(request: Json) -> Json:
    """Makes a release the current one, in one step, and removes what no kept release needs. Its predecessor's name."""
    root = Path(request["root"])
    os.sync()  # the release has its name on the disk before the link that leads to it
    before = _linked(root, "current")
    if before is not None and before["release"] != request["release"]:
        _link(root, "previous", before["release"])
    _link(root, "current", request["release"])
    _collect(root, request["keep"])
    previous = _linked(root, "previous")
    return None if previous is None else previous["release"]


def rollback(request: Json) -> Json:
    """Makes the release before the current one; the other way round the next time."""
    root = Path(request["root"]).absolute()
    current, previous = _linked(root, "current"), _linked(root, "previous")
    if current is None or previous is None:
        raise Refused(
            "has no release" if current is None else f'has no release before "{current["release"]}"',
            ["splitboard deploy BUNDLE STATION"],
        )
    _link(root, "previous", current["release"])
    _link(root, "current", previous["release"])
    return {**previous, "before": current["release"]}


def _machine() -> str:
    """Of this interpreter: a 32-bit one may run under a 64-bit kernel, whose name uname gives."""
    machine = platform.machine()
    if struct.calcsize("P") == 8:
        return machine
    return {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)


def _glibc() -> list[int] | None:
    """Major and minor; None with another C library."""
    try:
        version = ctypes.CDLL(None).gnu_get_libc_version
    except AttributeError:
        return None
    version.restype = ctypes.c_char_p
    return [int(part) for part in version().decode().split(".")[:2]]


def _version(python: str, module: str) -> str | None:
    """Of a module that loads; in a process of its own, since one for another processor may end it."""
    code = "import sys; sys.path.pop(0); import importlib; module = importlib.import_module(sys.argv[1])\n"
    code += "print(getattr(module, '__version__', 'unknown'))"
    done = _python(python, code, module)
    return done.stdout.split()[-1] if done.returncode == 0 and done.stdout.split() else None


def _python(python: str, *code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", *code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=IMPORT_TIMEOUT_S,
        check=False,
    )


def _bundle(root: Path, request: Json) -> None:
    """The bundle's folder of hard links. One that differs from its manifest is made anew."""
    folder = root / BUNDLES / request["bundle_sha256"]
    if folder.exists():
        found = {path.relative_to(folder).as_posix(): _sha256(path) for path in folder.rglob("*") if path.is_file()}
        if found == request["files"]:
            return
        shutil.rmtree(folder)
    beside = _beside(folder)
    for name, sha256 in request["files"].items():
        place = beside / name
        if beside not in place.resolve().parents:
            raise Refused(f'will not write outside of the bundle: "{name}"', ["build the bundle again"])
        place.parent.mkdir(parents=True, exist_ok=True)
        _share(root / BLOBS / sha256, place)
    beside.rename(folder)


def _environment(root: Path, request: Json) -> Path:
    """The interpreter of the release: this one where nothing is to be installed, else a virtual environment's."""
    wheels = request["wheels"]
    if not wheels:
        return Path(sys.executable)
    identity = [sys.executable, list(sys.version_info[:3]), request["system_packages"], sorted(wheels.items())]
    folder = root / ENVIRONMENTS / hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    if not folder.exists():
        beside = _beside(folder)
        _make_environment(beside, request["system_packages"])
        for name, sha256 in wheels.items():
            _unpack(root / BLOBS / sha256, name, _site_packages(beside))
        _check_imports(beside / "bin" / "python", request["modules"])
        os.sync()  # a name must not outlive a loss of power that its content does not
        beside.rename(folder)
    return folder / "bin" / "python"


def _make_environment(folder: Path, system_packages: bool) -> None:
    try:
        import venv
    except ImportError as error:
        tries = ["on the board: sudo apt-get install python3-venv"]
        raise Refused(f'has a Python without "{error.name}"', tries) from error
    venv.EnvBuilder(system_site_packages=system_packages, symlinks=True, with_pip=False).create(folder)


def _site_packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def _unpack(wheel: Path, name: str, site_packages: Path) -> None:
    """Unpacks a wheel as the wheel format says (packages first, then its folder ``.data``), scripts left out."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)
    data = site_packages / ("-".join(name.split("-")[:2]) + ".data")
    for kind in ("purelib", "platlib"):
        if (data / kind).is_dir():
            shutil.copytree(data / kind, site_packages, dirs_exist_ok=True)
    shutil.rmtree(data, ignore_errors=True)


def _check_imports(python: Path, modules: list[str]) -> None:
    for module in modules:
        done = _python(str(python), "import sys, importlib; importlib.import_module(sys.argv[1])", module)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise Refused(
                f'cannot load "{module}" from the wheels: {last}',
                ["give wheels that fit: --wheelhouse DIR", "update the board's system"],
            )


def _release(root: Path, release: str, python: Path, request: Json, content: Json) -> Json:
    folder = root / RELEASES / release
    beside = _beside(folder)
    _share(root / BLOBS / request["pyz_sha256"], beside / PYZ)
    (beside / "bundle").symlink_to(Path("..", "..", BUNDLES, request["bundle_sha256"]))
    if request["wheels"]:
        (beside / "venv").symlink_to(Path("..", "..", ENVIRONMENTS, python.parent.parent.name))
    # Finds its release from where it lies, so that the link `current` may lead to it.
    start = f'#!/bin/sh\nexec {shlex.quote(str(python))} "$(dirname "$0")/{PYZ}" "$@"\n'
    (beside / START).write_text(start, encoding="utf-8")
    (beside / START).chmod(0o755)
    made = {
        "release": release,
        "content": content,
        "blobs": sorted({request["pyz_sha256"], *request["files"].values(), *request["wheels"].values()}),
        "bundle_sha256": request["bundle_sha256"],
        "environment": python.parent.parent.name if request["wheels"] else None,
        "python": str(python),
        "pyz": str(folder / PYZ),
        "bundle": str(folder / "bundle"),
    }
    (beside / RELEASE_JSON).write_text(json.dumps(made, indent=1), encoding="utf-8")
    os.sync()
    beside.rename(folder)
    return made


def _linked(root: Path, link: str) -> Json:
    """The release that a link leads to; None where there is none."""
    path = root / link / RELEASE_JSON
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _link(root: Path, name: str, release: str) -> None:
    beside = root / (name + ".part")
    if beside.is_symlink():
        beside.unlink()
    beside.symlink_to(Path(RELEASES, release))
    beside.replace(root / name)
    folder = os.open(str(root), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _collect(root: Path, keep: int) -> None:
    """Removes releases but the last few, the current and the previous one, and then whatever no release names."""
    linked = {one["release"] for one in (_linked(root, "current"), _linked(root, "previous")) if one is not None}
    names = sorted(path.name for path in (root / RELEASES).iterdir() if path.suffix != ".part")
    for name in set(names[:-keep]) - linked:
        shutil.rmtree(root / RELEASES / name)
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in (root / RELEASES).glob("*/" + RELEASE_JSON)]
    named = {BLOBS: {sha256 for one in kept for sha256 in one["blobs"]}}
    named[BUNDLES] = {one["bundle_sha256"] for one in kept}
    named[ENVIRONMENTS] = {one["environment"] for one in kept}
    for folder, names_kept in named.items():
        for path in (root / folder).iterdir():
            if path.name not in names_kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _beside(folder: Path) -> Path:
    """An empty folder with the suffix ``.part``, whatever an earlier run left there."""
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    return beside


def _share(blob: Path, place: Path) -> None:
    """The same file under another name; a copy where the file system has no hard links."""
    blob.chmod(0o444)
    try:
        os.link(str(blob), str(place))
    except OSError:
        shutil.copyfile(str(blob), str(place))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


_VERBS: dict[str, Callable[[Json], Json]] = {
    "probe": probe,
    "missing": missing,
    "install": install,
    "discard": discard,
    "switch": switch,
    "rollback": rollback,
}


def main(verb: str, request: Json) -> None:
    """Does one thing and prints one line."""
    try:
        said = {"answer": _VERBS[verb](request)}
    except Refused as error:
        said = {"refused": str(error), "tries": error.tries}
    except OSError as error:
        tries = ["look at it on the board: df -h, ls -l", "another root in stations.toml"]
        said = {"refused": f'cannot write "{error.filename or request["root"]}": {error.strerror}', "tries": tries}
    sys.stdout.write(json.dumps(said) + "\n")

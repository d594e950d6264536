"""Wheels for a board, fetched by this machine: which, and for which Python, processor and C library."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boards.deploy.board import CUDA_MODULES, MODULES, BoardFacts
from splitboard.contract.board import BoardKind
from splitboard.contract.errors import UserError

_OLDEST_GLIBC = {"x86_64": 5, "i686": 5}
"""Minor version of glibc 2 that the oldest manylinux tag of a processor stands for (PEP 600); 17 elsewhere."""

_OLDEST_CUDA_WHEELS = 12
"""Of CUDA's major versions those that NVIDIA has wheels of cuda-bindings for 64-bit Arm for."""

_LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
"""Names of tags before PEP 600."""


@dataclass(frozen=True)
class Environment:
    """What has to be installed for a kind's edge files.

    Attributes:
        requirements: as pip takes them; none where the board has what it needs.
        system_packages: whether the board's own packages stay visible.
        modules: that must load afterwards.
        runtime: that runs the edge files.
    """

    requirements: tuple[str, ...]
    system_packages: bool
    modules: tuple[str, ...]
    runtime: str


def needed(kind: BoardKind, facts: BoardFacts, station: str) -> Environment:
    """What a board lacks to run a kind's edge files: nothing, if one of the kind's runtimes is there and works.

    Raises:
        UserError: it lacks what no wheel brings.
    """
    if "tensorrt" in kind.runtime:
        return _needed_by_tensorrt(kind, facts, station)
    for runtime in kind.runtime:
        if facts.has(runtime):
            return Environment((), True, (), runtime)
    if facts.machine == "armv7l":
        return _needed_on_32_bit(facts, station)
    return Environment(("numpy", "ai-edge-litert"), False, ("numpy", MODULES["ai-edge-litert"]), "ai-edge-litert")


def _needed_by_tensorrt(kind: BoardKind, facts: BoardFacts, station: str) -> Environment:
    """What JetPack brings, and a binding of CUDA: the wheel of the system's CUDA where the board has built none."""
    if not facts.has("tensorrt"):
        raise UserError(
            f'station "{station}" has no TensorRT with numpy that "{facts.python}" can load',
            ["on the board: sudo apt-get install nvidia-jetpack python3-libnvinfer python3-numpy"],
        )
    if any(facts.modules.get(module) is not None for module in CUDA_MODULES):
        return Environment((), True, (), "tensorrt")
    python = ".".join(map(str, facts.version))
    cuda = next((one.cuda for one in kind.systems if one.python == python and one.cuda is not None), None)
    major = 0 if cuda is None else int(cuda.split(".")[0])
    if major < _OLDEST_CUDA_WHEELS:
        raise UserError(
            f'station "{station}" has no binding of CUDA, and for Python "{python}" there is no wheel of one',
            [f"once, on the board: PATH=/usr/local/cuda/bin:$PATH {facts.python} -m pip install pycuda"],
        )
    # Both: the packages of the system stay visible, so that pip is not asked for what they depend on.
    return Environment((f"cuda-bindings=={major}.*", "cuda-pathfinder"), True, (CUDA_MODULES[1],), "tensorrt")


def _needed_on_32_bit(facts: BoardFacts, station: str) -> Environment:
    """tflite-runtime, and the system's numpy: there are no wheels of numpy for 32-bit Arm."""
    numpy = facts.modules["numpy"]
    if numpy is None or int(numpy.split(".")[0]) >= 2:
        raise UserError(
            f'station "{station}" is a 32-bit system with numpy "{numpy or "none"}"; tflite-runtime needs numpy 1',
            ["on the board: sudo apt-get install python3-numpy", "write a 64-bit system onto the board"],
        )
    return Environment(("tflite-runtime==2.14.0",), True, (MODULES["tflite-runtime"],), "tflite-runtime")


def platform_tags(machine: str, glibc: tuple[int, ...]) -> list[str]:
    """Tags of wheels that run on a processor with a C library, the newest first.

    Args:
        machine: as ``uname -m`` names it.
        glibc: major and minor version.
    """
    tags = []
    for minor in range(glibc[1], _OLDEST_GLIBC.get(machine, 17) - 1, -1):
        tags.append(f"manylinux_{glibc[0]}_{minor}_{machine}")
        if minor in _LEGACY:
            tags.append(f"{_LEGACY[minor]}_{machine}")
    return [*tags, f"linux_{machine}"]


def fetch_wheels(environment: Environment, facts: BoardFacts, wheelhouse: Path | None, cache: Path) -> tuple[Path, ...]:
    """The wheels of an environment: taken from ``wheelhouse``, or fetched once and kept.

    Args:
        environment: with its requirements.
        facts: what they have to fit.
        wheelhouse: folder of wheels; nothing is fetched then.
        cache: what was fetched is kept in a folder of it for each set of requirements and board.

    Raises:
        UserError: there are no such wheels, or no way to get them.
    """
    if wheelhouse is not None and not any(wheelhouse.glob("*.whl")):
        raise UserError(f'no wheels in the folder "{wheelhouse}"', ["--wheelhouse DIR, a folder of .whl files"])
    if not environment.requirements:
        return ()
    if wheelhouse is not None:
        with tempfile.TemporaryDirectory() as folder:
            _download(environment, facts, ["--no-index", "--find-links", str(wheelhouse)], Path(folder))
            return tuple(wheelhouse / path.name for path in sorted(Path(folder).glob("*.whl")))
    wanted = [*environment.requirements, *map(str, facts.version), facts.machine, str(facts.glibc)]
    place = cache / hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _download(environment, facts, [], Path(folder) / "wheels")
            (Path(folder) / "wheels").rename(place)
    return tuple(sorted(place.glob("*.whl")))


def default_cache() -> Path:
    """Where fetched wheels are kept; the XDG base directory specification's place."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitboard" / "wheels"


def unpacked_bytes(wheels: Sequence[Path]) -> int:
    """Room that wheels take when they are unpacked.

    Raises:
        UserError: one is no wheel.
    """
    total = 0
    for path in wheels:
        try:
            with zipfile.ZipFile(path) as archive:
                total += sum(entry.file_size for entry in archive.infolist())
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f'"{path}" is not a wheel: {error}', ["fetch it again"]) from error
    return total


def _download(environment: Environment, facts: BoardFacts, source: list[str], folder: Path) -> None:
    """Has pip choose and fetch what fits the board."""
    if facts.glibc is None:
        raise UserError(
            f'"{facts.python}" on the board is not linked with glibc; there are no wheels for it',
            ["install numpy and an interpreter for TFLite there by hand"],
        )
    version = ".".join(map(str, facts.version))
    fits = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    for tag in platform_tags(facts.machine, facts.glibc):
        fits += ["--platform", tag]
    alone = ["--no-deps"] if environment.system_packages else []
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run(
        [*pip, *fits, *alone, *source, *environment.requirements], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    shutil.rmtree(folder, ignore_errors=True)
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    raise UserError(
        f'no wheels of "{" ".join(environment.requirements)}" for Python {version} on {facts.machine} with glibc '
        f"{'.'.join(map(str, facts.glibc))}: {said[-1] if said else 'pip failed'}",
        ["--wheelhouse DIR with wheels that fit", "a newer system on the board"],
    )

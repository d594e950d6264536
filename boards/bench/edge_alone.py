"""The latency of edge graphs alone, by trtexec: on JetPack 4, whose Python 3.6 runs no edge runtime, the only figure.

Nothing is sent, nothing is answered, no energy is measured, and what is written says so: these are no run records.
"""

from __future__ import annotations

import contextlib
import getpass
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from boards.bench.trtexec import WARM_UP_MS, Times, read_times, release_of, trtexec_argv
from boards.detect import detect
from boards.kinds import load_kind, runs_bundles_of
from boards.lease import MINUTES, lease
from boards.shell.shell import ConnectionLost, Shell
from boards.stations import Station
from splitboard.contract.bundle import Bundle, Split, bundle_sha256
from splitboard.contract.decode import to_json
from splitboard.contract.errors import UserError
from splitboard.contract.folder import write_whole

SCHEMA_VERSION = 1
MEASURES = "latency of the edge graph alone, on random values"
NOT_MEASURED = {
    "end to end": "trtexec runs one graph: no image is read or prepared, and no score is made of what comes out",
    "link": "nothing is sent",
    "server": "there is none",
    "accuracy": "trtexec is given random values",
    "energy": "no meter is read while trtexec runs",
}
"""Reason by what a run record would have."""

_OLDEST_INT8 = (8, 5, 0)
_PLACES = ("trtexec", "/usr/src/tensorrt/bin/trtexec")
_FIND = 'for one in "$@"; do command -v "$one" && exit; done; exit 1'
_WEIGHTS = "onnx-weights"
_RUNTIME = "tensorrt"
"""As kinds of board call it."""
_SHARE = 4
"""Of the free memory, which the GPU shares with everything else, one part goes to the workspace."""


@dataclass(frozen=True)
class EdgeTimes:
    """One split's edge graph, measured alone: a line of the file. It cannot be taken for a run record.

    Attributes:
        schema_version: of this line.
        measures: what these times are.
        not_measured: reason by what they are not.
        bundle_name: the model's name.
        bundle_sha256: the bundle's identity.
        split: id.
        scope: the module that the split follows.
        answers: tasks that the graph answers; those of the others would be the server's.
        precision: of the edge graphs.
        board: kind of board.
        station: its name.
        l4t: release of Jetson Linux; ``None`` where there is none.
        tensorrt: release.
        argv: how trtexec was called.
        warm_up_ms: that no sample lies in.
        latency_ns: input copied to the GPU, computed, outputs copied back; one per run.
        compute_ns: computed.
    """

    schema_version: int
    measures: str
    not_measured: dict[str, str]
    bundle_name: str
    bundle_sha256: str
    split: str
    scope: str
    answers: tuple[str, ...]
    precision: str
    board: str
    station: str
    l4t: str | None
    tensorrt: str
    argv: tuple[str, ...]
    warm_up_ms: int
    latency_ns: tuple[int, ...]
    compute_ns: tuple[int, ...]


def write_edge_times(path: Path, times: Sequence[EdgeTimes]) -> None:
    """Writes them, whole or not at all.

    Raises:
        UserError: they cannot be written there.
    """
    write_whole(path, "".join(to_json(one) + "\n" for one in times))


def measurable_splits(bundle: Bundle, wanted: Sequence[str]) -> list[Split]:
    """The splits whose edge graph trtexec can time; this needs no board.

    Args:
        bundle: holds them.
        wanted: ids, or ``all``, which leaves out those without an edge graph.

    Raises:
        UserError: a split is not there, has no edge graph, or one that is not in ONNX.
    """
    chosen = list(bundle.splits) if "all" in wanted else [bundle.split(one) for one in wanted]
    for split in chosen:
        if split.edge is not None and not split.edge.endswith(".onnx"):
            raise UserError(
                f'"{split.edge}" is no ONNX file, and trtexec reads no other',
                ["--board of a Jetson: splitboard build MODEL --board jetson-nano --precision fp16"],
            )
        if split.edge is None and "all" not in wanted:
            raise UserError(
                f'split "{split.id}" sends the image: the board computes no graph that could be measured alone',
                [f"others: {', '.join(one.id for one in bundle.splits if one.edge is not None)}"],
            )
    return [split for split in chosen if split.edge is not None]


def edge_times(
    shell: Shell,
    station: Station,
    bundle_folder: Path,
    bundle: Bundle,
    splits: Sequence[Split],
    show: Callable[[str, int, int], None],
) -> list[EdgeTimes]:
    """Builds and runs the edge graphs on a board, one after the other.

    Args:
        shell: of the board.
        station: the board.
        bundle_folder: holds the graphs.
        bundle: its manifest.
        splits: of it, from `measurable_splits`.
        show: told (step, done, total).

    Raises:
        UserError: the bundle is not for this board, there is no trtexec, or it fails.
        ConnectionLost: the board is gone.
    """
    detected = detect(shell)
    kind = load_kind(station.kind or detected.kind)
    if _RUNTIME not in kind.runtime:
        raise UserError(
            f'trtexec is TensorRT\'s, and station "{station.name}" is a "{kind.name}", which runs none',
            ["--board of a Jetson; of one that is not recognised, kind in stations.toml", "others: splitboard bench"],
        )
    if not runs_bundles_of(kind, bundle.board):
        raise UserError(
            f'the bundle is for "{bundle.board}", and station "{station.name}" is a "{kind.name}"',
            [f"splitboard build MODEL --board {kind.name}"],
        )
    program, release = _program(shell)
    _check_precision(bundle, release)
    owner, python = f"splitboard bench, {getpass.getuser()}", station.python or "python3"
    measured: list[tuple[Split, list[str], Times]] = []
    with lease(shell, station.root, owner, MINUTES, python=python), _folder(shell, station) as folder:
        for path in (one.path for one in bundle.artifacts if one.format == _WEIGHTS):
            shell.put(bundle_folder / path, folder / path)
        workspace_mib = _workspace_mib(shell)
        for number, split in enumerate(splits):
            show(f"trtexec {split.id}", number, len(splits))
            onnx, times, cache = (folder / name for name in (str(split.edge), "times.json", "timing.cache"))
            shell.put(bundle_folder / str(split.edge), onnx)
            argv = trtexec_argv(program, release, bundle.precision, str(onnx), str(times), str(cache), workspace_mib)
            _run(shell, argv, split)
            measured.append((split, argv, read_times(_fetched(shell, times))))
        show("trtexec", len(splits), len(splits))
    identity = bundle_sha256(bundle_folder)
    return [
        EdgeTimes(
            schema_version=SCHEMA_VERSION,
            measures=MEASURES,
            not_measured=NOT_MEASURED,
            bundle_name=bundle.name,
            bundle_sha256=identity,
            split=split.id,
            scope=split.scope,
            answers=split.local_tasks,
            precision=bundle.precision,
            board=kind.name,
            station=station.name,
            l4t=detected.l4t,
            tensorrt=".".join(str(part) for part in release),
            argv=tuple(argv),
            warm_up_ms=WARM_UP_MS,
            latency_ns=found.latency_ns,
            compute_ns=found.compute_ns,
        )
        for split, argv, found in measured
    ]


def _program(shell: Shell) -> tuple[str, tuple[int, ...]]:
    """Where trtexec is, and the release of its TensorRT."""
    done = shell.run(["sh", "-c", _FIND, "sh", *_PLACES])
    if done.returncode != 0:
        raise UserError(
            f'station "{shell.name}" has no trtexec, neither on its PATH nor as "{_PLACES[-1]}"',
            ["on the board: sudo apt install tensorrt", "look: dpkg -L libnvinfer-bin"],
        )
    program = done.stdout.splitlines()[0]
    return program, release_of(shell.run([program, "--help"]).stdout)


def _check_precision(bundle: Bundle, release: tuple[int, ...]) -> None:
    if bundle.precision == "int8" and release < _OLDEST_INT8:
        found = ".".join(str(part) for part in release)
        raise UserError(
            f'"int8" is not measured with TensorRT {found}: graphs in INT8 are of an opset that it does not read',
            [f"splitboard build MODEL --board {bundle.board} --precision fp16"],
        )


def _workspace_mib(shell: Shell) -> int:
    """A part of the memory that is free."""
    for line in shell.run(["cat", "/proc/meminfo"]).stdout.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) // 1024 // _SHARE
    raise UserError(f'station "{shell.name}" does not tell its free memory', ["on the board: cat /proc/meminfo"])


@contextlib.contextmanager
def _folder(shell: Shell, station: Station) -> Iterator[PurePosixPath]:
    """A folder on the board for one run, which goes with it."""
    folder = PurePosixPath(station.root, "runs", secrets.token_hex(8))
    try:
        yield folder
    finally:
        with contextlib.suppress(ConnectionLost):
            shell.run(["rm", "-rf", "--", str(folder)])


def _run(shell: Shell, argv: Sequence[str], split: Split) -> None:
    """Runs trtexec, which takes minutes; says its own reason where it fails."""
    said: list[str] = []
    done = shell.follow(argv, said.append)
    if done.returncode != 0:
        why = next((line for line in said if "[E]" in line), said[-1] if said else f"exit code {done.returncode}")
        raise UserError(
            f'trtexec on station "{shell.name}" builds or runs no engine of split {split.id}: {why[:300]}',
            [
                "free memory on the board: close the desktop (sudo systemctl isolate multi-user), add swap",
                "whether the graph is legal: splitboard check-onnx GRAPH --board KIND",
            ],
        )


def _fetched(shell: Shell, path: PurePosixPath) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / path.name
        shell.get(path, target)
        return target.read_text(encoding="utf-8")

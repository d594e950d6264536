"""Measures a bundle, on this machine or on boards: the server half in one process, the edge half in another."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import typer

from boards.bench.request import BenchRequest, bench_argv, here
from boards.bench.station import bench_on
from boards.open_board import open_board
from boards.zipapp import NAME, build_zipapp
from calib.gate.deployed import float_outputs
from runtime_edge.bench.environment import read_environment
from splitboard.cli.console import steps
from splitboard.contract import record as contract
from splitboard.contract.bundle import Bundle, bundle_sha256
from splitboard.contract.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_USER_ERROR, SplitboardError, UserError
from splitboard.contract.record import FLOAT_REFERENCE, RunRecord, read_records, write_records
from splitboard.contract.samples import Samples, load_samples

_STOP_S = 10


@contextlib.contextmanager
def serving(bundle_folder: Path) -> Iterator[str]:
    """Runs ``splitboard serve`` in a process of its own, on a free loopback port.

    Yields:
        The server's URL.

    Raises:
        typer.Exit: it refused and has said why on standard error.
        SplitboardError: it broke.
    """
    # -I keeps the current folder, where a user may have an export.py of their own, off the import path.
    argv = [sys.executable, "-I", "-m", "splitboard.cli.main", "serve", str(bundle_folder), "--port", "0", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise _failed("server", process.wait())
            yield str(json.loads(line)["url"])
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _failed(what: str, code: int) -> Exception:
    """A process of ours has failed; with a documented exit code it has said why, and there is nothing to add."""
    if code in (EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_USER_ERROR):
        return typer.Exit(code)
    return SplitboardError(f'the {what} ended with "{code}"')


def bench_here(bundle_folder: Path, bundle: Bundle, request: BenchRequest) -> list[RunRecord]:
    """Runs the packed edge runtime in a process of its own and returns its records.

    Raises:
        typer.Exit: the runtime failed with one of the documented exit codes; it has said why on standard error.
        SplitboardError: it broke.
    """
    with tempfile.TemporaryDirectory() as folder:
        runtime = build_zipapp(Path(folder) / NAME)
        argv = [sys.executable, "-I", str(runtime), *bench_argv(request, here(request, bundle_folder), bundle.board)]
        done = subprocess.run(argv, check=False)
    if done.returncode != 0:
        raise _failed("edge runtime", done.returncode)
    return read_records(request.out)


def float_reference(
    bundle_folder: Path, bundle: Bundle, request: BenchRequest, on_sample: Callable[[str, int, int], None]
) -> RunRecord:
    """The float model's outputs on the same images, computed here in one piece by ONNX Runtime. Nothing is timed."""
    samples = _limited(load_samples(request.data, bundle.preprocessing.source_channels), request.limit)
    runtime = f"onnxruntime {version('onnxruntime')}"
    before = read_environment(runtime)
    outputs = float_outputs(bundle_folder, bundle, samples.images, on_sample)
    return RunRecord(
        schema_version=contract.SCHEMA_VERSION,
        run_id=uuid.uuid4().hex,
        bundle_name=bundle.name,
        bundle_sha256=bundle_sha256(bundle_folder),
        split=FLOAT_REFERENCE,
        scope="",
        board="host",
        emulated=False,
        engine=runtime,
        threads=1,
        n_warmup=0,
        payload_bytes=0,
        sample_ids=samples.hashes,
        spans_ns={},
        total_ns=(),
        outputs={
            task: tuple(tuple(float(score) for score in np.ravel(row)) for row in rows)
            for task, rows in outputs.items()
        },
        labels={task: tuple(int(label) for label in labels) for task, labels in samples.labels.items()},
        windows=(),
        idle_windows=(),
        energy_reason="the float reference is computed on the host for accuracy only",
        before=before,
        after=read_environment(runtime),
    )


def _limited(samples: Samples, limit: int | None) -> Samples:
    if limit is None:
        return samples
    labels = {task: values[:limit] for task, values in samples.labels.items()}
    return Samples(samples.images[:limit], labels, samples.hashes[:limit])


def bench(bundle_folder: Path, bundle: Bundle, request: BenchRequest) -> list[RunRecord]:
    """Float reference and all splits on this machine, written to one file of run records."""
    samples = _limited(load_samples(request.data, bundle.preprocessing.source_channels), request.limit)
    check_labels(samples, bundle, request.data)
    with steps("splitboard") as show:
        reference = float_reference(bundle_folder, bundle, request, show)
    # Outside: the edge runtime draws its own progress on the terminal.
    records = [reference, *bench_here(bundle_folder, bundle, request)]
    write_records(request.out, records)
    return records


@dataclass(frozen=True)
class Boards:
    """Where to measure, and how to get there.

    Attributes:
        names: stations, addresses or emulated boards, each once.
        stations: the stations file, ``None`` for the usual ones.
        accept_host_key: on first contact, take a board's host key without asking.
        wheelhouse: folder of wheels for the boards, ``None`` to fetch them.
    """

    names: tuple[str, ...]
    stations: Path | None = None
    accept_host_key: bool = False
    wheelhouse: Path | None = None


def bench_boards(
    bundle_folder: Path, bundle: Bundle, request: BenchRequest, boards: Boards
) -> dict[str, tuple[Path, list[RunRecord]] | SplitboardError]:
    """The same on boards, all of them at once.

    Args:
        bundle_folder: the bundle.
        bundle: its manifest.
        request: what to measure.
        boards: where.

    Returns:
        By board, the file of its run records and what is in it. One board's file is ``request.out``; of several each
        has its own beside it, ``today.pi1.jsonl`` of ``today.jsonl``. One of several that failed has its error there.

    Raises:
        SplitboardError: the only board failed, or the images do not fit the bundle.
    """
    samples = _limited(load_samples(request.data, bundle.preprocessing.source_channels), request.limit)
    check_labels(samples, bundle, request.data)
    stopped = threading.Event()
    lock = threading.Lock()
    with steps("splitboard") as show:

        def tell(name: str) -> Callable[[str, int, int], None]:
            def shown(step: str, done: int, total: int) -> None:
                if stopped.is_set():
                    raise KeyboardInterrupt
                with lock:
                    show(f"{name}:{step}", done, total)

            return shown

        reference = float_reference(bundle_folder, bundle, request, show)

        def one(name: str) -> tuple[Path, list[RunRecord]]:
            found = on_board(name, bundle_folder, bundle, request, samples, boards, tell(name))
            out = request.out if len(boards.names) == 1 else request.out.with_suffix(f".{_plain(name)}.jsonl")
            write_records(out, [reference, *found])
            return out, [reference, *found]

        if len(boards.names) == 1:  # in this thread, which is the one that a signal interrupts
            return {name: one(name) for name in boards.names}
        with ThreadPoolExecutor(len(boards.names)) as threads:
            running = {name: threads.submit(one, name) for name in boards.names}
            try:
                wait(running.values())
            except BaseException:
                stopped.set()  # each ends with its next step, and gives its board back
                raise
    return {name: _outcome(future) for name, future in running.items()}


def _outcome(future: Future[tuple[Path, list[RunRecord]]]) -> tuple[Path, list[RunRecord]] | SplitboardError:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, SplitboardError):
        return error
    raise error


def check_labels(samples: Samples, bundle: Bundle, data: Path) -> None:
    """Refuses labels that no class of the task has, before anything is measured.

    Raises:
        UserError: there is one.
    """
    for task in bundle.tasks:
        labels = samples.labels.get(task.name)
        if labels is not None and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(task.labels):
            wrong = next(int(label) for label in labels if not 0 <= label < len(task.labels))
            raise UserError(
                f'"{data}" has the label "{wrong}" for task "{task.name}", which has {len(task.labels)} classes',
                [f"classes are numbered from 0: {', '.join(task.labels)}"],
            )


def on_board(
    name: str,
    bundle_folder: Path,
    bundle: Bundle,
    request: BenchRequest,
    samples: Samples,
    boards: Boards,
    show: Callable[[str, int, int], None],
) -> list[RunRecord]:
    """The records of one board."""

    def say(line: str) -> None:
        told = line.split()
        if len(told) == 4 and told[0] == "progress":  # the runtime's own, see its --progress-lines
            show(told[1], int(told[2]), int(told[3]))

    with open_board(name, boards.stations, accept_host_key=boards.accept_host_key) as (station, shell):
        return bench_on(
            shell,
            station,
            bundle_folder,
            bundle,
            request,
            samples,
            wheelhouse=boards.wheelhouse,
            say=say,
            progress=show,
        )


def _plain(name: str) -> str:
    """For a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)

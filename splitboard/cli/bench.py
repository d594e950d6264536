"""Measures a bundle on this machine: the server half in one process, the edge half in another, the wire in between."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import typer

from boards.zipapp import NAME, build_zipapp
from calib.gate.deployed import float_outputs
from runtime_edge.bench.environment import read_environment
from splitboard.cli.console import steps
from splitboard.contract import record as contract
from splitboard.contract.bundle import Bundle, bundle_sha256
from splitboard.contract.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_USER_ERROR, SplitboardError
from splitboard.contract.record import FLOAT_REFERENCE, RunRecord, read_records, write_records
from splitboard.contract.samples import Samples, load_samples

_STOP_S = 10


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    Attributes:
        data: labelled images.
        server: URL; ``None`` where every split is local.
        splits: ids, or ``all``.
        out: the ``.jsonl`` to write.
        n_warmup: inferences per split that are discarded.
        threads: of the edge engine.
        limit: only the first images; ``None`` for all.
        energy: also measure energy.
        coding: of requests: ``none``, ``zstd`` or ``jpeg``.
        token_file: holds the server's token.
        ca: certificates to trust for https.
    """

    data: Path
    server: str | None
    splits: Sequence[str]
    out: Path
    n_warmup: int = 20
    threads: int = 1
    limit: int | None = None
    energy: bool = False
    coding: str = "none"
    token_file: Path | None = None
    ca: Path | None = None

    def argv(self, bundle_folder: Path, board: str) -> list[str]:
        """Arguments of the edge runtime's ``bench``."""
        argv = ["bench", "--bundle", str(bundle_folder), "--data", str(self.data), "--out", str(self.out)]
        argv += ["--splits", ",".join(self.splits), "--board", board]
        argv += ["--warmup", str(self.n_warmup), "--threads", str(self.threads)]
        argv += ["--server", self.server] if self.server is not None else []
        argv += ["--coding", self.coding]
        for option, value in (("--limit", self.limit), ("--token-file", self.token_file), ("--ca", self.ca)):
            argv += [option, str(value)] if value is not None else []
        return [*argv, "--energy"] if self.energy else argv


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
        argv = [sys.executable, "-I", str(runtime), *request.argv(bundle_folder, bundle.board)]
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
    """Float reference and all splits, written to one file of run records."""
    with steps("splitboard") as show:
        reference = float_reference(bundle_folder, bundle, request, show)
    # Outside: the edge runtime draws its own progress on the terminal.
    records = [reference, *bench_here(bundle_folder, bundle, request)]
    write_records(request.out, records)
    return records

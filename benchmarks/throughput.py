"""How many requests a second does our server answer on a real server half, beside real Triton on the same graph?

Every client is a process with the edge's own link (`runtime_edge.link.sender`), which sends its next request when the
answer is there. Both servers compute with ONNX Runtime, one thread per inference and one inference per core at a time;
Triton comes from its wheel with its Python back end (``tests/triton_server.py``). The servers take turns, round by
round. The clients' own work is on the same cores, and the same for both. Aim: a ratio of at least 1.

Usage: SPLITBOARD_TRITON_PYTHON=.../bin/python python benchmarks/throughput.py BUNDLE --split s13,s31
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from output import ratio, show
from servers import our_http, real_triton

from runtime_edge.link.link import Link
from runtime_edge.link.sender import PLAIN, Sender
from splitboard.contract.bundle import bundle_sha256, load_bundle
from splitboard.contract.interface import Interface, interface

OURS, TRITON = "splitboard serve", "Triton"
WARM_UP_S = 1.0


def client(pipe: Connection, urls: dict[str, str], to: Interface) -> None:
    """Asks the server that it is told for as long as it is told, and says how long each answer took, in ns."""
    random = np.random.default_rng(os.getpid())
    tensors = {spec.name: random.integers(-128, 128, spec.shape).astype(spec.dtype) for spec in to.inputs}
    outputs = [spec.name for spec in to.outputs]
    senders = {name: Sender(Link(url, timeout_s=60)) for name, url in urls.items()}
    pipe.send("ready")
    while (told := pipe.recv()) is not None:
        name, end_s = told
        times = []
        while time.monotonic() < end_s:  # one clock for all processes of a machine
            start_ns = time.perf_counter_ns()
            senders[name].ask(to, outputs, tensors, PLAIN)
            times.append(time.perf_counter_ns() - start_ns)
        pipe.send(times)


@contextlib.contextmanager
def clients(count: int, urls: dict[str, str], to: Interface) -> Iterator[list[Connection]]:
    """The processes, and a pipe to each."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=client, args=(far, urls, to)) for _, far in pairs]
    for process in processes:
        process.start()
    pipes = [near for near, _ in pairs]
    try:
        for pipe in pipes:
            pipe.recv()
        yield pipes
    finally:
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join()


def one_round(pipes: list[Connection], name: str, seconds: float) -> tuple[float, float]:
    """Answers a second of all clients together, and the median time of one in ms."""
    start_s = time.monotonic()
    for pipe in pipes:
        pipe.send((name, start_s + seconds))
    times = [one for pipe in pipes for one in pipe.recv()]
    return len(times) / (time.monotonic() - start_s), float(np.median(times)) / 1e6


def measure(folder: Path, split_id: str, count: int, rounds: int, seconds: float) -> Iterator[dict[str, object]]:
    """A row per server."""
    bundle = load_bundle(folder)
    to = interface(bundle, bundle_sha256(folder), bundle.split(split_id))
    cores = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {OURS: [], TRITON: []}
    waits: dict[str, list[float]] = {OURS: [], TRITON: []}
    with contextlib.ExitStack() as stack:
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "repository"
        ours = stack.enter_context(our_http(folder, "--threads", "1", "--workers", str(cores)))
        triton = stack.enter_context(real_triton(folder, repository, threads=1, instances=cores))
        pipes = stack.enter_context(clients(count, {OURS: ours, TRITON: triton.url}, to))
        for name in rates:
            one_round(pipes, name, WARM_UP_S)
        for number in range(rounds):
            for name in rates if number % 2 else reversed(rates):
                rate, wait_ms = one_round(pipes, name, seconds)
                rates[name].append(rate)
                waits[name].append(wait_ms)
    for name, found in rates.items():
        yield {
            "split": f"{split_id} ({sum(spec.n_bytes for spec in to.inputs)} bytes)",
            "server": name,
            "requests/s": float(np.median(found)),
            "median ms": float(np.median(waits[name])),
            f"of {TRITON}": ratio(found, rates[TRITON]),
        }


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--split", required=True, help="comma-separated ids")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0, help="of every server in every round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [
        row
        for split_id in options.split.split(",")
        for row in measure(options.bundle, split_id, options.clients, options.rounds, options.seconds)
    ]
    about = (
        f"medians of {options.rounds} interleaved rounds of {options.seconds:g} s with {options.clients} client "
        "processes; ratio with its 95 % bootstrap interval over rounds"
    )
    show(rows, f"onnxruntime {version('onnxruntime')}", about, as_json=options.json)


if __name__ == "__main__":
    main()

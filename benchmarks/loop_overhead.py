"""What the edge loop adds to a bare ``invoke()``: all that is neither preprocessing nor the interpreter's own work.

Shows, for the first signature of a bundle's edge file, the time of one image through the loop (choose, edge half,
exits, answers, what is learnt from it) without its preprocessing, beside ``Interpreter.invoke()`` of the same graph on
the same input, in turn within every round. The difference does not depend on how long the graph computes, so it is
also given as a share of an inference of 1 ms. No server is there: what it would answer is left unavailable.

Usage: python benchmarks/loop_overhead.py mine.bundle
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from output import ratio, show

from runtime_edge.engines.litert import LiteRtEngine, find_interpreter
from runtime_edge.link.link import Link
from runtime_edge.link.sender import Sender
from runtime_edge.link.watch import ServerWatch
from runtime_edge.loop.session import Manners, Session
from runtime_edge.pipeline import Pipeline
from runtime_edge.policy.choosers import FixedSplit
from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle
from splitboard.contract.preprocess import edge_image, prepare

NOBODY = "http://127.0.0.1:9"
AIM = 0.05
"""Of an inference of 1 ms."""


def first_signature(folder: Path, bundle: Bundle) -> tuple[Any, Split]:
    """The interpreter, ready to invoke, and the split whose signature it runs when none is named."""
    interpreter = find_interpreter().module.Interpreter(model_path=str(folder / bundle.edge_files[0]), num_threads=1)
    interpreter.allocate_tensors()
    name = next(iter(interpreter.get_signature_list()))
    return interpreter, next(split for split in bundle.splits if split.edge_signature == name)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Medians in microseconds."""
    bundle = load_bundle(folder)
    interpreter, split = first_signature(folder, bundle)
    random = np.random.default_rng(0)
    spec = bundle.preprocessing
    image = random.integers(0, 256, (spec.height, spec.width, spec.source_channels), dtype=np.uint8)
    stored = edge_image(prepare(image[None], spec), bundle.input_table())
    index = interpreter.get_input_details()[0]["index"]
    bare_ns: list[float] = []
    loop_ns: list[float] = []
    with LiteRtEngine(folder, bundle, [split]) as engine, Link(NOBODY) as link:
        pipeline = Pipeline(bundle, bundle_sha256(folder), (split,), engine, Sender(link))
        watch = ServerWatch(Link(NOBODY), pipeline.interfaces[split.id])  # not entered: it asks nobody
        watch.lost("nobody is there")
        session = Session(pipeline, (split,), FixedSplit(split.id, None, 0.0), watch, Manners(fallback="unavailable"))
        for number in range(rounds + 20):
            interpreter.set_tensor(index, stored)
            start_ns = time.perf_counter_ns()
            interpreter.invoke()
            invoked_ns = time.perf_counter_ns() - start_ns
            start_ns = time.perf_counter_ns()
            begun = session.begin(image)
            session.settle(session.finish(begun))
            done_ns = time.perf_counter_ns() - start_ns - begun.half.pre_ns
            if number >= 20:
                bare_ns.append(invoked_ns)
                loop_ns.append(done_ns)
    added_us = float(np.median(np.subtract(loop_ns, bare_ns))) / 1e3
    return {
        "split": split.id,
        "invoke us": float(np.median(bare_ns)) / 1e3,
        "loop us": float(np.median(loop_ns)) / 1e3,
        "loop over invoke": ratio(loop_ns, bare_ns),
        "added us": added_us,
        "share of 1 ms": added_us / 1e3,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    about = f"{options.rounds} rounds after 20 that are discarded, medians, one thread; aim: {AIM:.0%} of 1 ms"
    show([measure(options.bundle, options.rounds)], find_interpreter().name, about, as_json=options.json)


if __name__ == "__main__":
    main()

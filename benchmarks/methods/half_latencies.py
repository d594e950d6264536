"""How long the halves of several bundles take: all in turn within every round, one thread each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1]))

from int8_vs_float import runners

from splitboard.contract.bundle import Bundle, Split, load_bundle
from splitboard.contract.preprocess import edge_image, normalise, quantised_table

Times = Mapping[str, list[float]]
"""Milliseconds by split, one per round."""

EDGE, SERVER = "edge", "server"


def measure(bundles: Mapping[str, Path], rounds: int, warmup: int = 10) -> dict[str, dict[str, Times]]:
    """Times by bundle, half (``edge``, ``server``) and split; every half has been run before.

    Args:
        bundles: TFLite ones, by the name that the result has.
        rounds: in each of which everything runs once.
        warmup: rounds before.
    """
    calls = {name: _calls(folder) for name, folder in bundles.items()}
    times = {
        name: {half: {split: [] for split in runs} for half, runs in halves.items()} for name, halves in calls.items()
    }
    names = list(calls)
    for number in range(-warmup, rounds):
        for name in names if number % 2 else reversed(names):
            for half, runs in calls[name].items():
                for split, run in runs.items():
                    start_ns = time.perf_counter_ns()
                    run()
                    if number >= 0:
                        times[name][half][split].append((time.perf_counter_ns() - start_ns) / 1e6)
    return times  # type: ignore[return-value]  # its lists are filled


def _calls(folder: Path) -> dict[str, dict[str, Callable[[], object]]]:
    bundle = load_bundle(folder)
    on_edge = [split for split in bundle.splits if split.edge_signature is not None]
    return {
        EDGE: runners(folder / bundle.edge_files[0], on_edge, _image(folder, bundle)),
        SERVER: {split.id: _server(folder, split) for split in bundle.splits if split.server is not None},
    }


def _image(folder: Path, bundle: Bundle) -> np.ndarray:
    """A golden image as the edge file takes it."""
    with np.load(folder / bundle.golden) as golden:
        pixels = golden["images"][:1]
    spec, wanted = bundle.preprocessing, bundle.edge_input
    if wanted.scale is None:
        return np.ascontiguousarray(normalise(pixels, spec).transpose(0, 2, 3, 1))
    return edge_image(pixels, quantised_table(spec, float(wanted.scale), int(wanted.zero_point or 0)))


def _server(folder: Path, split: Split) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / str(split.server)), options)
    feeds = {
        one.name: np.zeros([size if isinstance(size, int) else 1 for size in one.shape], _DTYPES[one.type])
        for one in session.get_inputs()
    }
    return lambda: session.run(None, feeds)


_DTYPES = {"tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(float)": np.float32}

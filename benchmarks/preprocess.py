"""Is resizing tap by tap faster than as two matrix products?

`splitboard.contract.preprocess` adds up the few neighbours that a pixel is made of. The same filter as a matrix, mostly
zeros, gives the same bytes by two products, as it was before; numpy's BLAS computes them in threads. Both run in turn
within every round. ``--busy`` keeps all processors busy with something else meanwhile, as on a board with other work:
threads that wait for one another then wait for a processor, too.

Usage: python benchmarks/preprocess.py [--rounds 50] [--busy]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from output import ratio, show

from splitboard.contract import preprocess

CASES = (((300, 300, 1), 224), ((480, 640, 3), 224), ((1080, 1920, 3), 224), ((224, 224, 3), 160))


def by_products(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resizes ``[1, h, w, c]`` to ``[1, size, size, c]``."""
    vertical, horizontal = (_matrix(side, size) for side in images.shape[1:3])
    planes = images.transpose(0, 3, 1, 2).astype(np.float32)
    summed = np.matmul(np.matmul(vertical, planes), horizontal.T)
    return np.ascontiguousarray(np.floor((summed + 32768) / 65536).astype(np.uint8).transpose(0, 2, 3, 1))


@cache
def _matrix(source: int, target: int) -> NDArray[np.float32]:
    filtered = preprocess._filter(source, target, range(target))
    weights = np.zeros((target, source), np.float32)
    np.add.at(weights, (np.arange(target), filtered.span.start + filtered.taps), filtered.weights)
    return weights


@contextlib.contextmanager
def processors(*, busy: bool) -> Iterator[None]:
    """Runs a process that only computes on every processor, if ``busy``."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1) if busy]
    try:
        yield
    finally:
        for one in others:
            one.kill()
            one.wait()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for shape, size in CASES:
        image = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
        ways = {
            "products": partial(by_products, image, size),
            "taps": partial(preprocess.resize, image, size, size),
        }
        assert np.array_equal(*(way() for way in ways.values()))
        times: dict[str, list[float]] = {name: [] for name in ways}
        with processors(busy=options.busy):
            for _ in range(options.rounds):
                for name, way in ways.items():
                    start_ns = time.perf_counter_ns()
                    way()
                    times[name].append((time.perf_counter_ns() - start_ns) / 1e6)
        rows.append(
            {
                "image": "x".join(map(str, shape)),
                "to": size,
                **{f"{name} ms": float(np.median(ms)) for name, ms in times.items()},
                "products / taps": ratio(times["products"], times["taps"]),
            }
        )
    about = f"medians of {options.rounds} interleaved rounds{', all processors busy' if options.busy else ''}"
    show(rows, f"numpy {np.__version__}", f"{about}; 95 % bootstrap interval", as_json=options.json)


if __name__ == "__main__":
    main()

"""How long does calibrating for all splits at once take, beside one float pass over the same images?

The images are read, prepared and normalised once beforehand where `network only` stands, and within each pass where
`from source images` stands. Float pass: ONNX Runtime as it comes, outputs alone. Calibration: `calib.observe.observe`
over every tensor that any split can hold in INT8 (all splits), or local only (one split: no tensor inside of a fused
operator is needed); `tables s` is what the ranges of all methods of `--ranges auto` take at the end. Pieces of all
passes are run in turn, so that both meet the same load. Aim: a ratio of at most 2.

Usage: python benchmarks/calibration_time.py --calib images.npz MODEL [MODEL ...]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from output import ratio, show

from calib.dataset import calibration_set
from calib.methods import make_table
from calib.observe import observe, quantisable
from calib.recipe import CANDIDATES
from export.model import Model, load_model
from export.splits import list_splits
from splitboard.contract.preprocess import normalise, prepare

Image = NDArray[np.float32]
PIECE = 125


def float_pass(model: Model) -> Callable[[Iterable[Image]], None]:
    """Runs images through the float model."""
    session = ort.InferenceSession(model.graph.model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = model.graph.inputs[0]

    def run(images: Iterable[Image]) -> None:
        for one in images:
            session.run(None, {image: one})

    return run


def calibration(model: Model, crossing: Iterable[str]) -> Callable[[Iterable[Image]], None]:
    """Observes every tensor that an edge half can hold in INT8 if these cross."""
    tensors = quantisable(model.graph, list(crossing))

    def run(images: Iterable[Image]) -> None:
        observe(model.graph, tensors, images, lambda _: None)

    return run


def table_seconds(model: Model, images: list[Image]) -> float:
    """Seconds that the ranges of all methods take, once at the end."""
    seen = observe(model.graph, quantisable(model.graph, ()), images, lambda _: None)
    start = time.perf_counter()
    for method in CANDIDATES:
        make_table(seen, method)
    return time.perf_counter() - start


def timed(run: Callable[[Iterable[Image]], None], images: Iterable[Image]) -> float:
    """Seconds of one piece."""
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start


def measure(folder: Path, sources: list[NDArray[np.uint8]], rounds: int) -> Iterator[dict[str, object]]:
    """Two rows: without and with the work of preparing images."""
    model = load_model(folder)
    spec = model.info.declared()

    def read(piece: int) -> Iterator[Image]:
        chosen = itertools.islice(itertools.cycle(sources), piece * PIECE, (piece + 1) * PIECE)
        return (normalise(prepare(source[None], spec), spec) for source in chosen)

    every = [name for point in list_splits(model).proper for name in (one.name for one in point.crossing)]
    passes = {
        "float": float_pass(model),
        "all splits": calibration(model, every),
        "one split": calibration(model, ()),
    }
    for name, ready in (("network only", True), ("from source images", False)):
        seconds: dict[str, list[float]] = {who: [] for who in passes}
        for piece in range(-1, rounds):
            for who in passes if piece % 2 else reversed(passes):
                images: Iterable[Image] = list(read(max(piece, 0))) if ready else read(max(piece, 0))
                taken = timed(passes[who], images)
                if piece >= 0:
                    seconds[who].append(taken)
        yield {
            "model": model.info.name,
            "images": f"{PIECE * rounds}, {name}",
            **{f"{who} s": sum(taken) for who, taken in seconds.items()},
            "all splits / float": ratio(seconds["all splits"], seconds["float"]),
            "one split / float": ratio(seconds["one split"], seconds["float"]),
            "tables s": table_seconds(model, list(read(0))),
        }


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", type=Path, nargs="+", help="model folders, from splitboard export")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--rounds", type=int, default=4, help=f"pieces of {PIECE} images")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    channels = load_model(options.models[0]).info.declared().source_channels
    with calibration_set(options.calib, channels, PIECE * options.rounds, Path()) as data:
        sources = [data.read(i) for i in range(len(data))]
    rows = [row for folder in options.models for row in measure(folder, sources, options.rounds)]
    about = "ratio of the medians of all pieces, with its 95 % bootstrap interval"
    show(rows, f"onnxruntime {version('onnxruntime')}", about, as_json=options.json)


if __name__ == "__main__":
    main()

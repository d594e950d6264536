"""What the SQNR benchmarks share: running a graph, the ratio, the rows and the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader
from output import show

from calib.dataset import CalibrationSet, calibration_set
from export.model import Model, load_model
from export.reference import reference_session
from splitboard.cli.console import steps

Image = NDArray[np.float32]
"""Normalised, ``[1, channels, height, width]``."""
Outputs = Mapping[str, NDArray[np.float32]]
"""By task, ``[images, classes]``."""
Compared = tuple[Callable[[list[Image]], Mapping[str, Outputs]], str]
"""What runs every contestant on images, and the ranges that ours used."""
Contest = Callable[[Model, CalibrationSet, list[Image]], Compared]
"""Makes the contestants from a model, its calibration set and the same images, normalised."""

_MOST_CALIBRATION_IMAGES = 500


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Images for ONNX Runtime's quantiser."""

    def __init__(self, name: str, images: Iterable[Image]) -> None:
        self._samples = ({name: image} for image in images)

    def get_next(self) -> dict[str, Image] | None:
        """The next image, by the input's name; ``None`` behind the last."""
        return next(self._samples, None)


def run(graph: onnx.ModelProto, model: Model, images: Iterable[Image]) -> Outputs:
    """All tasks' outputs of a form of a model, in ONNX Runtime with its optimiser off."""
    session, names = reference_session(graph), model.graph.outputs
    results = [session.run(names, {model.graph.inputs[0]: image}) for image in images]
    return {name: np.concatenate([one[i] for one in results]) for i, name in enumerate(names)}


def sqnr_db(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Signal to quantisation noise ratio: 10 log10 of the powers of the exact values and of what is off."""
    return float(10 * np.log10(np.sum(exact**2, dtype=np.float64) / np.sum((found - exact) ** 2, dtype=np.float64)))


def _compare(folder: Path, options: argparse.Namespace, contest: Contest) -> list[dict[str, object]]:
    """One row per task."""
    model = load_model(folder)
    spec = model.info.declared()
    channels = spec.source_channels
    with calibration_set(str(options.calib), channels, _MOST_CALIBRATION_IMAGES, Path()) as calibration:
        answer, method = contest(model, calibration, [image.copy() for image in calibration.inputs(spec)])
    with calibration_set(str(options.data), channels, options.images, Path()) as others:
        tests = [image.copy() for image in others.inputs(spec)]
    exact, found = run(model.graph.model, model, tests), answer(tests)
    return [
        {
            "model": model.info.name,
            "task": task,
            **{who: sqnr_db(exact[task], outputs[task]) for who, outputs in found.items()},
            "ranges": method,
        }
        for task in exact
    ]


def main(description: str, runtime: str, contest: Contest) -> None:
    """Quantises, runs, prints.

    Args:
        description: the benchmark's docstring.
        runtime: what runs, for the line on the machine.
        contest: makes the contestants.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("models", type=Path, nargs="+", help="model folders, from splitboard export")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=64, help="of the data, to compare on")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with steps("benchmark") as progress:
        for done, folder in enumerate(options.models):
            progress(folder.name, done, len(options.models))
            rows += _compare(folder, options, contest)
    show(rows, runtime, f"dB on {options.images} images", as_json=options.json)

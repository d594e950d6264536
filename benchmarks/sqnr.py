"""How much noise does INT8 add, beside the quantisers that others use?

For each model folder, the whole model four ways, all calibrated on the same images and compared with the float model on
others; signal to quantisation noise of every task's output in dB, higher is better:

* ours: as `splitboard build` does it (ranges chosen on held-out images, biases corrected), TFLite in LiteRT;
* ours, min/max: the same with min/max ranges and plain biases;
* ONNX Runtime: `quantize_static`, Q/DQ, INT8, weights per channel, min/max; its optimiser off;
* litert-quantizer: the same float TFLite file with the calibration that it has by default.

Usage: python benchmarks/sqnr.py --calib calibration.npz --data test.npz MODEL [MODEL ...]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from litert_quantizer import quantizer, recipe
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from output import show

from calib.dataset import CalibrationSet, calibration_set, hold_out
from calib.interpret import TfliteRun
from calib.recipe import Recipe, prepare
from calib.tflite_edge import choose_ranges, float_edge, quantised
from export.model import Model, load_model
from export.reference import reference_session
from runtime_edge.engines.litert import find_interpreter
from splitboard.cli.console import steps
from splitboard.cli.edge_half import judges

Image = NDArray[np.float32]
Outputs = Mapping[str, NDArray[np.float32]]

WHOLE = "local"
N_MATCHED = 3


def ours(model: Model, data: CalibrationSet, how: Recipe) -> tuple[bytes, bytes, str]:
    """The quantised file, the float one that it was made from, and the ranges that were used."""
    spec = model.info.declared()
    calibrating, held_out = hold_out(data)
    prepared = prepare(model.graph, (), calibrating.inputs(spec), how, lambda _: None)
    samples = list(data.subset(range(N_MATCHED)).inputs(spec))
    edge = float_edge(prepared, {WHOLE: model.graph.outputs}, samples)
    reference = judges(model.graph, held_out, spec).reference
    choice = choose_ranges(edge, how, WHOLE, reference, lambda: list(held_out.inputs(spec)))
    return quantised(edge, how, edge.tables[choice.method]), edge.floating.content, choice.method


def litert_default(floating: bytes, images: Iterable[Image]) -> bytes:
    """litert-quantizer's own calibration, a moving average of each image's limits."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        worker = quantizer.Quantizer(bytearray(floating), recipe.static_wi8_ai8())
        name = TfliteRun(floating, WHOLE).image
        found = worker.calibrate({WHOLE: [{name: one.transpose(0, 2, 3, 1).copy()} for one in images]})
        content = bytes(worker.quantize(found).quantized_model)
    logging.disable(logging.NOTSET)
    return content


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, name: str, images: Iterable[Image]) -> None:
        self._samples = ({name: image} for image in images)

    def get_next(self) -> dict[str, Image] | None:
        return next(self._samples, None)


def onnx_runtime(model: Model, calibration: Iterable[Image], images: Iterable[Image]) -> Outputs:
    """Outputs of ONNX Runtime's own quantisation."""
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "float.onnx", Path(work) / "int8.onnx"
        onnx.save(model.graph.model, source)
        quantize_static(
            source,
            target,
            _Reader(model.graph.inputs[0], calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return _run(onnx.load(target), model, images)


def _run(graph: onnx.ModelProto, model: Model, images: Iterable[Image]) -> Outputs:
    session, names = reference_session(graph), model.graph.outputs
    results = [session.run(names, {model.graph.inputs[0]: image}) for image in images]
    return {name: np.concatenate([one[i] for one in results]) for i, name in enumerate(names)}


def sqnr_db(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Signal to quantisation noise ratio."""
    return float(10 * np.log10(np.sum(exact**2, dtype=np.float64) / np.sum((found - exact) ** 2, dtype=np.float64)))


def compare(folder: Path, calib: Path, data: Path, n_images: int) -> list[dict[str, object]]:
    """One row per task."""
    model = load_model(folder)
    spec = model.info.declared()
    with calibration_set(str(calib), spec.source_channels, 500, Path()) as calibration:
        images = [image.copy() for image in calibration.inputs(spec)]
        tuned, floating, method = ours(model, calibration, Recipe())
        plain, _, _ = ours(model, calibration, Recipe(ranges="minmax", correct_bias=False))
    with calibration_set(str(data), spec.source_channels, n_images, Path()) as others:
        tests = [image.copy() for image in others.inputs(spec)]
    exact = _run(model.graph.model, model, tests)
    found: dict[str, Outputs] = {
        "ours": TfliteRun(tuned, WHOLE).all(tests),
        "ours, min/max": TfliteRun(plain, WHOLE).all(tests),
        "ONNX Runtime": onnx_runtime(model, images, tests),
        "litert default": TfliteRun(litert_default(floating, images), WHOLE).all(tests),
    }
    return [
        {
            "model": model.info.name,
            "task": task,
            **{who: sqnr_db(exact[task], outputs[task]) for who, outputs in found.items()},
            "ranges": method,
        }
        for task in exact
    ]


def main() -> None:
    """Quantises, runs, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
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
            rows += compare(folder, options.calib, options.data, options.images)
    show(rows, find_interpreter().name, f"dB on {options.images} images", as_json=options.json)


if __name__ == "__main__":
    main()

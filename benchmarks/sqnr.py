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

import logging
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from litert_quantizer import quantizer, recipe
from noise import Compared, Image, Outputs, Reader, main, run
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from calib.dataset import CalibrationSet, hold_out
from calib.interpret import TfliteRun
from calib.recipe import Recipe, prepare
from calib.tflite_edge import choose_ranges, float_edge, quantised
from export.model import Model
from runtime_edge.engines.litert import find_interpreter
from splitboard.cli.edge_half import judges

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


def onnx_runtime(model: Model, calibration: Iterable[Image], images: Iterable[Image]) -> Outputs:
    """Outputs of ONNX Runtime's own quantisation."""
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "float.onnx", Path(work) / "int8.onnx"
        onnx.save(model.graph.model, source)
        quantize_static(
            source,
            target,
            Reader(model.graph.inputs[0], calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return run(onnx.load(target), model, images)


def contest(model: Model, calibration: CalibrationSet, images: list[Image]) -> Compared:
    """The four ways."""
    tuned, floating, method = ours(model, calibration, Recipe())
    plain, _, _ = ours(model, calibration, Recipe(ranges="minmax", correct_bias=False))
    default = litert_default(floating, images)

    def answer(tests: list[Image]) -> Mapping[str, Outputs]:
        return {
            "ours": TfliteRun(tuned, WHOLE).all(tests),
            "ours, min/max": TfliteRun(plain, WHOLE).all(tests),
            "ONNX Runtime": onnx_runtime(model, images, tests),
            "litert default": TfliteRun(default, WHOLE).all(tests),
        }

    return answer, method


if __name__ == "__main__":
    main(__doc__ or "", find_interpreter().name, contest)

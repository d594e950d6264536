"""How much noise does the Q/DQ form for TensorRT add, beside ONNX Runtime's own quantiser?

For each model folder, the whole model calibrated on the same images and compared with the float model on others; signal
to quantisation noise of every task's output in dB, higher is better. All run in ONNX Runtime, its optimiser off:

* ours: as `splitboard build --board jetson-orin-nano` does it, squeeze-excite and depthwise layers in fp16;
* ours, depthwise INT8: the same with `--depthwise int8`;
* ONNX Runtime, all operators: `quantize_static`, min/max, weights per channel, in the form that TensorRT takes
  (symmetric, no INT32 biases);
* ONNX Runtime, Conv and Gemm: the same with those operators alone.

Usage: python benchmarks/qdq_sqnr.py --calib calibration.npz --data test.npz MODEL [MODEL ...]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from output import show

from calib.dataset import CalibrationSet, calibration_set, hold_out
from calib.keep_float import operators_of, resolve
from calib.qdq.emit import emit
from calib.qdq.keep import float_layers
from calib.qdq.plan import plan
from calib.ranges import RangeTable
from calib.recipe import Recipe, choose, prepare
from export.model import Model, load_model
from export.reference import reference_session
from splitboard.cli.console import steps
from splitboard.cli.edge_half import judges

Image = NDArray[np.float32]
Outputs = Mapping[str, NDArray[np.float32]]


def ours(model: Model, data: CalibrationSet, depthwise: str) -> tuple[onnx.ModelProto, str]:
    """The graph of the whole model, and the ranges that were used."""
    graph, spec, tasks = model.graph, model.info.declared(), model.graph.outputs
    kept = resolve(graph, model.info.scopes, sorted(float_layers(graph, depthwise)), tasks)
    recipe = Recipe(keep_float=kept)
    calibrating, held_out = hold_out(data)
    prepared = prepare(graph, tasks, calibrating.inputs(spec), recipe, lambda _: None)
    operators = operators_of(graph, kept, tasks)

    def made(table: RangeTable) -> onnx.ModelProto:
        return emit(prepared.graph, plan(prepared.graph, tasks, table, operators))

    reference, images = judges(graph, held_out, spec).reference, list(held_out.inputs(spec))
    choice = choose(prepared.tables, recipe, reference, lambda table: run(made(table), model, images))
    return made(prepared.tables[choice.method]), choice.method


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, name: str, images: Iterable[Image]) -> None:
        self._samples = ({name: image} for image in images)

    def get_next(self) -> dict[str, Image] | None:
        return next(self._samples, None)


def onnx_runtime(model: Model, images: Iterable[Image], op_types: list[str] | None) -> onnx.ModelProto:
    """ONNX Runtime's own quantisation; `op_types` of ``None`` are all that it knows."""
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "float.onnx", Path(work) / "int8.onnx"
        onnx.save(model.graph.model, source)
        quantize_static(
            source,
            target,
            _Reader(model.graph.inputs[0], images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=op_types,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": True,
            },
        )
        return onnx.load(target)


def run(graph: onnx.ModelProto, model: Model, images: Sequence[Image]) -> Outputs:
    """All tasks' outputs."""
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
        (mixed, method), (full, _) = (ours(model, calibration, depthwise) for depthwise in ("float", "int8"))
    graphs = {
        "ours": mixed,
        "ours, depthwise INT8": full,
        "ONNX Runtime, all operators": onnx_runtime(model, images, None),
        "ONNX Runtime, Conv and Gemm": onnx_runtime(model, images, ["Conv", "Gemm"]),
    }
    with calibration_set(str(data), spec.source_channels, n_images, Path()) as others:
        tests = [image.copy() for image in others.inputs(spec)]
    exact = run(model.graph.model, model, tests)
    found = {who: run(graph, model, tests) for who, graph in graphs.items()}
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
    show(rows, f"onnxruntime {onnxruntime.__version__}", f"dB on {options.images} images", as_json=options.json)


if __name__ == "__main__":
    main()

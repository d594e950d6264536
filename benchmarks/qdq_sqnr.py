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

import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnxruntime
from noise import Compared, Image, Reader, main, run
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from calib.dataset import CalibrationSet, hold_out
from calib.keep_float import operators_of, resolve
from calib.qdq.emit import emit
from calib.qdq.keep import float_layers
from calib.qdq.plan import plan
from calib.ranges import RangeTable
from calib.recipe import Recipe, choose, prepare
from export.model import Model
from splitboard.cli.edge_half import judges


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


def onnx_runtime(model: Model, images: Iterable[Image], op_types: list[str] | None) -> onnx.ModelProto:
    """ONNX Runtime's own quantisation; `op_types` of ``None`` are all that it knows."""
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "float.onnx", Path(work) / "int8.onnx"
        onnx.save(model.graph.model, source)
        quantize_static(
            source,
            target,
            Reader(model.graph.inputs[0], images),
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


def contest(model: Model, calibration: CalibrationSet, images: list[Image]) -> Compared:
    """The four graphs."""
    (mixed, method), (full, _) = (ours(model, calibration, depthwise) for depthwise in ("float", "int8"))
    graphs = {
        "ours": mixed,
        "ours, depthwise INT8": full,
        "ONNX Runtime, all operators": onnx_runtime(model, images, None),
        "ONNX Runtime, Conv and Gemm": onnx_runtime(model, images, ["Conv", "Gemm"]),
    }
    return lambda tests: {who: run(graph, model, tests) for who, graph in graphs.items()}, method


if __name__ == "__main__":
    main(__doc__ or "", f"onnxruntime {onnxruntime.__version__}", contest)

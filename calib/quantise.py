"""TFLite files of every precision from the float one and our range table.

litert-quantizer does the arithmetic: activations per tensor and asymmetric, weights per channel and symmetric, INT8 in
and out. Its own calibration is not used: a moving average of each image's limits, which clips the
ranges.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
from ai_edge_litert.schema_py_generated import ModelT
from litert_quantizer import algorithm_manager, qtyping, quantizer, recipe, recipe_manager

from calib.artefact import overflowed_biases, read_model, unexpected_float
from calib.ranges import RangeTable
from export.tflite import FloatTflite, onnx_name
from splitboard.contract.errors import SplitboardError

_SAME_STEPS = 2.0
"""Two ranges whose limits are this near, in steps of the narrower one, are the same for the tensor's accuracy."""

_EVERYTHING = ".*"
_WEIGHTED = (
    qtyping.TFLOperationName.CONV_2D,
    qtyping.TFLOperationName.CONV_2D_TRANSPOSE,
    qtyping.TFLOperationName.DEPTHWISE_CONV_2D,
    qtyping.TFLOperationName.FULLY_CONNECTED,
)


def int8(floating: FloatTflite, table: RangeTable, keep_float: Collection[str] = ()) -> bytes:
    """Full INT8: activations, weights, inputs and outputs.

    Args:
        floating: from `export.tflite.convert`; its tensors have ONNX's names.
        table: ranges by those names.
        keep_float: tensors whose operators stay in float; what crosses a border is INT8 all the same.

    Raises:
        UserError: a range that nothing fits into.
        SplitboardError: another tensor stayed float, or a name is ambiguous.
    """
    _check_twins(floating, table)
    content = _quantised(floating, table, _recipe(recipe.static_wi8_ai8(), keep_float))
    _check_integer(content, keep_float)
    for tensor in overflowed_biases(content):
        raise SplitboardError(f'the int32 bias "{tensor}" overflows: a channel of its weights is too small')
    return content


def only(floating: FloatTflite, table: RangeTable, layers: Collection[str]) -> bytes:
    """INT8 in the operators that make these tensors, float everywhere else: what one layer alone costs."""
    manager = recipe_manager.RecipeManager()
    for name in layers:
        manager.add_static_config(
            regex=_scope(name),
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            activation_num_bits=8,
            weight_num_bits=8,
        )
    return _quantised(floating, table, manager.get_quantization_recipe())


def int16x8(floating: FloatTflite, table: RangeTable, keep_float: Collection[str] = ()) -> bytes:
    """INT16 activations, INT8 weights: an accuracy reference. No accelerated kernels, so it is slow."""
    _check_twins(floating, table)
    content = _quantised(floating, table, _recipe(recipe.static_wi8_ai16(), keep_float))
    _check_integer(content, keep_float)
    return content


def fp16(floating: FloatTflite, table: RangeTable, keep_float: Collection[str] = ()) -> bytes:
    """Weights stored as float16; arithmetic, inputs and outputs float32. There are no ranges to apply."""
    manager = recipe_manager.RecipeManager()
    for operation in _WEIGHTED:
        manager.add_weight_only_config(
            regex=_EVERYTHING,
            operation_name=operation,
            num_bits=16,
            algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
        )
    return _quantised(floating, table, _recipe(manager.get_quantization_recipe(), keep_float))


def fp32(floating: FloatTflite, table: RangeTable, keep_float: Collection[str] = ()) -> bytes:  # noqa: ARG001 (the table's signature)
    """Everything float32, as converted."""
    return floating.content


PRECISIONS: Mapping[str, Callable[[FloatTflite, RangeTable, Collection[str]], bytes]] = {
    "int8": int8,
    "int16x8": int16x8,
    "fp16": fp16,
    "fp32": fp32,
}
"""By the name that ``--precision`` takes."""


def _quantised(floating: FloatTflite, table: RangeTable, how: qtyping.ModelQuantizationRecipe) -> bytes:
    wanted = {}
    for tensor in _activations(read_model(floating.content)):
        found = table.of(onnx_name(tensor))
        wanted[tensor] = {"min": _limit(found.min), "max": _limit(found.max)}
    with _quiet():
        worker = quantizer.Quantizer(bytearray(floating.content), how)
        result = worker.quantize(wanted, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _recipe(how: qtyping.ModelQuantizationRecipe, keep_float: Collection[str]) -> qtyping.ModelQuantizationRecipe:
    """A recipe with exceptions: the last rule that fits an operator counts."""
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(how)
    for name in keep_float:
        for operation in qtyping.TFLOperationName:
            # The ends of the graph are operators of their own to the quantizer; they keep the recipe's precision.
            if operation not in (_ALL, qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
                manager.add_quantization_config(
                    _scope(name), operation, None, algorithm_manager.AlgorithmName.NO_QUANTIZE
                )
    return manager.get_quantization_recipe()


_ALL = qtyping.TFLOperationName.ALL_SUPPORTED


def _scope(tensor: str) -> str:
    """Fits the operators that make a tensor, in every signature; the quantizer calls an operator by its outputs."""
    return f"^[^/;]*/{re.escape(tensor)}'*;"


def _check_integer(content: bytes, keep_float: Collection[str]) -> None:
    for signature, tensor in unexpected_float(content, keep_float):
        raise SplitboardError(f'tensor "{tensor}" of signature "{signature}" stayed float, which was not asked for')


def _check_twins(floating: FloatTflite, table: RangeTable) -> None:
    """Two tensors with the same values on the samples must have the same range, else the wrong one may be used."""
    for name, twins in floating.twins.items():
        for twin in twins:
            one, other = table.of(name), table.ranges[twin]
            step = min(one.asymmetric_scale, other.asymmetric_scale)
            if max(abs(one.min - other.min), abs(one.max - other.max)) > _SAME_STEPS * step:
                raise SplitboardError(
                    f'a tensor of the TFLite file has the values of "{name}" and of "{twin}" on the samples, whose '
                    f"ranges differ: {one.min:g} to {one.max:g} and {other.min:g} to {other.max:g}"
                )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the quantizer says of its own working; numpy's RuntimeWarning (an overflow) still comes through.

    It logs once per tensor that two signatures write one weight buffer. They write the same bytes: both sides' scales
    come from the same ranges (`tests/calib/test_quantise.py` compares them).
    """
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logging.disable(logging.NOTSET)


def _limit(value: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    # The quantizer wants rank 4.
    return np.array(value, dtype=np.float32).reshape(1, 1, 1, 1)


def _activations(model: ModelT) -> list[str]:
    """Names of all tensors that an operator or the caller fills."""
    names = []
    for subgraph in model.subgraphs:
        indices = [*subgraph.inputs, *(index for operator in subgraph.operators for index in operator.outputs)]
        names += [subgraph.tensors[index].name.decode() for index in indices]
    return names

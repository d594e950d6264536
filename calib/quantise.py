"""Full INT8 from the float TFLite file and our range table.

litert-quantizer does the arithmetic: activations per tensor and asymmetric, weights per channel and symmetric, INT8 in
and out. Its own calibration is not used: a moving average of each image's limits, which clips the
ranges.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
from ai_edge_litert.schema_py_generated import ModelT
from litert_quantizer import quantizer, recipe

from calib.artefact import float_tensors, overflowed_biases, read_model
from calib.ranges import RangeTable
from export.tflite import onnx_name
from splitboard.contract.errors import SplitboardError

RECIPE = "static_wi8_ai8"


def quantise_tflite(float_model: bytes, table: RangeTable) -> bytes:
    """Quantises every signature of a float file.

    Args:
        float_model: from `export.tflite.convert`; its tensors have ONNX's names.
        table: ranges by those names.

    Raises:
        SplitboardError: a tensor stayed float.
    """
    wanted = {}
    for tensor in _activations(read_model(float_model)):
        found = table.ranges[onnx_name(tensor)]
        wanted[tensor] = {"min": _limit(found.min), "max": _limit(found.max)}
    with _quiet():
        worker = quantizer.Quantizer(bytearray(float_model), recipe.static_wi8_ai8())
        result = worker.quantize(wanted, enable_progress_bar=False, enable_progress_report=False)
    content = bytes(result.quantized_model)
    for signature, tensor in float_tensors(content):
        raise SplitboardError(f'tensor "{tensor}" of signature "{signature}" stayed float, full INT8 was asked for')
    for tensor in overflowed_biases(content):
        raise SplitboardError(f'the int32 bias "{tensor}" overflows: a channel of its weights is too small')
    return content


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
    # Every range includes zero: padding and a fused ReLU6 need it to be a quantised value. The quantizer wants rank 4.
    return np.array(value, dtype=np.float32).reshape(1, 1, 1, 1)


def _activations(model: ModelT) -> list[str]:
    """Names of all tensors that an operator or the caller fills."""
    names = []
    for subgraph in model.subgraphs:
        indices = [*subgraph.inputs, *(index for operator in subgraph.operators for index in operator.outputs)]
        names += [subgraph.tensors[index].name.decode() for index in indices]
    return names

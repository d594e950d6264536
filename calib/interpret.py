"""Runs one signature of a TFLite file of any precision on float inputs, and reads its tensors as real numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from calib.artefact import read_model
from export.tflite import IMAGE_RANK, onnx_name

Real = NDArray[np.float32]


class TfliteRun:
    """One signature, ready to run with the kernels that a board uses.

    Args:
        content: the file.
        signature: to run.
    """

    def __init__(self, content: bytes, signature: str) -> None:
        self._runner = Interpreter(model_content=content, num_threads=1).get_signature_runner(signature)
        ((self._image, self._input),) = self._runner.get_input_details().items()
        self._outputs = self._runner.get_output_details()

    @property
    def image(self) -> str:
        """Name of the input."""
        return str(self._image)

    def __call__(self, image: Real) -> dict[str, Real]:
        """Outputs by name for one normalised image ``[1, c, h, w]``; image-like ones come back NHWC."""
        found = self._runner(**{self._image: stored(image, self._input)})
        return {name: real(value, self._outputs[name]) for name, value in found.items()}

    def all(self, images: Iterable[Real]) -> dict[str, Real]:
        """Outputs of all images, ``[n, ...]``."""
        results = [self(image) for image in images]
        return {name: np.concatenate([result[name] for result in results]) for name in self._outputs}


class TfliteTensors:
    """One signature whose intermediate tensors can be read. Runs without acceleration, which would hide them.

    Args:
        content: the file.
        signature: to run; its tensors have ONNX's names.
    """

    def __init__(self, content: bytes, signature: str) -> None:
        self._interpreter = Interpreter(
            model_content=content,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        model = read_model(content)
        self._subgraph = next(
            one.subgraphIndex for one in model.signatureDefs if one.signatureKey.decode() == signature
        )
        subgraph = model.subgraphs[self._subgraph]
        self._runner = self._interpreter.get_signature_runner(signature)
        ((self._image, self._input),) = self._runner.get_input_details().items()
        self._details: dict[str, tuple[int, dict[str, Any]]] = {}
        for operator in subgraph.operators:
            for index in operator.outputs:
                tensor = subgraph.tensors[index]
                # The first of several tensors with one name is the operator's own result, the others are copies.
                self._details.setdefault(onnx_name(tensor.name.decode()), (index, _quantisation(tensor)))

    @property
    def names(self) -> tuple[str, ...]:
        """ONNX names of the tensors, in the order of the operators."""
        return tuple(self._details)

    def __call__(self, image: Real) -> dict[str, Real]:
        """Every tensor that an operator makes, by ONNX name, NHWC."""
        self._runner(**{self._image: stored(image, self._input)})
        return {
            name: real(self._interpreter.get_tensor(index, self._subgraph), details)
            for name, (index, details) in self._details.items()
        }


def _quantisation(tensor: Any) -> dict[str, Any]:
    quantised = tensor.quantization
    if quantised is None or quantised.scale is None or len(quantised.scale) == 0:
        return {"quantization": (0.0, 0)}
    return {"quantization": (float(quantised.scale[0]), int(quantised.zeroPoint[0]))}


def stored(image: Real, details: Mapping[str, Any]) -> NDArray[Any]:
    """A normalised image ``[1, c, h, w]`` as a file's input takes it, NHWC."""
    value = np.ascontiguousarray(image.transpose(0, 2, 3, 1) if image.ndim == IMAGE_RANK else image)
    dtype = np.dtype(details["dtype"])
    if dtype.kind == "f":
        return value.astype(dtype, copy=False)
    scale, zero_point = details["quantization"]
    limits = np.iinfo(dtype)
    rounded = np.rint(value.astype(np.float64) / scale) + zero_point
    return np.asarray(np.clip(rounded, limits.min, limits.max).astype(dtype))


def real(value: NDArray[Any], details: Mapping[str, Any]) -> Real:
    """A stored tensor as real numbers."""
    scale, zero_point = details["quantization"]
    if value.dtype.kind == "f" or not scale:
        return value.astype(np.float32, copy=False)
    return np.asarray((value.astype(np.float32) - np.float32(zero_point)) * np.float32(scale))

"""A server half in Triton's Python back end: ONNX Runtime, and the pair's checks, which Triton itself does not know.

`splitboard triton --backend python` copies this file into the repository as ``model.py``. There it stands alone: it may
import what Triton's image has, and nothing of splitboard.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # Triton brings it

_PAIR = ("bundle", "split")


class RefusedError(Exception):
    """A request that is not for this model, or that was changed on its way."""


class TritonPythonModel:
    """What the back end calls; the name is Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads ``model.onnx`` beside this file."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._name = config["name"]
        self._pair = {name: parameters[name] for name in _PAIR}
        self._inputs = [tensor["name"] for tensor in config["input"]]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["intra_op_thread_count"])
        options.inter_op_num_threads = 1
        graph = Path(__file__).with_name("model.onnx")
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request, each on its own: the graphs are of batch one."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        try:
            self._check(json.loads(request.parameters()), tensors)
        except RefusedError as error:
            refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refusal)
        names = request.requested_output_names()
        outputs = self._session.run(names, tensors)
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(names, outputs, strict=True)])

    def _check(self, parameters: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Compares the parameters that are there; clients that know nothing of splitboard send none."""
        for name, expected in self._pair.items():
            found = parameters.get(name, expected)
            if found != expected:
                raise RefusedError(f'{self._name} is of {name} "{expected}" here and of "{found}" over there')
        if "crc32" not in parameters:
            return
        crc32 = 0
        for name in self._inputs:  # Triton does not keep the request's order
            crc32 = zlib.crc32(tensors[name], crc32)
        claimed = parameters["crc32"]
        if claimed != crc32:
            raise RefusedError(f"the tensors were changed on the way: crc32 is {crc32}, the sender says {claimed}")

"""NVIDIA's gRPC client for `round_trip.py`, in the environment and the process that it needs for itself.

Reads ``ADDRESS MODEL BYTES CALLS`` line by line, and answers each with the nanoseconds of every call, as a JSON list.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput


class Client:
    """One connection.

    Args:
        address: ``host:port``.
    """

    def __init__(self, address: str) -> None:
        self._client = InferenceServerClient(address)
        self._outputs = [InferRequestedOutput(name) for name in ("left", "right")]

    def call(self, model: str, pixels: Any) -> None:
        """One inference, from an array to arrays."""
        tensor = InferInput("x", list(pixels.shape), "INT8")
        tensor.set_data_from_numpy(pixels)
        result = self._client.infer(model, [tensor], outputs=self._outputs)
        assert result.as_numpy("left").shape == result.as_numpy("right").shape == (1, 10)


def main() -> None:
    """Answers until its input ends."""
    clients: dict[str, Client] = {}
    for line in sys.stdin:
        address, model, n_bytes, calls = line.split()
        client = clients.get(address) or clients.setdefault(address, Client(address))
        pixels = np.ones((1, int(n_bytes)), np.int8)
        times = []
        for _ in range(int(calls)):
            start_ns = time.perf_counter_ns()
            client.call(model, pixels)
            times.append(time.perf_counter_ns() - start_ns)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()

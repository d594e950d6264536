"""NVIDIA's own clients, in a process of their own: ``python triton_client.py HTTP GRPC PIXELS.npy``.

Runs where ``tritonclient[grpc,http]`` is installed and prints one JSON object: by front, what the client was told.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

MODEL = "tiny-s00"
OUTPUTS = ("shape", "colour")


def outputs_of(result: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Type, shape and bytes of every output that is there."""
    arrays = {name: result.as_numpy(name) for name in names}
    return {
        name: [str(array.dtype), list(array.shape), array.tobytes().hex()]
        for name, array in arrays.items()
        if array is not None
    }


def refusal(ask: Any) -> list[str | None]:
    """Status and words of an error."""
    try:
        ask()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["not refused", None]


def told(module: Any, address: str, pixels: Any) -> dict[str, Any]:
    """Everything that a client asks of a server."""
    as_json = {"as_json": True} if module is tritonclient.grpc else {}
    client = module.InferenceServerClient(address)

    def image(array: Any, datatype: str = "UINT8") -> list[Any]:
        tensor = module.InferInput("image", list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        return [tensor]

    wanted = [module.InferRequestedOutput(name) for name in OUTPUTS]
    one = client.infer(MODEL, image(pixels), outputs=wanted, request_id="seven")
    said = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(MODEL),
        "unknown model ready": client.is_model_ready("nix"),
        "server": client.get_server_metadata(**as_json),
        "model": client.get_model_metadata(MODEL, **as_json),
        "config": client.get_model_config(MODEL, **as_json),
        "index": client.get_model_repository_index(**as_json),
        "all": outputs_of(one, OUTPUTS),
        "id": one.get_response(**as_json)["id"],
        "unasked": outputs_of(client.infer(MODEL, image(pixels)), OUTPUTS),
        "some": outputs_of(client.infer(MODEL, image(pixels), outputs=wanted[1:], timeout=10_000_000), OUTPUTS),
        "by version": outputs_of(client.infer(MODEL, image(pixels), model_version="1"), OUTPUTS),
        "statistics": client.get_inference_statistics(MODEL, **as_json),
        "unknown model": refusal(lambda: client.infer("nix", image(pixels))),
        "another shape": refusal(lambda: client.infer(MODEL, image(pixels[:, :16]))),
        "another type": refusal(lambda: client.infer(MODEL, image(pixels.view(np.int8), "INT8"))),
        "another bundle": refusal(lambda: client.infer(MODEL, image(pixels), parameters={"bundle": "0"})),
    }
    client.close()
    return said


def main() -> None:
    """Asks by both fronts."""
    http, grpc, path = sys.argv[1:]
    pixels = np.load(path)
    found = {"http": told(tritonclient.http, http, pixels), "grpc": told(tritonclient.grpc, grpc, pixels)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()

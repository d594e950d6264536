"""Runs in a process of its own: imports the user's code, loads the checkpoint, hands back an ONNX file.

Started by `export.checkpoint` as a plain script under ``python -I``, so the user's ``export.py``, ``utils/`` or
``models/`` never meet ours, and nothing of theirs is imported into the host process. It therefore imports nothing of
this project. A request is one JSON object on standard input; the answer is the files of the output folder. Exit codes
are those of the command line: 3 with ``error.json`` where the user's input was wrong.
"""

import ast
import importlib
import inspect
import json
import pickle
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

N_PARITY_SAMPLES = 4
_STATE_DICT = "save a state dict: torch.save(model.state_dict(), path), or a .safetensors file"
_FACTORY = "write it as package.module:factory, a function without arguments that returns the model"


class Refused(Exception):
    """The user's input was wrong."""

    def __init__(self, message: str, *tries: str) -> None:
        super().__init__(message)
        self.tries = tries


def load_state(path: Path) -> Any:
    """Reads a state dict without unpickling code."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words tell how to unpickle it all the same
        raise Refused(
            f'"{path}" holds more than tensors, and unpickling that could run any code',
            _STATE_DICT,
        ) from error
    except Exception as error:  # every library raises its own kinds for a broken file
        raise Refused(
            f'"{path}" is not a readable checkpoint: {first_line(error) or type(error).__name__}',
            "copy the file again, it may be truncated",
            _STATE_DICT,
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            return loaded[key]
    return loaded


def make_model(factory: str, folder: str) -> "nn.Module":
    """Calls the user's factory with only their folder on the path."""
    import torch

    module_name, _, attribute = factory.partition(":")
    sys.path.insert(0, folder)
    try:
        make = getattr(importlib.import_module(module_name), attribute)
        inspect.signature(make).bind()
    except (ModuleNotFoundError, AttributeError, TypeError, ValueError) as error:
        if user_line(error, folder) is not None:
            raise
        raise Refused(
            f'--model "{factory}" cannot be called from "{folder}": {error}',
            _FACTORY,
            "name the folder that your package lies in with --path",
        ) from error
    model = make()
    if not isinstance(model, torch.nn.Module):
        raise Refused(f'--model "{factory}" returned "{type(model).__name__}", not a torch.nn.Module', _FACTORY)
    return model.eval()


def load_weights(model: "nn.Module", state: Any, path: Path) -> None:
    """Loads the state dict strictly and says which keys do not fit."""
    import torch

    if not isinstance(state, dict) or not state:
        raise Refused(f'"{path}" holds no state dict', _STATE_DICT)
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise Refused(f'"{path}" has "{key}", which is {type(value).__name__} and not a tensor', _STATE_DICT)
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise Refused(f'"{path}" has "{key}", which is not finite', "take a checkpoint from before it diverged")
    own = model.state_dict()
    # A counter that inference never reads; checkpoints often leave it out.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    for problem, keys in (("lacks", missing), ("has the unknown key", unexpected)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise Refused(
                f'"{path}" does not fit the model: it {problem} "{keys[0]}"{more}',
                "export with the --model that this checkpoint was trained with",
            )
    if wrong:
        key = wrong[0]
        raise Refused(
            f'"{path}" does not fit the model: "{key}" is {list(state[key].shape)}, '
            f"the model has {list(own[key].shape)}",
            "export with the --model that this checkpoint was trained with",
        )
    model.load_state_dict(state, strict=False)


def flatten(outputs: Any) -> dict[str, Any]:
    """Names of the outputs in the order in which the exporter flattens them, and the tensors."""
    if isinstance(outputs, dict):
        return {str(key): value for key, value in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        return {f"output_{index}": value for index, value in enumerate(outputs)}
    return {"output": outputs}


def innermost_module(node: Any) -> "str | None":
    """The module scope of one exported ONNX node, as in the user's model; empty for the model itself."""
    for prop in node.metadata_props:
        if prop.key == "pkg.torch.onnx.name_scopes":
            return str(ast.literal_eval(prop.value)[-2])  # the last entry is the operation
    return None


def export(request: dict[str, Any]) -> None:
    """Writes ``model.onnx``, ``child.json`` and ``parity.npz`` into the output folder."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    path, out = Path(request["checkpoint"]), Path(request["out"])
    state = load_state(path)
    model = make_model(request["factory"], request["folder"])
    load_weights(model, state, path)
    shape = request["input"]
    samples = torch.rand([N_PARITY_SAMPLES, *shape], generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        results = [flatten(model(sample)) for sample in samples]
    names = list(results[0])
    for name, value in results[0].items():
        if not isinstance(value, torch.Tensor):
            raise Refused(f'the model\'s output "{name}" is "{type(value).__name__}", not a tensor')
    program = torch.onnx.export(
        model, (samples[0],), dynamo=True, opset_version=18, input_names=["image"], output_names=names, verbose=False
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    program.save(str(out / "model.onnx"), external_data=False)
    scopes = {}
    for node in program.model_proto.graph.node:
        scope = innermost_module(node)
        for output in node.output:
            if scope is not None:
                scopes[output] = scope
    sequences = [
        name for name, module in model.named_modules() if isinstance(module, (torch.nn.Sequential, torch.nn.ModuleList))
    ]
    answer = {"outputs": names, "scopes": scopes, "sequences": sequences, "torch": torch.__version__}
    (out / "child.json").write_text(json.dumps(answer))
    outputs = {f"output.{name}": np.stack([result[name].numpy() for result in results]) for name in names}
    np.savez(out / "parity.npz", allow_pickle=False, input=samples.numpy(), **outputs)


def user_line(error: BaseException, folder: str) -> "str | None":
    """``file:line`` of the user's code that an error came through last, if any."""
    root = Path(folder).resolve()
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename is not None:
        lines.append((error.filename, error.lineno))
    for name, number in reversed(lines):
        file = Path(name).resolve()
        if root in file.parents and "site-packages" not in file.parts:
            return f"{file.relative_to(root)}:{number}"
    return None


def first_line(error: BaseException) -> str:
    """What an error says first, without the terminal codes that torch puts into its messages."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0][:300] if lines else ""


def main() -> int:
    """Reads the request, exports, and turns the user's errors into one line."""
    warnings.simplefilter("ignore")
    request = json.loads(sys.stdin.read())
    try:
        export(request)
    except Refused as error:
        answer = {"message": str(error), "tries": list(error.tries)}
    except (Exception, SystemExit) as error:  # the user's code may raise anything; its line is what helps them
        where = user_line(error, request["folder"])
        if where is None and type(error).__module__.startswith("torch.onnx") is False:
            raise
        message = f'{type(error).__name__} in "{where or request["factory"]}": {first_line(error)}'
        answer = {"message": message, "tries": ["run the model once in plain torch with the same input"]}
    else:
        return 0
    (Path(request["out"]) / "error.json").write_text(json.dumps(answer))
    return 3


if __name__ == "__main__":
    sys.exit(main())

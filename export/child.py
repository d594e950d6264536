"""Runs in a process of its own: imports the user's code, loads the checkpoint, hands back an ONNX file.

Started by `export.checkpoint` as a plain script under ``python -I``, so the user's ``export.py``, ``utils/`` or
``models/`` never meet ours, and nothing of theirs is imported into the host process. The few modules of ours that it
needs are imported before the user's folder is put on the path, and forgotten again by name. A request is one JSON
object on standard input; the answer is the files of the output folder. Exit codes are those of the command line: 3 with
``error.json`` where the user's input was wrong.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from export import child_program as programs
from export import child_weights as weights
from export.child_refusals import Refused, first_line, place, running_module, user_line

sys.path.pop()
for _name in [name for name in sys.modules if name.partition(".")[0] == "export"]:
    del sys.modules[_name]  # theirs may be called so

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

_FACTORY = "write it as package.module:factory, a function without arguments that returns the model"


def make_model(factory: str, folder: Path) -> nn.Module:
    """Calls the user's factory."""
    import torch

    module_name, _, attribute = factory.partition(":")
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


def load_model(request: Mapping[str, Any]) -> tuple[nn.Module, list[str]]:
    """The user's model with its weights, and what was done to get there."""
    path = Path(request["source"])
    loaded = weights.read_checkpoint(path, trust_pickle=request["trust_pickle"])
    if request["factory"] is None:
        model, changes = weights.pickled_model(loaded, path)
        weights.check_size(model.state_dict().values())
        weights.check_finite(path.name, model.state_dict().items(), dict(model.named_parameters()))
        return model, changes
    model = make_model(request["factory"], Path(request["folder"]))
    weights.check_size(model.state_dict().values())
    return model, weights.load_weights(model, loaded, path)


def export_module(request: Mapping[str, Any], out: Path) -> None:
    """Exports a module with weights."""
    import torch

    folder = Path(request["folder"])
    sys.path.insert(0, str(folder))
    torch.manual_seed(0)  # a model may hold random tensors that no checkpoint has
    model, changes = load_model(request)
    model.requires_grad_(requires_grad=False)  # a third of the time of torch.export goes without
    inputs = programs.bind(model, request["inputs"])

    def call(given: Mapping[str, Tensor]) -> Any:
        try:
            positional = [given[one.name] for one in inputs if not one.keyword]
            return model(*positional, **{one.name: given[one.name] for one in inputs if one.keyword})
        except Exception as error:
            at = place(user_line(error, folder), running_module(error, model))
            raise Refused(
                f'the model does not run on these inputs: {type(error).__name__}{at}: "{first_line(error)[:200]}"',
                "run the model once in plain torch with the same input",
            ) from error

    taken = programs.samples(inputs)
    results = run(call, taken)
    traced = programs.trace(model, inputs, {name: tensor[0] for name, tensor in taken.items()}, folder)
    sequences = [
        name for name, module in model.named_modules() if isinstance(module, (torch.nn.Sequential, torch.nn.ModuleList))
    ]
    answer(out, traced, inputs, taken, results, {"sequences": sequences, "changes": changes})


def export_program(request: Mapping[str, Any], out: Path) -> None:
    """Exports what ``torch.export.save`` wrote. Its outputs are named by the structure that it returns."""
    import torch

    path = Path(request["source"])
    try:
        program = torch.export.load(path)
        call = programs.program_call(program)
    except Exception as error:
        raise Refused(
            f'"{request["shown"]}" is not a readable exported program: {first_line(error)[:200]}',
            f"save it again with torch.export.save of torch {torch.__version__}",
        ) from error
    weights.check_size(program.state_dict.values())
    tensors = {**program.state_dict, **{k: v for k, v in program.constants.items() if isinstance(v, torch.Tensor)}}
    weights.check_finite(request["shown"], tensors.items(), dict(program.named_parameters()))
    inputs = programs.program_inputs(program, request["inputs"])
    taken = programs.samples(inputs)

    def checked(given: Mapping[str, Tensor]) -> Any:
        try:
            return call(given)
        except Exception as error:
            raise Refused(
                f'the program does not run on these inputs: "{first_line(error)[:200]}"',
                "export it again with the shapes that it is to run with",
            ) from error

    results = run(checked, taken)
    traced = programs.Traced(program, "", Path(request["folder"]))
    answer(out, traced, inputs, taken, results, {"sequences": None, "changes": []})


def run(call: Callable[[Mapping[str, Tensor]], Any], taken: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """The outputs on every sample, by name."""
    import torch

    torch.set_grad_enabled(False)  # for the rest of this process
    return programs.run_samples(call, taken)


def answer(
    out: Path,
    traced: programs.Traced,
    inputs: list[programs.Input],
    taken: Mapping[str, Tensor],
    results: Mapping[str, list[Tensor]],
    said: Mapping[str, Any],
) -> None:
    """Writes ``model.onnx``, ``child.json`` and ``parity.npz``."""
    import numpy as np
    import onnx
    import torch

    traced.check_shapes()
    model = traced.to_onnx([one.name for one in inputs], len(results))
    onnx.save(model, out / "model.onnx")
    shapes = [{"name": one.name, "shape": one.shape, "dtype": one.dtype} for one in inputs]
    (out / "child.json").write_text(json.dumps({**said, "inputs": shapes, "torch": torch.__version__}))
    arrays = {f"input.{name}": tensor.numpy() for name, tensor in taken.items()}
    arrays |= {f"output.{name}": np.stack([one.numpy() for one in found]) for name, found in results.items()}
    np.savez(out / "parity.npz", allow_pickle=False, **arrays)


def main() -> int:
    """Reads the request, exports, and turns the user's errors into one line."""
    gc.disable()  # a sixth of the time; the process is gone before the memory is missed
    warnings.simplefilter("ignore")
    request = json.loads(sys.stdin.read())
    out, folder = Path(request["out"]), Path(request["folder"])
    try:
        (export_program if request["source"].endswith(".pt2") else export_module)(request, out)
    except Refused as error:
        refusal = {"message": str(error), "tries": list(error.tries)}
    except (Exception, SystemExit) as error:  # the user's code may raise anything; its line is what helps them
        where = user_line(error, folder)
        if where is None and not isinstance(error, SystemExit):
            raise
        message = f'{type(error).__name__} in "{where or request["factory"]}": {first_line(error)}'
        refusal = {"message": message, "tries": ["run the model once in plain torch with the same input"]}
    else:
        return 0
    (out / "error.json").write_text(json.dumps(refusal))
    return 3


if __name__ == "__main__":
    sys.exit(main())

"""Weights of torch become ONNX, in a child process that alone runs the user's code."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

from export import pt2
from export.exported import Exported, ExportRequest
from export.inputs import check_batch, fix_inputs, input_spec
from splitboard.contract.bundle import file_sha256
from splitboard.contract.errors import EXIT_USER_ERROR, SplitboardError, UserError

PROGRAM_SUFFIX = ".pt2"
SUFFIXES = (".safetensors", ".pt", ".pth", PROGRAM_SUFFIX)

_CHILD = Path(__file__).with_name("child.py")


def export_torch(request: ExportRequest) -> Exported:
    """Exports a state dict, a pickled module or an exported program.

    Raises:
        UserError: the checkpoint, the factory or the inputs do not fit.
    """
    _check_request(request)
    with tempfile.TemporaryDirectory() as work:
        source = request.source.resolve()
        if source.suffix == PROGRAM_SUFFIX and not request.trust_pickle:
            source = Path(work) / f"checked{PROGRAM_SUFFIX}"
            pt2.checked_copy(request.source, source)
        _run_child(request, source, Path(work))
        child = json.loads((Path(work) / "child.json").read_text(encoding="utf-8"))
        model = onnx.load(Path(work) / "model.onnx")
        with np.load(Path(work) / "parity.npz", allow_pickle=False) as arrays:
            samples, results = (
                {key.removeprefix(kind): arrays[key] for key in arrays if key.startswith(kind)}
                for kind in ("input.", "output.")
            )
    inputs = tuple(input_spec(one["name"], one["shape"], one["dtype"]) for one in child["inputs"])
    for one in inputs:
        check_batch(f'input "{one.name}"', one.shape)
    fix_inputs(model, inputs)
    sequences = child["sequences"]
    return Exported(
        model=model,
        source_sha256=file_sha256(request.source),
        inputs=inputs,
        sequences=None if sequences is None else tuple(sequences),
        samples=samples,
        results=results,
        changes=tuple(child["changes"]),
        tool_versions={"torch": child["torch"], "onnxscript": version("onnxscript")},
    )


def _check_request(request: ExportRequest) -> None:
    """Refuses what can be refused without the seconds that torch takes to start."""
    is_program = request.source.suffix == PROGRAM_SUFFIX
    if request.factory is not None and is_program:
        raise UserError(
            f'"{request.source.name}" is a whole program, and --model "{request.factory}" would not be used',
            ["leave --model out"],
        )
    if request.factory is None and not is_program and not request.trust_pickle:
        raise UserError(
            f'"{request.source.name}" holds weights, and --model is missing',
            [
                "--model package.module:factory, a function without arguments that returns the model",
                "--trust-pickle for a pickled model, if you trust whoever made the file",
            ],
        )
    if not request.inputs and not is_program:
        raise UserError(
            f'"{request.source.name}" does not say what the model takes, and --input is missing',
            ["--input 1x3x224x224", "with several inputs name each: --input image=1x3x224x224 --input meta=1x6"],
        )


def _run_child(request: ExportRequest, source: Path, work: Path) -> None:
    asked = {
        "source": str(source),
        "shown": str(request.source),
        "factory": request.factory,
        "folder": str(request.source_folder.resolve()),
        "inputs": [asdict(one) for one in request.inputs],
        "trust_pickle": request.trust_pickle,
        "out": str(work),
    }
    done = start_child(json.dumps(asked))
    if done.returncode == EXIT_USER_ERROR:
        error = json.loads((work / "error.json").read_text(encoding="utf-8"))
        raise UserError(error["message"], error["tries"])
    if done.returncode != 0:
        raise SplitboardError(f'the export process ended with "{done.returncode}": {done.stderr.strip()[-2000:]}')


def start_child(request: str) -> subprocess.CompletedProcess[str]:
    """Runs the child on one request."""
    argv = [sys.executable, "-I", str(_CHILD)]
    return subprocess.run(argv, input=request, capture_output=True, text=True, check=False)

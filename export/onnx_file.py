"""ONNX files of any framework, opset 13 and up, as a source of models."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, ValueInfoProto, external_data_helper, helper

from export.checks import check_ends, check_finite, check_operators
from export.child_program import N_SAMPLES
from export.child_weights import MAX_BYTES
from export.exported import Exported, ExportRequest, Results, Samples
from export.inputs import InputRequest, check_batch, fix_inputs, input_spec
from export.opset import opset_of
from export.reference import reference_session
from splitboard.contract.bundle import TensorSpec, file_sha256
from splitboard.contract.errors import UserError

SUFFIX = ".onnx"
OLDEST_OPSET = 13
"""From here on the axes of ``Squeeze`` and its like are inputs, and quantisation is per axis."""


def read_onnx(request: ExportRequest) -> Exported:
    """Reads an ONNX file and runs it as it is.

    Raises:
        UserError: it is none, too old, too large, has dynamic dimensions that no ``--input`` fixes, or something that
            no board runs.
    """
    path = request.source
    if request.factory is not None:
        raise UserError(
            f'"{path.name}" is a whole model, and --model "{request.factory}" would not be used', ["leave --model out"]
        )
    model, sha256 = _read(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in constants]  # older files list them as well
    check_ends(values, model.graph.output)
    specs = _specs(values, request.inputs)
    fix_inputs(model, specs)
    check_operators(model)
    check_finite(path.name, model)
    samples = {spec.name: _samples(spec, number) for number, spec in enumerate(specs)}
    return Exported(
        model=model,
        source_sha256=sha256,
        inputs=specs,
        sequences=None,
        samples=samples,
        results=_run(path, model, samples),
        changes=(),
        tool_versions={"onnxruntime": ort.__version__},
    )


def _read(path: Path) -> tuple[ModelProto, str]:
    """The model with all its data in memory, its functions inlined, and the sha256 of its files."""
    _check_size(path, path.stat().st_size)
    try:
        model = onnx.load(path, load_external_data=False)
        opset = opset_of(model)
    except (DecodeError, StopIteration, ValueError) as error:
        raise UserError(
            f'"{path}" is not a readable ONNX file: {error or "no opset"}', ["copy the file again, it may be truncated"]
        ) from error
    if opset < OLDEST_OPSET:
        raise UserError(
            f'"{path}" is of opset "{opset}", and {OLDEST_OPSET} is the oldest that is read',
            [
                f"export it again with opset {OLDEST_OPSET} or newer",
                f"onnx.save(onnx.version_converter.convert_version(onnx.load(path), {OLDEST_OPSET}), new_path)",
            ],
        )
    tensors = [tensor for part in (model.graph, *model.functions) for tensor in _tensors(part)]
    data = _external_files(path, tensors)
    _check_size(path, sum(map(_n_bytes, tensors)))
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        for value in model.graph.output:
            if value.type.HasField("tensor_type"):  # often left out, and inferred later; the checker wants any
                value.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)
        model = onnx.inliner.inline_local_functions(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f'"{path}" is not valid ONNX: {_first_line(error)}', ["check it with onnx.checker.check_model"]
        ) from error
    return model, _sha256([path, *data])


def _check_size(path: Path, n_bytes: int) -> None:
    if n_bytes > MAX_BYTES:
        raise UserError(
            f'"{path}" holds "{n_bytes / 1e9:.1f} GB", and 2 GB is the most that one ONNX file can',
            ["a smaller model: an edge half of this size runs on no board"],
        )


def _tensors(part: onnx.GraphProto | onnx.FunctionProto) -> Iterator[TensorProto]:
    """Every constant, those of nodes and of inner graphs as well."""
    if isinstance(part, onnx.GraphProto):
        yield from part.initializer
    for node in part.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else attribute.tensors
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(inner)


def _n_bytes(tensor: TensorProto) -> int:
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    values: int = math.prod(tensor.dims)
    return values * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _external_files(path: Path, tensors: Iterable[TensorProto]) -> list[Path]:
    """The files beside the model that hold its data, none of them outside of its folder."""
    folder, found = path.resolve().parent, set()
    for tensor in tensors:
        if not external_data_helper.uses_external_data(tensor):
            continue
        info = external_data_helper.ExternalDataInfo(tensor)
        file = (folder / info.location).resolve()
        if folder not in file.parents:
            raise UserError(
                f'"{path}" takes "{tensor.name}" from "{info.location}", outside of its own folder',
                ["export it again, with its data in the same folder"],
            )
        if not file.is_file():
            raise UserError(
                f'"{path}" lacks its data file "{info.location}"', ["copy that file into the same folder as well"]
            )
        if file.stat().st_size < (info.offset or 0) + _n_bytes(tensor):
            raise UserError(f'"{file}" ends before the data of "{tensor.name}"', ["copy that file again"])
        found.add(file)
    return sorted(found)


def _sha256(files: Sequence[Path]) -> str:
    """Of one file itself; of several, of the list of their hashes."""
    hashes = [file_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _specs(values: Sequence[ValueInfoProto], requests: Sequence[InputRequest]) -> tuple[TensorSpec, ...]:
    """The inputs with the fixed shapes that ``--input`` says or that they have."""
    names = [value.name for value in values]
    wanted = {one.name if one.name is not None else names[0]: one for one in requests}
    unknown = next((name for name in wanted if name not in names), None)
    if unknown is not None or (len(names) > 1 and any(one.name is None for one in requests)):
        raise UserError(
            f'--input "{unknown or "x".join(map(str, requests[0].shape))}" is no input of the model',
            [f"its inputs are: {', '.join(names)}", f"--input {names[0]}=1x..."],
        )
    specs = []
    for value in values:
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        shape = _fixed(value, wanted.get(value.name), dtype)
        check_batch(f'input "{value.name}"', shape)
        specs.append(input_spec(value.name, shape, dtype))
    return tuple(specs)


def _fixed(value: ValueInfoProto, wanted: InputRequest | None, dtype: str) -> tuple[int, ...]:
    """The shape of one input: its own, or where it has dynamic dimensions the wanted one, if that fits."""
    ranked = value.type.tensor_type.HasField("shape")
    dims = value.type.tensor_type.shape.dim
    own: list[int | str] = [dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?" for dim in dims]
    text = "x".join(map(str, own))
    if wanted is None:
        dynamic = next((f'"{size}" (number {i})' for i, size in enumerate(own) if isinstance(size, str)), None)
        if dynamic is not None or not ranked:
            which = f"{text} has the dynamic dimension {dynamic}" if dynamic else 'has the shape "?"'
            raise UserError(f'input "{value.name}" of {which}', [f"fix it with --input {value.name}=1x..."])
        return tuple(size for size in own if isinstance(size, int))
    fits = len(own) == len(wanted.shape) and all(
        mine == size for mine, size in zip(own, wanted.shape, strict=True) if isinstance(mine, int)
    )
    if ranked and not fits:
        asked = "x".join(map(str, wanted.shape))
        raise UserError(f'--input "{asked}" is not what the model takes: "{value.name}" is {text}', [f"--input {text}"])
    if wanted.dtype not in (dtype, None):
        raise UserError(f'input "{value.name}" is {dtype}, --input says "{wanted.dtype}"', ["--input without a type"])
    return wanted.shape


def _samples(spec: TensorSpec, seed: int) -> np.ndarray:
    """Seeded: real numbers from -1 to 1, whole numbers 0 and 1, which are valid anywhere. ``[n, *shape]``."""
    random = np.random.default_rng(seed)
    shape = (N_SAMPLES, *spec.shape)
    if spec.dtype == "float32":
        return random.uniform(-1, 1, shape).astype(np.float32)
    return random.integers(0, 2, shape).astype(spec.dtype)


def _run(path: Path, model: ModelProto, samples: Samples) -> Results:
    """What ONNX Runtime computes of the file itself."""
    names = [value.name for value in model.graph.output]
    try:
        session = reference_session(model)
        feeds = [{name: np.asarray(values[i]) for name, values in samples.items()} for i in range(N_SAMPLES)]
        results = [session.run(names, feed) for feed in feeds]
    except Exception as error:  # its kinds are private
        raise UserError(
            f'ONNX Runtime cannot run "{path}": {_first_line(error)}',
            ["give the right --input", "check it with onnx.checker.check_model(model, full_check=True)"],
        ) from error
    for name, found in zip(names, zip(*results, strict=True), strict=True):
        if len({one.shape for one in found}) > 1:
            raise UserError(
                f'the shape of the output "{name}" depends on values of the inputs',
                ["a board runs fixed shapes: return masks or scores, and choose from them afterwards"],
            )
    return {name: np.stack([result[i] for result in results]) for i, name in enumerate(names)}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

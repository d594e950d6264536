"""For the exporting child: how a model is called, what it returns, and its way through torch.export to ONNX."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.child_refusals import Refused, first_line, place, running_module, traced_line, user_line

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn
    from torch.export import ExportedProgram

N_SAMPLES = 4
OPSET = 18
"""The oldest that torch's exporter writes itself; for older ones it rewrites the graph, and may fail."""

_NAME_SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPED = "model"


@dataclass(frozen=True)
class Input:
    """One input of the model.

    Attributes:
        name: as in the model's ``forward``.
        shape: batch first.
        dtype: torch's name of it.
        keyword: whether it is passed by name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    keyword: bool = True


def bind(model: nn.Module, requests: Sequence[Mapping[str, Any]]) -> list[Input]:
    """The inputs of a module by the names of its ``forward``, in its order.

    Args:
        model: to call.
        requests: ``name`` (or ``None`` for the only one), ``shape`` and ``dtype`` of each ``--input``.

    Raises:
        Refused: ``forward`` has no such parameter, or needs one more.
    """
    parameters = inspect.signature(model.forward).parameters
    kinds = inspect.Parameter
    known = [one for one in parameters.values() if one.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    takes_any = len(known) < len(parameters)
    names = [one.name for one in known]
    wanted = {one["name"] or (names[0] if names else "input"): one for one in requests}
    for name in wanted:
        if name not in names and not takes_any:
            raise Refused(
                f'--input "{name}" is no parameter of the model\'s forward', f"forward takes: {', '.join(names)}"
            )
    for one in known:
        if one.default is kinds.empty and one.name not in wanted:
            raise Refused(f'the model\'s forward needs "{one.name}"', f"--input {one.name}=1x...")
    ordered = sorted(wanted, key=lambda name: names.index(name) if name in names else len(names))
    by_name = {one.name for one in known if one.kind is not kinds.POSITIONAL_ONLY}
    by_name |= set(wanted) if any(one.kind is kinds.VAR_KEYWORD for one in parameters.values()) else set()
    return [
        Input(name, tuple(wanted[name]["shape"]), wanted[name]["dtype"] or "float32", name in by_name)
        for name in ordered
    ]


def samples(inputs: Iterable[Input]) -> dict[str, Tensor]:
    """Seeded samples by input, ``[n, *shape]``: real numbers from -1 to 1; whole numbers 0 and 1, valid anywhere."""
    import torch

    generator = torch.Generator().manual_seed(0)
    made = {}
    for one in inputs:
        dtype, shape = getattr(torch, one.dtype), (N_SAMPLES, *one.shape)
        if dtype.is_floating_point:
            made[one.name] = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
        else:
            made[one.name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
    return made


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of what a model returns: dictionaries, (named) tuples, lists, dataclasses, nested.

    The order is that in which torch.export flattens the same value.
    """
    import torch

    if isinstance(value, torch.Tensor):
        yield name or "output", value
    elif value is not None:
        for key, part in _parts(value, name):
            yield from flatten(part, f"{name}.{key}" if name else key)


def _parts(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, (tuple, list)):
        return [(str(i) if name else f"output_{i}", part) for i, part in enumerate(value)]
    raise Refused(
        f'the model\'s output "{name or "output"}" is "{type(value).__name__}", not a tensor',
        "return tensors alone from forward, in tuples, lists, dictionaries or dataclasses",
    )


def outputs_of(value: Any, taken: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs by name.

    Args:
        value: what the model returned.
        taken: what it was given, by input.

    Raises:
        Refused: no tensor, a name twice, or a tensor twice.
    """
    found = list(flatten(value))
    if not found:
        raise Refused(f'the model returned "{type(value).__name__}" without a tensor', "return the scores of each task")
    names = [name for name, _ in found]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise Refused(f'the model has two outputs that are called "{doubled}"', "rename one of them in forward")
    seen = {_memory(tensor): f'the input "{name}"' for name, tensor in taken.items()}
    for name, tensor in found:
        if tensor.numel() and _memory(tensor) in seen:
            raise Refused(
                f'the model\'s output "{name}" is the same tensor as {seen[_memory(tensor)]}', "return it only once"
            )
        seen[_memory(tensor)] = f'the output "{name}"'
    return dict(found)


def _memory(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def run_samples(call: Callable[[Mapping[str, Tensor]], Any], taken: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Runs the model on every sample; the outputs by name, one per sample, in order."""
    import torch

    results: dict[str, list[Tensor]] = {}
    for i in range(N_SAMPLES):
        given = {name: tensor[i] for name, tensor in taken.items()}
        for name, tensor in outputs_of(call(given), given).items():
            if tensor.dtype != torch.float32:
                raise Refused(
                    f'the model\'s output "{name}" is {str(tensor.dtype).removeprefix("torch.")}, not float32',
                    "return the scores that it was made from",
                )
            results.setdefault(name, []).append(tensor)
    uneven = next((name for name, found in results.items() if len({one.shape for one in found}) > 1), None)
    if uneven is not None or len({len(found) for found in results.values()}) > 1:
        raise Refused(
            f'the shape of the model\'s output "{uneven or list(results)[-1]}" depends on values of the input',
            "a board runs fixed shapes: return masks or scores, and choose from them afterwards",
        )
    return results


@dataclass(frozen=True)
class Traced:
    """A model as torch.export sees it.

    Attributes:
        program: of the model, or of a wrapper around it.
        wrapper: name of the model in its wrapper; empty where there is none.
        folder: of the user's code.
    """

    program: ExportedProgram
    wrapper: str
    folder: Path

    def own(self, scope: str) -> str:
        """A scope as in the user's model."""
        return scope.removeprefix(self.wrapper).removeprefix(".")

    def place(self, node: Any) -> str:
        """Where a node of the program comes from in the user's code."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        line = traced_line(node.meta.get("stack_trace") or "", self.folder)
        return place(line, self.own(str(stack[-1][0])) if stack else None)

    def check_shapes(self) -> None:
        """Refuses a tensor whose shape depends on values, as that of ``nonzero``."""
        import torch
        from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

        for node in self.program.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and free_unbacked_symbols(value):
                raise Refused(
                    f'the shape of what "{node.target}" returns{self.place(node)} depends on values of a tensor',
                    "a board runs fixed shapes: return masks or scores, and choose from them afterwards",
                )

    def to_onnx(self, inputs: Sequence[str], n_outputs: int) -> ModelProto:
        """The ONNX graph, not optimised, its inputs named, its nodes with their module scopes.

        Outputs get names that nothing else has, ``output:0`` and so on: an output may be called as an input is.

        Raises:
            Refused: an operator has no ONNX form; names it, the line and the module.
        """
        import torch
        from onnx_ir.passes.common import NameFixPass

        try:
            made = torch.onnx.export(
                self.program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[f"output:{i}" for i in range(n_outputs)],
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise self._no_form(error) from error
        assert made is not None  # None only without dynamo
        NameFixPass()(made.model)  # the exporter lets inputs, parameters and results share a name
        model = made.model_proto
        for node in model.graph.node:
            for entry in node.metadata_props:
                if entry.key == _NAME_SCOPES:
                    scopes = ast.literal_eval(entry.value)
                    entry.value = repr([*map(self.own, scopes[:-1]), scopes[-1]])  # the last is the operation
        return model

    def _no_form(self, error: BaseException) -> Refused:
        said, cause = str(error), error.__cause__
        while cause is not None:
            said, cause = f"{said}\n{cause}", cause.__cause__
        for node in self.program.graph.nodes:
            if node.op == "call_function" and f"%{node.name} " in said:
                return Refused(
                    f'operator "{node.target}"{self.place(node)} has no ONNX form',
                    "replace it by operations that have one",
                    "take it out of forward, and run it on the outputs",
                )
        return Refused(f'torch cannot write this model as ONNX: "{first_line(error)[:200]}"', "simplify its forward")


def trace(model: nn.Module, inputs: Sequence[Input], given: Mapping[str, Tensor], folder: Path) -> Traced:
    """torch.export of the model with its outputs flattened, so that it need not know the user's types.

    Raises:
        Refused: control flow depends on values; names the line and the module.
    """
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, _WRAPPED, model)

        def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
            return tuple(tensor for _, tensor in flatten(model(*args, **kwargs)))

    args = tuple(given[one.name] for one in inputs if not one.keyword)
    kwargs = {one.name: given[one.name] for one in inputs if one.keyword}
    try:
        return Traced(torch.export.export(Flat().eval(), args, kwargs, strict=False), _WRAPPED, folder)
    except Exception as error:  # its kinds are many and private; the user's line and module are what helps
        at = place(user_line(error, folder), running_module(error, model))
        if "data-dependent" in first_line(error):
            raise Refused(
                f"control flow{at} depends on values of a tensor",
                "compute both sides and choose with torch.where",
                "take the condition out of forward",
            ) from error
        raise Refused(
            f'torch.export stopped{at}: "{type(error).__name__}: {first_line(error)[:200]}"',
            "write that part of forward with torch operations alone",
        ) from error


def program_inputs(program: ExportedProgram, requests: Sequence[Mapping[str, Any]]) -> list[Input]:
    """The inputs of an exported program, its dynamic dimensions fixed.

    Args:
        program: as loaded.
        requests: as for `bind`.

    Raises:
        Refused: a dimension is dynamic and no ``--input`` fixes it, or one says otherwise than the program.
    """
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    wanted = {one["name"] or names[0]: one for one in requests}
    unknown = next((name for name in wanted if name not in names), None)
    if unknown is not None:
        raise Refused(f'--input "{unknown}" is no input of the program', f"its inputs are: {', '.join(names)}")
    found = []
    for name in names:
        value, request = nodes[name].meta["val"], wanted.get(name, {})
        dtype = str(value.dtype).removeprefix("torch.")
        if request.get("dtype") not in (None, dtype):
            raise Refused(f'input "{name}" is {dtype}, --input says "{request["dtype"]}"', "--input without a type")
        found.append(Input(name, _fixed(name, tuple(value.shape), request.get("shape")), dtype))
    return found


def _fixed(name: str, own: Sequence[Any], wanted: Sequence[int] | None) -> tuple[int, ...]:
    text = "x".join(map(str, own))
    if wanted is None:
        dynamic = next((i for i, size in enumerate(own) if not isinstance(size, int)), None)
        if dynamic is not None:
            raise Refused(
                f'input "{name}" of {text} has the dynamic dimension "{own[dynamic]}" (number {dynamic})',
                f"fix it with --input {name}=1x...",
            )
        return tuple(own)
    same = len(own) == len(wanted) and all(
        size == mine for mine, size in zip(own, wanted, strict=True) if isinstance(mine, int)
    )
    if not same:
        raise Refused(f'--input "{name}" is {"x".join(map(str, wanted))}, the program takes {text}', f"--input {text}")
    return tuple(wanted)


def program_call(program: ExportedProgram) -> Callable[[Mapping[str, Tensor]], Any]:
    """A function of the inputs by name that runs an exported program; numbers that it was exported with stay fixed."""
    import torch
    from torch.utils import _pytree

    module = program.module()
    specs = [
        one
        for one in program.graph_signature.input_specs
        if one.kind is torch.export.graph_signature.InputKind.USER_INPUT
    ]

    def call(given: Mapping[str, Tensor]) -> Any:
        flat = [given.get(one.arg.name, getattr(one.arg, "value", None)) for one in specs]
        args, kwargs = _pytree.tree_unflatten(flat, program.call_spec.in_spec)
        return module(*args, **kwargs)

    return call

"""What ``torch.export.save`` wrote, made safe to load.

``torch.export.load`` (torch 2.13) trusts its file. It unpickles weights and constants that are marked so, objects that
are not tensors, and the sample inputs where ``weights_only`` does not suffice; it evaluates the expressions of dynamic
sizes (sympy parses with ``eval``) and the text of guards; it looks operators up by any dotted path below ``torch``; it
imports modules that the structure of inputs and outputs names; and it loads compiled code from the archive. So a file
is never handed to it as it came. What a plain exported program consists of, the graph as JSON and raw tensors, is
checked and copied into a new archive, without guards and sample inputs; anything else is refused. Only with
``--trust-pickle`` is the user's own file loaded.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from splitboard.contract.errors import UserError

_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_FORMAT = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"6\n"}
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]+")
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!_?_?[a-z]*__)[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)"
    r"|torch\.sym_[a-z]+|_operator\.[a-z]+_?|math\.[a-z]+"
)
"""torch's own operators and arithmetic of sizes. Private names of Python begin with two underscores."""

_EXPRESSION = frozenset(
    {
        "Add", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Float", "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt",
        "Ge", "Gt", "IntTrueDiv", "Integer", "Le", "Lt", "Max", "Min", "Mod", "ModularIndexing", "Mul", "Ne", "Pow",
        "PowByNatural", "PythonMod", "Rational", "Symbol", "ToFloat", "TruncToInt", "Where",
    }
)  # fmt: skip
"""What the text of a size may call, as sympy writes it: ``Mul(Integer(8), Symbol('s73', positive=True))``."""

_TRIES = [
    "save it again: torch.export.save(torch.export.export(model, args), path)",
    "--trust-pickle, if you trust whoever made the file",
]


def checked_copy(source: Path, target: Path) -> None:
    """Copies the harmless parts of an exported program into an archive of the same form.

    Args:
        source: the user's ``.pt2``.
        target: to write; what `torch.export.load` may read.

    Raises:
        UserError: it is no such archive, or it holds something that loading would run; names that.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            parts = _parts(archive, source)
            program = _checked_program(json.loads(parts[_MODEL]), source)
            for config in _CONFIGS:
                _check_payloads(json.loads(parts[config]), source)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, RecursionError, NotImplementedError) as error:
        raise UserError(f'"{source}" is not a readable exported program: {error}', _TRIES[:1]) from error
    parts[_MODEL] = json.dumps(program).encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {**parts, **_FORMAT, _SAMPLES: b""}.items():
            archive.writestr(f"{target.stem}/{name}", content)


def _parts(archive: zipfile.ZipFile, source: Path) -> dict[str, bytes]:
    """Content by name without the archive's own folder: the graph, the lists of tensors, the tensors."""
    parts: dict[str, bytes] = {}
    for entry in archive.infolist():
        name = entry.filename.partition("/")[2]
        if name in parts:
            raise UserError(f'"{source}" holds "{name}" twice', _TRIES[:1])
        if name in (_MODEL, *_CONFIGS) or _TENSOR.fullmatch(name):
            parts[name] = archive.read(entry)
        elif name == "byteorder" and archive.read(entry) != _FORMAT[name]:
            raise UserError(f'"{source}" was saved on a machine with another order of bytes', _TRIES[:1])
        elif not name.startswith((".data/", "data/sample_inputs/", "extra/")) and name not in _FORMAT:
            raise _refused(source, f'the part "{name}"')
    missing = next((name for name in (_MODEL, *_CONFIGS) if name not in parts), None)
    if missing is not None:
        raise UserError(f'"{source}" has no "{missing}"', _TRIES[:1])
    return parts


def _refused(source: Path, what: str) -> UserError:
    return UserError(f'"{source}" has {what}, and loading that could run any code', _TRIES)


def _check_payloads(config: Mapping[str, Any], source: Path) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"] or not re.fullmatch(r"(weight|tensor)_[0-9]+", payload["path_name"]):
            raise _refused(source, f'"{name}" as a pickle')


def _checked_program(program: dict[str, Any], source: Path) -> dict[str, Any]:
    """The graph without its guards, which are code, after all else in it was checked."""
    for one in _dictionaries(program):
        target, expression = one.get("target"), one.get("expr_str")
        if isinstance(target, str) and "inputs" in one and _OPERATOR.fullmatch(target) is None:
            raise _refused(source, f'the operator "{target}"')
        if expression is not None and not _is_arithmetic(str(expression)):
            raise _refused(source, f'the size "{str(expression)[:60]}"')
        for spec in (one.get("in_spec"), one.get("out_spec")):
            if isinstance(spec, str) and ("__enum__" in spec or "defaultdict" in spec):
                raise _refused(source, "inputs or outputs of a type that names a module")
        if "as_operator" in one:
            raise _refused(source, f'the operator "{one["as_operator"]}" as an argument')
    return {**program, "guards_code": []}


def _dictionaries(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _dictionaries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _dictionaries(inner)


def _is_arithmetic(text: str) -> bool:
    """Whether the text of a size consists of numbers, symbols and sums, products and the like of them."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(map(_is_part_of_arithmetic, ast.walk(tree)))


def _is_part_of_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _EXPRESSION or re.fullmatch(r"[suz]+[0-9]+|oo|int_oo", node.id) is not None
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int, float)) or re.fullmatch(r"\w{1,40}", str(node.value)) is not None
    plain = (ast.Expression, ast.Call, ast.keyword, ast.Load, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)
    return isinstance(node, plain)

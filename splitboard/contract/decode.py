"""Frozen dataclasses from untrusted JSON or TOML, and back.

Nothing is executed and nothing is coerced: an unknown key, a missing key or a value of another type is refused with its
path in the document and the nearest known key.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple, Type, TypeVar, Union, get_type_hints

from splitboard.contract.errors import UserError

T = TypeVar("T")


def decode(cls: Type[T], data: object, where: str) -> T:
    """Builds ``cls`` from parsed JSON or TOML.

    Args:
        cls: a frozen dataclass whose fields are scalars, dataclasses, ``Tuple[X, ...]``, ``Dict[str, X]`` or
            ``Optional`` of these.
        data: what the parser returned.
        where: what the user should be told the document is, e.g. its path.

    Raises:
        UserError: ``data`` does not fit.
    """
    if not isinstance(data, Mapping):
        raise UserError(f'{where}: expected a table, found "{_short(data)}"')
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            raise UserError(
                f'{where}: unknown key "{key}"',
                [f'"{near[0]}" is the nearest known key' if near else f"known keys: {', '.join(fields)}"],
            )
    values: Dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f'{where}: the key "{name}" is missing')
    return cls(**values)


def _value(hint: Any, data: object, where: str) -> Any:
    origin: Any = getattr(hint, "__origin__", None)
    arguments: Tuple[Any, ...] = getattr(hint, "__args__", ())
    if origin is Union or type(hint).__name__ == "UnionType":  # Optional[X]; X | None from Python 3.10 on
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return None if data is None else _value(inner, data, where)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise UserError(f'{where}: expected a list, found "{_short(data)}"')
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict:
        if not isinstance(data, Mapping):
            raise UserError(f'{where}: expected a table, found "{_short(data)}"')
        return {str(key): _value(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if dataclasses.is_dataclass(hint):
        return decode(hint, data, where)  # type: ignore[arg-type]
    if hint is float and type(data) is int:
        return float(data)
    if type(data) is not hint:
        raise UserError(f'{where}: expected {hint.__name__}, found "{_short(data)}"')
    return data


def _short(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."


def to_json(value: Any, indent: Optional[int] = None) -> str:
    """JSON of a dataclass; ``nan`` and ``inf`` are refused, since JSON has neither."""
    separators = None if indent else (",", ":")
    return json.dumps(dataclasses.asdict(value), indent=indent, separators=separators, allow_nan=False)


def read_json(cls: Type[T], path: Path) -> T:
    """Reads a dataclass from a JSON file.

    Raises:
        UserError: the file cannot be read, is not JSON, or does not fit ``cls``.
    """
    try:
        return decode(cls, json.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise UserError(f'cannot read "{path}": {error.strerror}', ["a file that splitboard wrote"]) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'"{path}" is not valid JSON: {error}', ["a file that splitboard wrote"]) from error

"""For the exporting child: checkpoints of many makes, and the state dict in them that is the model's."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.child_refusals import Refused, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_BYTES = (1 << 31) - 1
"""No ONNX file is larger: its format (protobuf) ends there."""

_STATE_DICT = "save a state dict: torch.save(model.state_dict(), path), or a .safetensors file"
_SAME_MODEL = "export with the --model that this checkpoint was trained with"
_MAX_DEPTH = 4
_COMPILED = "_orig_mod"
"""torch.compile puts this in front of the compiled module's own names, wherever in the model it is."""


def read_checkpoint(path: Path, *, trust_pickle: bool) -> Any:
    """Reads a ``.safetensors``, ``.pt`` or ``.pth`` file.

    Args:
        path: of the file.
        trust_pickle: whether the user vouches for the file. Only then are other objects than tensors unpickled, which
            can run any code.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words tell how to unpickle it all the same
        if not trust_pickle:
            raise Refused(
                f'"{path}" holds more than tensors, and unpickling that could run any code',
                _STATE_DICT,
                "--trust-pickle, if you trust whoever made the file",
            ) from error
    except Exception as error:  # every library raises its own kinds for a broken file
        raise _unreadable(path, error) from error
    return _unpickle(path)


def _unpickle(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (ModuleNotFoundError, AttributeError) as error:
        raise Refused(
            f'"{path}" was pickled with code that is not here: {first_line(error)}',
            "name the folder that this code lies in with --path",
            _STATE_DICT,
        ) from error
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> Refused:
    if "TorchScript" in str(error):
        return Refused(f'"{path}" is a TorchScript archive, which torch.export does not take', _STATE_DICT)
    return Refused(
        f'"{path}" is not a readable checkpoint: {first_line(error) or type(error).__name__}',
        "copy the file again, it may be truncated",
        _STATE_DICT,
    )


def pickled_model(loaded: Any, path: Path) -> tuple[nn.Module, list[str]]:
    """The one module that a checkpoint holds, and what was done to it.

    Raises:
        Refused: there is none, or several.
    """
    import torch

    found = {f'"{".".join(where)}"': one for where, one in _walk(loaded) if isinstance(one, torch.nn.Module)}
    if not found:
        raise Refused(
            f'"{path}" is a state dict and needs the model that it belongs to',
            "--model package.module:factory, a function without arguments that returns the model",
        )
    if len(found) > 1:
        raise Refused(
            f'"{path}" holds several models: {", ".join(found)}',
            "save the state dict of the one that you want",
        )
    ((where, model),) = found.items()
    changes = [f"pickled model found under {where}"] if where != '""' else []
    if any(one.is_floating_point() and one.dtype != torch.float32 for one in model.state_dict().values()):
        changes.append("weights taken as float32")
    return model.float().eval(), changes


@dataclass(frozen=True)
class _Candidate:
    """A dictionary of a checkpoint and a prefix of its keys that may be the model's own state dict.

    Attributes:
        where: keys that lead to the dictionary; none for the checkpoint itself.
        prefix: in front of the model's own names, with its dot.
        own: what lies under the prefix, by the model's own names.
        other: keys that lie elsewhere or hold no tensor.
        compiled: whether parts of the model were compiled, which is taken out of the names.
    """

    where: tuple[str, ...]
    prefix: str
    own: Mapping[str, Any]
    other: tuple[str, ...]
    compiled: bool

    def __str__(self) -> str:
        parts = [f'under "{".".join(self.where)}"'] if self.where else []
        parts += [f'with the prefix "{self.prefix}"'] if self.prefix else []
        return " ".join(parts) or "at the top"


def load_weights(model: nn.Module, loaded: Any, path: Path) -> list[str]:
    """Finds the model's state dict in a checkpoint and loads it strictly.

    Returns:
        What was found where, one line each; nothing where the checkpoint is the plain state dict.

    Raises:
        Refused: nothing fits, or two things do.
    """
    groups = _groups(model)
    names = frozenset[str]().union(*groups)
    candidates = list(_candidates(loaded, names))
    if not candidates:
        raise Refused(f'"{path}" holds no state dict', _STATE_DICT)
    misfits = [_misfit(model, groups, one) for one in candidates]
    fitting = [one for one, misfit in zip(candidates, misfits, strict=True) if misfit is None]
    if len(fitting) > 1:
        raise Refused(
            f'"{path}" holds two state dicts that fit the model: "{fitting[0]}" and "{fitting[1]}"',
            "save the one that you want alone: torch.save(checkpoint[...], path)",
        )
    if not fitting:
        nearest, misfit = max(zip(candidates, misfits, strict=True), key=lambda pair: len(names & pair[0].own.keys()))
        at = f" ({nearest})" if nearest.where or nearest.prefix else ""
        raise Refused(f'"{path}" does not fit the model: it {misfit}{at}', _SAME_MODEL)
    check_finite(path.name, fitting[0].own.items(), dict(model.named_parameters()))
    model.load_state_dict(fitting[0].own, strict=False)
    return _found(fitting[0])


def _groups(model: nn.Module) -> list[frozenset[str]]:
    """The names of each tensor that a checkpoint must have; several where weights are shared.

    Counters of batch norms are left out: inference never reads them.
    """
    found: dict[tuple[object, ...], list[str]] = {}
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            place = (value.data_ptr(), value.shape) if value.numel() else (key,)
            found.setdefault(place, []).append(key)
    return [frozenset(keys) for keys in found.values()]


def _walk(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A checkpoint and everything in its nested dictionaries."""
    yield where, value
    if isinstance(value, dict) and len(where) < _MAX_DEPTH:
        for key, inner in value.items():
            yield from _walk(inner, (*where, str(key)))


def _candidates(loaded: Any, names: frozenset[str]) -> Iterator[_Candidate]:
    """Every dictionary with a prefix of its keys under which a name of the model's lies."""
    import torch

    seen: set[int] = set()
    for where, one in _walk(loaded):
        if not isinstance(one, dict) or not any(isinstance(value, torch.Tensor) for value in one.values()):
            continue
        if id(one) in seen:  # one dictionary under two names
            continue
        seen.add(id(one))
        values = {str(key): value for key, value in one.items()}
        prefixes = dict.fromkeys(prefix for key in values for prefix in _prefixes(key, names))
        for prefix in prefixes or [""]:
            own, other = {}, []
            for key, value in values.items():
                name = _without_compiled(key[len(prefix) :])
                if key.startswith(prefix) and (isinstance(value, torch.Tensor) or name in names):
                    own[name] = value
                else:
                    other.append(key)
            compiled = any(f"{prefix}{name}" not in values for name in own)
            yield _Candidate(where, prefix, own, tuple(other), compiled)


def _without_compiled(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != _COMPILED)


def _prefixes(key: str, names: frozenset[str]) -> Iterator[str]:
    """What stands before one of the names at the end of a key."""
    parts = key.split(".")
    for i, part in enumerate(parts):
        if part != _COMPILED and _without_compiled(".".join(parts[i:])) in names:
            yield ".".join([*parts[:i], ""])


def _misfit(model: nn.Module, groups: list[frozenset[str]], candidate: _Candidate) -> str | None:
    """Why a candidate is not the model's state dict; ``None`` where it is."""
    import torch

    own, found = model.state_dict(), candidate.own
    missing = [min(group) for group in groups if not group & found.keys()]
    unexpected = [key for key in found if key not in own]
    for problem, keys in (("lacks", missing), ("has the unknown key", unexpected)):
        if keys:
            return f'{problem} "{keys[0]}"' + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
    for key, value in found.items():
        if not isinstance(value, torch.Tensor):
            return f'has "{key}", which is {type(value).__name__} and not a tensor'
        if value.shape != own[key].shape:
            return f'has "{key}" of {list(value.shape)}, the model\'s is {list(own[key].shape)}'
    return None


def _found(candidate: _Candidate) -> list[str]:
    parts = [f'state dict found under "{".".join(candidate.where)}"'] if candidate.where else []
    parts += [f'prefix "{candidate.prefix}" taken off its keys'] if candidate.prefix else []
    parts += [f'"{_COMPILED}." of torch.compile taken out of its keys'] if candidate.compiled else []
    if candidate.other:
        names = ", ".join(candidate.other[:3]) + (", ..." if len(candidate.other) > 3 else "")
        parts.append(f"{len(candidate.other)} entries outside of it left out: {names}")
    return [", ".join(parts)] if parts else []


def check_finite(source: str, tensors: Iterable[tuple[str, Tensor]], parameters: Mapping[str, Any]) -> None:
    """Refuses a value that is not a number or infinite; a buffer may hold minus infinity, as attention masks do."""
    for name, value in tensors:
        if not value.is_floating_point():
            continue
        wrong = ~value.isfinite() if name in parameters else value.isnan() | value.isposinf()
        if bool(wrong.any()):
            raise Refused(
                f'"{source}" has "{name}", which is not finite: {int(wrong.sum())} of {value.numel()} values',
                "take a checkpoint from before it diverged",
            )


def check_size(tensors: Iterable[Tensor]) -> None:
    """Refuses a model that no ONNX file can hold."""
    n_bytes = sum(one.numel() * one.element_size() for one in tensors)
    if n_bytes > MAX_BYTES:
        raise Refused(
            f'the model has "{n_bytes / 1e9:.1f} GB" of weights, an ONNX file holds 2 GB at most',
            "a smaller model: an edge half of this size runs on no board",
        )

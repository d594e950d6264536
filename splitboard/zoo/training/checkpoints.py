"""The state of an unfinished training in a file: written whole or not at all, read without unpickling code."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from splitboard.contract.errors import UserError

_FORMAT = "splitboard training 1"


@dataclass(frozen=True)
class Checkpoints:
    """Where a training keeps its state, so that it can go on after an interruption.

    Attributes:
        path: of the file. Where it exists the training goes on from it; who began the training removes it at the end.
        every_steps: how often it is written.
        about: more facts that must be the same for a training to go on, beside recipe, data, device and weights.
    """

    path: Path
    every_steps: int = 100
    about: Mapping[str, str] = field(default_factory=dict)


def write(path: Path, about: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Writes the state of a training beside its place and moves it there.

    Args:
        path: of the file; folders are made.
        about: what the training is of.
        state: tensors and plain values, nested.

    Raises:
        UserError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"format": _FORMAT, "about": dict(about), "state": dict(state)}, beside)
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer has its own error for a full disk
        with contextlib.suppress(OSError):
            beside.unlink()
        raise UserError(f'cannot write "{path}": {error}', ["free some space, or name another place"]) from error


def read(path: Path, about: Mapping[str, str]) -> dict[str, Any]:
    """The state of a training, on the CPU.

    Args:
        path: of the file.
        about: what the training is of that wants to go on.

    Raises:
        UserError: the file is no such state, or of another training; the first fact that differs is named.
    """
    tries = [f"start anew: remove {path}"]
    try:
        # torch would take a bare pickle as well, of any protocol.
        content = torch.load(path, map_location="cpu", weights_only=True) if zipfile.is_zipfile(path) else None
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f'"{path}" is not a readable checkpoint of a training', tries) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(f'"{path}" is not a checkpoint of an unfinished training', tries)
    found: dict[str, str] = content["about"]
    for key in [*about, *found]:
        there, here = found.get(key, "missing"), about.get(key, "missing")
        if there != here:
            raise UserError(
                f'the checkpoint "{path}" is of another training: {key} is {there} there, {here} here',
                ["resume with the options that it was begun with", *tries],
            )
    state: dict[str, Any] = content["state"]
    return state

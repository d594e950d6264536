"""The model folder: ``model.onnx`` (float32, fixed shapes, simplified, named outputs) and ``model.json``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from export.exits import without_exits
from export.graph import Graph
from export.reference import Parity
from splitboard.contract.bundle import Exit, Task, TensorSpec, file_sha256
from splitboard.contract.decode import read_json
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import Preprocessing

SCHEMA_VERSION = 2
MODEL_JSON = "model.json"
MODEL_ONNX = "model.onnx"


@dataclass(frozen=True)
class ModelInfo:
    """``model.json``.

    Attributes:
        schema_version: of this file.
        name: names the served models.
        model_sha256: of ``model.onnx``.
        checkpoint_sha256: of the checkpoint that was exported.
        tasks: in the order of the outputs; no exits among them.
        inputs: in the order of the graph; images are NCHW.
        image: name of the input that the preprocessing makes; ``None`` where no preprocessing was declared.
        preprocessing: from a source image to that input; ``None`` where none was declared.
        scopes: module scope by tensor, as in the user's model.
        sequences: scopes of the model's ``Sequential`` and ``ModuleList`` containers; the model itself is ``""``.
        changes: what the simplification did to the graph, one line each.
        parity: by task, on seeded inputs, how near the graph is to what it was exported from.
        tool_versions: what made it.
        exits: outputs that are early heads of the tasks, in their order.
        exit_samples: sha256 of every image that exits were fitted on, sorted; they cannot judge the exits.
    """

    schema_version: int
    name: str
    model_sha256: str
    checkpoint_sha256: str
    tasks: tuple[Task, ...]
    inputs: tuple[TensorSpec, ...]
    image: str | None
    preprocessing: Preprocessing | None
    scopes: dict[str, str]
    sequences: tuple[str, ...]
    changes: tuple[str, ...]
    parity: dict[str, Parity]
    tool_versions: dict[str, str]
    exits: tuple[Exit, ...] = ()
    exit_samples: tuple[str, ...] = ()

    def declared(self) -> Preprocessing:
        """The preprocessing.

        Raises:
            UserError: none was declared when the model was exported.
        """
        if self.preprocessing is None:
            raise UserError(
                f'model "{self.name}" declares no preprocessing, so no image can reach it',
                ["export it again with --spec SPEC.toml"],
            )
        return self.preprocessing


@dataclass(frozen=True)
class Model:
    """A model folder, read.

    Attributes:
        info: ``model.json``.
        whole: ``model.onnx``, early exits included.
    """

    info: ModelInfo
    whole: Graph

    @cached_property
    def graph(self) -> Graph:
        """The model without its exits: what is cut, what the server holds, and what the tasks are judged by."""
        return without_exits(self.whole, {one.output for one in self.info.exits})


def load_model(folder: Path) -> Model:
    """Reads a model folder.

    Raises:
        UserError: no model there, or ``model.onnx`` is not the one that ``model.json`` was written for.
    """
    if not (folder / MODEL_JSON).is_file():
        raise UserError(
            f'"{folder}" is not a model folder: it has no {MODEL_JSON}',
            ["splitboard export CHECKPOINT --model pkg.module:factory --spec SPEC.toml --input 1x3x224x224 -o MODEL"],
        )
    info = read_json(ModelInfo, folder / MODEL_JSON)
    path = folder / MODEL_ONNX
    if not path.is_file() or file_sha256(path) != info.model_sha256:
        raise UserError(f'"{path}" is not the file that {MODEL_JSON} was written for', ["export the model again"])
    return Model(info, Graph(onnx.load(path)))

"""What an export starts from and what every source of models hands over, before it is cleaned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from export.inputs import InputRequest
from export.spec import ModelSpec
from splitboard.contract.bundle import TensorSpec

Samples = Mapping[str, NDArray[np.generic]]
"""By the name of an input, one entry per sample: ``[n, *shape]``."""

Results = Mapping[str, NDArray[np.float32]]
"""By the name of an output, likewise."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    Attributes:
        source: a state dict or pickled module (``.pt``, ``.pth``, ``.safetensors``), an exported program (``.pt2``) or
            an ONNX file.
        name: names the served models.
        factory: ``package.module:function`` that returns the model of a state dict, without weights.
        inputs: shapes of the model's inputs, where the source does not have them.
        spec: preprocessing and class names, where declared.
        tasks: new names of the outputs: all in order, or ``old=new`` of some; empty to keep them.
        source_folder: the only folder that is put on the import path of the user's code.
        trust_pickle: whether the user vouches for the source, so that its objects may be unpickled.
    """

    source: Path
    name: str
    factory: str | None = None
    inputs: tuple[InputRequest, ...] = ()
    spec: ModelSpec | None = None
    tasks: str = ""
    source_folder: Path = Path()
    trust_pickle: bool = False


@dataclass(frozen=True)
class Exported:
    """A model as its source has it.

    Attributes:
        model: every dimension of its inputs fixed, functions inlined, ONNX's own operators only.
        source_sha256: of the file that it came from.
        inputs: in the order of the graph.
        sequences: scopes of the model's sequences of modules; ``None`` where the source does not know modules.
        samples: seeded inputs.
        results: what the source itself computes of them, by its own names of the outputs, in the order of the graph.
        changes: what was found and done on the way, one line each.
        tool_versions: what made it.
    """

    model: ModelProto
    source_sha256: str
    inputs: tuple[TensorSpec, ...]
    sequences: tuple[str, ...] | None
    samples: Samples
    results: Results
    changes: tuple[str, ...]
    tool_versions: Mapping[str, str]

"""Graphs of the sparse test networks, without the process that `splitboard export` starts for each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from export.clean import clean
from export.graph import Graph

TASKS = ["shape", "colour"]


def exported(net: nn.Module, outputs: Sequence[str] = TASKS) -> Graph:
    """As `splitboard export` makes it: ``[1, 3, 32, 32]`` to the scores, of both tasks unless others are named."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (torch.zeros(1, 3, 32, 32),),
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=["image"],
            output_names=list(outputs),
        )
    assert program is not None
    return Graph(clean(program.model_proto).model)

"""Graphs of the sparse test networks, without the process that `splitboard export` starts for each."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from export.clean import clean
from export.graph import Graph

TASKS = ["shape", "colour"]


def exported(net: nn.Module) -> Graph:
    """As `splitboard export` makes it: ``[1, 3, 32, 32]`` to the scores of both tasks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (torch.zeros(1, 3, 32, 32),),
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=["image"],
            output_names=TASKS,
        )
    assert program is not None
    return Graph(clean(program.model_proto).model)

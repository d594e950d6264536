"""The edge halves of all splits for TensorRT: one ONNX graph per split, the weights of all in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np
from onnx import ModelProto

from boards.kinds import systems_for
from calib.keep_float import operators_of
from calib.qdq.emit import emit
from calib.qdq.inspect import check_precision, count_operators
from calib.qdq.legal import refusals
from calib.qdq.parsers import parser_of
from calib.qdq.plan import Plan, plan, plan_fp16, plan_fp32, wire_specs
from calib.ranges import RangeTable
from calib.recipe import Choice, Outputs, Prepared, Recipe, choose
from export.external import SharedWeights
from export.graph import Graph
from export.opset import lower_opset, opset_of
from export.reference import reference_session
from splitboard.cli.edge_half import EdgeHalf, Judges, Step
from splitboard.contract.board import BoardKind, System
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.errors import UserError

FILE = "edge/{split}.{precision}.op{opset}.onnx"
WEIGHTS_FILE = "edge/weights.{precision}.bin"

_TENSORRT = "tensorrt"
_NEWEST_OPSET = 18
"""Newer ones hold nothing that an edge half needs, and every TensorRT from 10 on reads this one."""

_Planner = Callable[[Sequence[str], RangeTable], Plan]
"""From what an edge half gives, and the ranges, to its plan."""


def onnx_half(
    prepared: Prepared,
    wanted: dict[str, Sequence[str]],
    whole: str,
    kind: BoardKind,
    recipe: Recipe,
    judging: Judges | None,
    step: Step,
) -> EdgeHalf:
    """Plans and writes the graphs: explicit Q/DQ (INT8), fp16 or fp32.

    Args:
        prepared: the float model and its range tables.
        wanted: tensors that each split's edge half gives, by split id.
        whole: id of the split that is the whole model.
        kind: of board; its releases of TensorRT decide the operator set.
        recipe: how to quantise.
        judging: held-out images where there are several tables.
        step: told about every step.

    Raises:
        UserError: the model cannot be written for any of the kind's releases, or does not fit fp16.
    """
    systems = systems_for(kind, recipe.precision)
    graph = oldest_form(prepared.graph, systems)
    planner = _planner(graph, recipe, {name for names in wanted.values() for name in names})
    choice = Choice(next(iter(prepared.tables)), {})
    if judging is not None:
        step("choose ranges", 0, 1)
        choice = _chosen(graph, prepared, wanted[whole], planner, recipe, judging)
        step("choose ranges", 1, 1)
    table = prepared.tables[choice.method]
    edge = _Edge(graph, recipe.precision)
    for done, (split, names) in enumerate(wanted.items()):
        step("write", done, len(wanted))
        edge.write(split, names, planner(names, table))
    step("write", len(wanted), len(wanted))
    image = graph.inputs[0]
    return EdgeHalf(
        files=edge.files(),
        paths=edge.paths,
        signatures={},
        input=TensorSpec(image, graph.shapes[image], "float32", "NCHW"),
        outputs=edge.outputs,
        table=table,
        choice=choice,
        operators=edge.operators,
        prepared=prepared,
        keep_float=recipe.keep_float,
        notes=refused_by(emit(graph, planner(wanted[whole], table)), kind, systems),
    )


class _Edge:
    """The files in the making.

    Args:
        graph: the whole float model.
        precision: for the names of the files.
    """

    def __init__(self, graph: Graph, precision: str) -> None:
        self._graph, self._precision = graph, precision
        self._weights_path = WEIGHTS_FILE.format(precision=precision)
        self._weights = SharedWeights(PurePosixPath(self._weights_path).name)
        self._graphs: dict[str, bytes] = {}
        self.paths: dict[str, str] = {}
        self.outputs: dict[str, dict[str, TensorSpec]] = {}
        self.operators: dict[str, dict[str, int]] = {}

    def write(self, split: str, names: Sequence[str], planned: Plan) -> None:
        """Adds the half of one split, checked against its plan; its weights go to those of the others at once."""
        model = emit(self._graph, planned)
        check_precision(model, planned)
        self._weights.take(model)
        self.paths[split] = FILE.format(split=split, precision=self._precision, opset=opset_of(model))
        self._graphs[self.paths[split]] = model.SerializeToString()
        self.outputs[split] = {spec.name: spec for spec in wire_specs(self._graph, planned, names)}
        self.operators |= count_operators({split: model})

    def files(self) -> dict[str, bytes]:
        """Content by path."""
        return {**self._graphs, self._weights_path: self._weights.content}


def _planner(graph: Graph, recipe: Recipe, crossing: set[str]) -> _Planner:
    keep_float = operators_of(graph, recipe.keep_float, crossing)
    if recipe.precision == "fp32":
        return lambda names, _: plan_fp32(graph, names)
    make = plan if recipe.precision == "int8" else plan_fp16
    return lambda names, table: make(graph, names, table, keep_float)


def _chosen(
    graph: Graph, prepared: Prepared, tasks: Sequence[str], planner: _Planner, recipe: Recipe, judging: Judges
) -> Choice:
    """The table with which the whole model is nearest to float on the held-out images."""

    def run(table: RangeTable) -> Outputs:
        session = reference_session(emit(graph, planner(tasks, table)))
        results = [session.run(tasks, {graph.inputs[0]: one}) for one in judging.data.inputs(judging.spec)]
        return {name: np.concatenate([one[i] for one in results]) for i, name in enumerate(tasks)}

    return choose(prepared.tables, recipe, judging.reference, run)


def oldest_form(graph: Graph, systems: Sequence[System]) -> Graph:
    """The model in the oldest operator set that any of a kind's systems needs and that it can be written in.

    Newer releases of TensorRT read older operator sets, so that one file serves all of them.

    Raises:
        UserError: there is none.
    """
    own = opset_of(graph.model)
    wanted = {min(own, _NEWEST_OPSET, parser_of(system.runtimes[_TENSORRT]).opset) for system in systems}
    refused: list[UserError] = []
    for opset in sorted(wanted):
        try:
            return Graph(lower_opset(graph.model, opset))
        except UserError as error:
            refused.append(error)
    raise UserError(refused[0].message, ["--board of a kind with a newer TensorRT: splitboard boards"])


def refused_by(model: ModelProto, kind: BoardKind, systems: Sequence[System]) -> tuple[str, ...]:
    """A note for every system whose TensorRT refuses something of the whole model's graph."""
    return tuple(
        f"{system.name} cannot run the whole model: {one}"
        for system in systems
        for one in refusals(model, kind, [system.runtimes[_TENSORRT]])[:1]
    )

"""Split points: the cuts of a model as a user sees them, with ids, module scopes and what each half costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from export.blocks import block_outputs
from export.costs import Costs
from export.cuts import Cut, multi_tensor_cuts, placeable, single_tensor_cuts
from export.model import Model
from export.scopes import module_ends

REMOTE = "remote"
LOCAL = "local"


@dataclass(frozen=True)
class Crossing:
    """One tensor that crosses.

    Attributes:
        name: in the graph.
        scope: the module that it follows, as in the user's model.
        shape: as in the graph; of the source image for remote only.
        fp32_bytes: as float32; what is not a real number has its own size.
        int8_bytes: real numbers as INT8.
    """

    name: str
    scope: str
    shape: tuple[int, ...]
    fp32_bytes: int
    int8_bytes: int


@dataclass(frozen=True)
class SplitPoint:
    """One way to divide the model, all task heads on the server.

    Attributes:
        id: ``s00`` remote only, ``sNN`` in topological order, the last one local only; ``mNN`` with several tensors.
        scope: the module that the cut follows, ``remote`` or ``local`` at the two ends; several joined by `` + ``.
        crossing: what crosses, in topological order; the source image for remote only.
        fp32_bytes: payload as float32 (uint8 for remote only).
        int8_bytes: payload as INT8.
        natural: strictly fewer values than the model's input; never true of the two ends, which cut nothing.
        block: every tensor that crosses is the output of a whole block of the model (`export.blocks`).
        edge_macs: multiply-accumulates of the edge graph.
        server_macs: of the server graph.
        edge_share: the edge graph's share of all multiply-accumulates, 0 to 1.
        edge_parameters: constants of the edge graph, in values.
        server_parameters: of the server graph; what both halves use counts in both.
        edge_peak_bytes: estimate of the INT8 edge half's arena: activation bytes that are alive at once.
        local_tasks: tasks whose heads may also be placed on the edge here.
        error: by output, max |server(edge(x)) - whole(x)| / max |whole(x)|; ``None`` where it was not verified.
    """

    id: str
    scope: str
    crossing: tuple[Crossing, ...]
    fp32_bytes: int
    int8_bytes: int
    natural: bool
    block: bool
    edge_macs: int
    server_macs: int
    edge_share: float
    edge_parameters: int
    server_parameters: int
    edge_peak_bytes: int
    local_tasks: tuple[str, ...]
    error: dict[str, float] | None = None


@dataclass(frozen=True)
class Splits:
    """All split points of one model.

    Attributes:
        points: remote only, the single-tensor cuts, local only, then the multi-tensor cuts.
        cuts: the division of the graph by id; the two ends have none.
    """

    points: tuple[SplitPoint, ...]
    cuts: Mapping[str, Cut]

    @property
    def remote(self) -> SplitPoint:
        """Sends the image."""
        return self.points[0]

    @property
    def local(self) -> SplitPoint:
        """Sends nothing."""
        return next(point for point in self.points if not point.crossing)

    @property
    def proper(self) -> tuple[SplitPoint, ...]:
        """The points at which the model itself is cut: all but remote only and local only."""
        return tuple(point for point in self.points if point.id in self.cuts)


def list_splits(model: Model) -> Splits:
    """All split points of a model: remote only, every single-tensor cut, local only, and multi-tensor cuts."""
    graph = model.graph
    single = single_tensor_cuts(graph)
    cuts = {f"s{number:02d}": cut for number, cut in enumerate(single, 1)}
    last = f"s{len(single) + 1:02d}"
    maker = _Maker(model)
    ends = maker.remote(), maker.local(last)
    singles = [maker.point(split_id, cut) for split_id, cut in cuts.items()]
    multi = {f"m{number:02d}": cut for number, cut in enumerate(multi_tensor_cuts(graph), 1)}
    multis = [maker.point(split_id, cut) for split_id, cut in multi.items()]
    return Splits((ends[0], *singles, ends[1], *multis), cuts | multi)


def placed_point(model: Model, point: SplitPoint, cut: Cut) -> SplitPoint:
    """A split point whose cut has some task heads on the edge: the same id and scope, its own crossing and costs."""
    return replace(_Maker(model).point(point.id, cut), scope=point.scope, block=point.block)


class _Maker:
    """Makes split points, with what all of them need computed once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._graph = model.graph
        self._costs = Costs(model.graph)
        self._blocks = block_outputs(model.graph, model.info.scopes, model.info.sequences)
        self._ends = module_ends(model.graph, model.info.scopes)
        self._total_macs = self._costs.macs(model.graph.everything)
        self._input_values = sum(model.graph.size(name) for name in model.graph.inputs)

    def point(self, split_id: str, cut: Cut) -> SplitPoint:
        """A cut."""
        graph = self._graph
        crossing = tuple(
            Crossing(
                name=name,
                scope=self._scope(name),
                shape=graph.shapes[name],
                fp32_bytes=4 * graph.size(name) if graph.is_float(name) else graph.n_bytes(name),
                int8_bytes=graph.size(name) if graph.is_float(name) else graph.n_bytes(name),
            )
            for name in cut.crossing
        )
        made = [name for name in cut.crossing if name not in graph.inputs]
        block = all(name in self._blocks for name in made)
        return self._point(split_id, " + ".join(one.scope for one in crossing), crossing, cut, block)

    def remote(self) -> SplitPoint:
        """Remote only: the model's inputs cross, an image as uint8 in its source channels."""
        graph, info = self._graph, self._model.info
        crossing = []
        for name in graph.inputs:
            shape, n_bytes = graph.shapes[name], graph.n_bytes(name)
            if name == info.image and info.preprocessing is not None:
                spec = info.preprocessing
                shape, n_bytes = (1, spec.height, spec.width, spec.source_channels), spec.pixel_values
            crossing.append(Crossing(name, "", shape, n_bytes, n_bytes))
        return self._point("s00", REMOTE, tuple(crossing), Cut(0, tuple(graph.inputs)), block=False)

    def local(self, split_id: str) -> SplitPoint:
        """Local only: nothing crosses."""
        return self._point(split_id, LOCAL, (), Cut(self._graph.everything, ()), block=False)

    def _scope(self, tensor: str) -> str:
        """The block or else the outermost module that ends with a tensor; ``module/tensor`` inside of one."""
        own = self._model.info.scopes.get(tensor, "")
        inside = f"{own}/{tensor}" if own else tensor
        return self._blocks.get(tensor) or (*self._ends.get(tensor, ()), inside)[0]

    def _point(self, split_id: str, scope: str, crossing: tuple[Crossing, ...], cut: Cut, block: bool) -> SplitPoint:
        server = self._graph.everything & ~cut.edge
        is_cut = bool(cut.edge and server)
        values = sum(math.prod(one.shape) for one in crossing)
        edge_macs = self._costs.macs(cut.edge)
        return SplitPoint(
            id=split_id,
            scope=scope,
            crossing=crossing,
            fp32_bytes=sum(one.fp32_bytes for one in crossing),
            int8_bytes=sum(one.int8_bytes for one in crossing),
            natural=is_cut and values < self._input_values,
            block=block,
            edge_macs=edge_macs,
            server_macs=self._total_macs - edge_macs,
            edge_share=edge_macs / self._total_macs if self._total_macs else 0.0,
            edge_parameters=self._costs.parameters(cut.edge),
            server_parameters=self._costs.parameters(server),
            edge_peak_bytes=self._costs.activation_peak_bytes(cut.edge, cut.crossing),
            local_tasks=placeable(self._graph, cut) if is_cut else (),
        )


def with_errors(point: SplitPoint, errors: Mapping[str, dict[str, float]]) -> SplitPoint:
    """The same with what a verification measured, by id; the two ends are not verified."""
    return replace(point, error=errors.get(point.id))

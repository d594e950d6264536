"""Which split points a request means: ids, module scopes, tensors, all, or a small set picked automatically."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.cuts import Cut, head, place, principal_cuts
from export.model import Model
from export.scopes import is_inside, module_ends
from export.splits import SplitPoint, Splits, placed_point
from splitboard.contract.bundle import unknown_split
from splitboard.contract.errors import UserError

MAX_AUTO = 4
"""Splits that are picked automatically: each costs a signature in the edge file and time at every measurement."""

MOST_EDGE_SHARE = 0.99
"""Of the multiply-accumulates. With more on the edge a cut is as slow there as local only, which sends nothing."""


@dataclass(frozen=True)
class Choice:
    """A chosen split point.

    Attributes:
        point: the split point.
        cut: the division of the graph.
        reason: why it was picked; ``None`` where the user named it.
    """

    point: SplitPoint
    cut: Cut
    reason: str | None = None


def choose(model: Model, splits: Splits, wanted: str) -> list[Choice]:
    """The cuts that a request names, in the order of the list.

    Args:
        model: whose split points they are.
        splits: all of them.
        wanted: comma-separated ids, module scopes or tensor names; ``all`` for every single-tensor cut.

    Raises:
        UserError: an entry names no cut, or something that does not separate the model.
    """
    if wanted.strip() == "all":
        return [Choice(point, splits.cuts[point.id]) for point in splits.proper if len(point.crossing) == 1]
    found = {_find(model, splits, entry.strip()).id for entry in wanted.split(",")}
    return [Choice(point, splits.cuts[point.id]) for point in splits.proper if point.id in found]


def _find(model: Model, splits: Splits, entry: str) -> SplitPoint:
    for end in (splits.remote, splits.local):
        if entry in (end.id, end.scope):
            raise UserError(
                f'"{entry}" ({end.scope} only) does not cut the model',
                ["every bundle holds it without being asked", f"the first cut is {_first(splits)}"],
            )
    ends = module_ends(model.graph, model.info.scopes)
    # A module that is called several times ends several times; the last is meant.
    matches = [point for point in splits.proper if entry in (point.id, point.scope, *_names(point, ends))]
    if matches:
        return matches[-1]
    raise _does_not_separate(model, splits, entry) or _unknown(splits, entry)


def _unknown(splits: Splits, entry: str) -> UserError:
    """The refusal of what the model has not, with the nearest words that it has."""
    error = unknown_split(entry, [point.id for point in splits.proper], "model")
    near = difflib.get_close_matches(entry, ["all", "auto", *(point.scope for point in splits.proper)], n=1)
    other = "or a module that splitboard splits MODEL shows; one that was folded into another has no place of its own"
    return UserError(error.message, [*(f'"{one}" is the nearest' for one in near), other, *error.tries])


def _first(splits: Splits) -> str:
    return splits.proper[0].id if splits.proper else "none: the model has no cut"


def _names(point: SplitPoint, ends: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What a single-tensor cut may also be called: its tensor, and every module that ends with it."""
    if len(point.crossing) != 1:
        return ()
    tensor = point.crossing[0].name
    return (tensor, *ends.get(tensor, ()))


def _does_not_separate(model: Model, splits: Splits, entry: str) -> UserError | None:
    """The refusal of a module or tensor that the model has, but that no single tensor crosses behind."""
    graph, scopes = model.graph, model.info.scopes
    inside = [
        i
        for i, node in enumerate(graph.nodes)
        if any(entry == name or is_inside(scopes.get(name, ""), entry) for name in node.output)
    ]
    if not inside or not entry:
        return None
    cut = principal_cuts(graph)[inside[-1]]
    node = graph.nodes[inside[-1]]
    if node.output[0] in graph.outputs and not graph.consumers.get(node.output[0]):
        return UserError(
            f'"{entry}" is the head of task "{node.output[0]}": nothing follows it',
            [f"place the head on the board: --local {node.output[0]}"],
        )
    around = next(name for name in cut.crossing if name not in node.output)
    same = [point.id for point in splits.proper if splits.cuts[point.id].edge == cut.edge]
    tries = [f"{same[0]} sends {len(cut.crossing)} tensors and cuts there"] if same else []
    return UserError(
        f'a cut at "{entry}" does not separate the model: behind operator "{node.op_type}" ("{node.output[0]}", '
        f'{scopes.get(node.output[0]) or "no module"}) "{around}" ({scopes.get(around) or "no module"}) goes around it',
        [*tries, "splitboard splits MODEL lists what separates it"],
    )


def check_tasks(model: Model, splits: Splits, tasks: Sequence[str]) -> None:
    """Refuses what cannot be placed on the edge at any split.

    Raises:
        UserError: an unknown task, or all of them.
    """
    known = model.graph.outputs
    for task in tasks:
        if task not in known:
            raise UserError(f'--local names the unknown task "{task}"', [f"the model has: {', '.join(known)}"])
    if set(tasks) == set(known):
        raise UserError(
            f'--local "{",".join(tasks)}" leaves nothing to the server',
            [f"{splits.local.id} (local only) is in every bundle", "name fewer tasks"],
        )


def place_tasks(model: Model, splits: Splits, chosen: Sequence[Choice], tasks: Sequence[str]) -> list[Choice]:
    """The same splits with the heads of some tasks on the edge.

    Raises:
        UserError: an unknown task, all tasks, or a split at which a head's inputs are not on the edge.
    """
    check_tasks(model, splits, tasks)
    placed = []
    for choice in chosen:
        for task in tasks:
            if task not in choice.point.local_tasks:
                raise _cannot_place(model, splits, choice, task)
        cut = place(model.graph, choice.cut, tasks)
        placed.append(Choice(placed_point(model, choice.point, cut), cut, choice.reason))
    return placed


def _cannot_place(model: Model, splits: Splits, choice: Choice, task: str) -> UserError:
    graph = model.graph
    missing = graph.needed([task]) & ~head(graph, task) & ~choice.cut.edge
    first = graph.nodes[(missing & -missing).bit_length() - 1] if missing else graph.nodes[graph.producer[task]]
    scope = model.info.scopes.get(first.output[0]) or "no module"
    able = [point.id for point in splits.proper if task in point.local_tasks]
    return UserError(
        f'the head of task "{task}" cannot be on the edge at "{choice.point.id}": it needs operator '
        f'"{first.op_type}" ("{first.output[0]}", {scope}), which is on the server',
        [f"splits where it can: {', '.join(able[:8])}" if able else "no split of this model can place it"],
    )


def choose_automatically(splits: Splits, tasks: Sequence[str] = (), bytes_per_value: int = 1) -> list[Choice]:
    """A small diverse set: the Pareto front of edge work against payload, thinned to `MAX_AUTO`.

    Only cuts that send less than remote only does are looked at (others compute on the board and send more), and that
    leave the server something to do, where no task has to be on the edge; of several tensors only where no single one
    will do. The front's two ends are taken, then whatever
    adds most to the area that the chosen ones dominate.

    Args:
        splits: all split points.
        tasks: heads that are to be placed on the edge; only cuts where that is possible are looked at.
        bytes_per_value: that a real number takes on the wire: 1 for INT8, 4 for float32.

    Raises:
        UserError: no cut sends less than remote only, or none can place the tasks.
    """
    sent = _Sent(splits, bytes_per_value)
    front = _pareto_front(splits, tasks, sent)
    if not front:
        asked = f' with "{", ".join(tasks)}" on the edge' if tasks else ""
        raise UserError(
            f'no cut{asked} sends less than remote only does ("{sent.n_bytes(splits.remote):,}" bytes)',
            [
                *(["--precision int8, which sends a byte for every number"] if bytes_per_value > 1 else []),
                "name the splits: --split s03,s07",
                "splitboard splits MODEL lists them",
            ],
        )
    reasons = {front[0].id: "least edge work that sends less than the image"}
    reasons.setdefault(front[-1].id, "smallest payload")
    while len(reasons) < min(MAX_AUTO, len(front)):
        chosen = [point for point in front if point.id in reasons]
        best = max(
            (point for point in front if point.id not in reasons),
            key=lambda point: _dominated_area(sorted([*chosen, point], key=_work), sent),
        )
        reasons[best.id] = "best trade of edge work for payload between the others"
    found = [point for point in front if point.id in reasons]
    return [Choice(point, splits.cuts[point.id], _because(point, sent, reasons[point.id])) for point in found]


@dataclass(frozen=True)
class _Sent:
    """What a cut sends; whole numbers and the image of remote only have a size of their own."""

    splits: Splits
    bytes_per_value: int

    def n_bytes(self, point: SplitPoint) -> int:
        # A real number takes 4 bytes in the one and 1 in the other, so that a third of the difference is their number.
        n_real = (point.fp32_bytes - point.int8_bytes) // 3
        return point.int8_bytes + (self.bytes_per_value - 1) * n_real

    def share(self, point: SplitPoint) -> float:
        """Of what remote only sends."""
        return self.n_bytes(point) / self.n_bytes(self.splits.remote)


def _pareto_front(splits: Splits, tasks: Sequence[str], sent: _Sent) -> list[SplitPoint]:
    """Cuts that no other beats in edge work and payload, by growing work; of equals a block's output, then the last."""
    inputs = {one.name for one in splits.remote.crossing}
    fitting = [
        point
        for point in splits.proper
        if sent.share(point) < 1
        and set(tasks) <= set(point.local_tasks)
        and (tasks or point.edge_share <= MOST_EDGE_SHARE)
        and not inputs.intersection(one.name for one in point.crossing)
    ]
    fitting = [point for point in fitting if len(point.crossing) == 1] or fitting
    order = {point.id: position for position, point in enumerate(splits.proper)}
    front: list[SplitPoint] = []
    for point in sorted(
        fitting, key=lambda p: (p.edge_macs, sent.share(p), len(p.crossing), not p.block, -order[p.id])
    ):
        if not front or sent.share(point) < sent.share(front[-1]):
            front.append(point)
    return front


def _work(point: SplitPoint) -> int:
    return point.edge_macs


def _dominated_area(chosen: Sequence[SplitPoint], sent: _Sent) -> float:
    """Area between the chosen points (by growing work) and the worst corner, in shares of work and of the image."""
    area, height = 0.0, 1.0
    for point in chosen:
        payload = sent.share(point)
        area += (1.0 - point.edge_share) * (height - payload)
        height = payload
    return area


def _because(point: SplitPoint, sent: _Sent, reason: str) -> str:
    return (
        f"{reason}: {100 * point.edge_share:.0f} % of the multiply-accumulates on the edge, "
        f"{sent.n_bytes(point):,} bytes ({100 * sent.share(point):.0f} % of remote only)"
    )

"""What a request for splits means, what is refused and why, and the automatic choice against its definition."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from export.choice import MAX_AUTO, MOST_EDGE_SHARE, choose, choose_automatically, place_tasks
from export.model import Model, load_model
from export.splits import SplitPoint, Splits, list_splits
from splitboard.contract.errors import UserError


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def splits(model: Model) -> Splits:
    return list_splits(model)


def ids(model: Model, splits: Splits, wanted: str) -> list[str]:
    return [choice.point.id for choice in choose(model, splits, wanted)]


def test_splits_are_chosen_by_id_scope_or_tensor_in_order(model: Model, splits: Splits) -> None:
    by_id = ids(model, splits, "s05, s03")
    assert by_id == ["s03", "s05"]
    assert ids(model, splits, "blocks.1,blocks.0") == by_id
    tensors = {point.id: point.crossing[0].name for point in splits.proper}
    assert ids(model, splits, f"{tensors['s05']},{tensors['s03']}") == by_id
    assert ids(model, splits, "all") == [point.id for point in splits.proper if point.id[0] == "s"]
    assert ids(model, splits, "m01") == ["m01"]
    # The last block has its own name, and is found by that of the sequence which ends with it too.
    assert ids(model, splits, "blocks.2") == ids(model, splits, "blocks")


@pytest.mark.parametrize("wanted", ["s77", "blocks.9", ""])
def test_an_unknown_split_is_refused(model: Model, splits: Splits, wanted: str) -> None:
    with pytest.raises(UserError) as error:
        choose(model, splits, wanted)
    assert f'"{wanted}"' in error.value.message
    assert splits.proper[0].id in error.value.tries[-1]


@pytest.mark.parametrize("wanted", ["s00", "remote", "local"])
def test_an_end_is_no_cut(model: Model, splits: Splits, wanted: str) -> None:
    with pytest.raises(UserError, match="does not cut the model"):
        choose(model, splits, wanted)


def test_a_cut_that_does_not_separate_names_the_operator_and_what_goes_around_it(model: Model, splits: Splits) -> None:
    with pytest.raises(UserError) as error:
        choose(model, splits, "blocks.0.project")
    message = error.value.message
    assert 'a cut at "blocks.0.project" does not separate the model' in message
    assert 'operator "Conv"' in message
    assert "blocks.0.project)" in message
    assert "(stem.1) goes around it" in message
    multi = error.value.tries[0].split()[0]
    assert {one.scope for one in next(p for p in splits.points if p.id == multi).crossing} == {
        "stem", "blocks.0.project"
    }  # fmt: skip


def test_a_head_is_no_place_to_cut(model: Model, splits: Splits) -> None:
    with pytest.raises(UserError, match=r'"heads\.shape" is the head of task'):
        choose(model, splits, "heads.shape")


def test_heads_are_placed_and_costs_follow(model: Model, splits: Splits) -> None:
    pooled = next(point for point in splits.proper if point.local_tasks == ("shape", "colour"))
    (placed,) = place_tasks(model, splits, choose(model, splits, pooled.id), ["shape"])
    assert placed.cut.local == ("shape",)
    assert placed.point.edge_macs == pooled.edge_macs + 12 * 2
    assert placed.point.server_macs == 12 * 3
    assert placed.point.edge_parameters == pooled.edge_parameters + 12 * 2 + 2


@pytest.mark.parametrize(
    ("split", "tasks", "words"),
    [
        ("blocks.0", ["shape"], 'head of task "shape" cannot be on the edge at'),
        ("all", ["shap"], 'unknown task "shap"'),
        ("blocks.0", ["shape", "colour"], "leaves nothing to the server"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(
    model: Model, splits: Splits, split: str, tasks: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        place_tasks(model, splits, choose(model, splits, split), tasks)
    assert error.value.tries


def beaten(point: SplitPoint, others: list[SplitPoint]) -> bool:
    """By brute force: another cut has less of one and no more of the other."""
    return any(
        other.edge_macs <= point.edge_macs
        and other.int8_bytes <= point.int8_bytes
        and (other.edge_macs, other.int8_bytes) != (point.edge_macs, point.int8_bytes)
        for other in others
    )


def test_the_automatic_choice_lies_on_the_pareto_front_and_says_why(model: Model) -> None:
    wide = replace(model, info=replace(model.info, preprocessing=None))  # the float image crosses: many cuts send less
    splits = list_splits(wide)
    chosen = choose_automatically(splits)
    fitting = [
        point
        for point in splits.proper
        if point.int8_bytes < splits.remote.int8_bytes
        and point.edge_share <= MOST_EDGE_SHARE
        and len(point.crossing) == 1
    ]
    front = [point for point in fitting if not beaten(point, fitting)]
    assert 2 <= len(chosen) <= MAX_AUTO
    for choice in chosen:
        assert not beaten(choice.point, fitting)
        assert choice.reason is not None
        assert f"{choice.point.int8_bytes:,} bytes" in choice.reason
    assert chosen[0].point.edge_macs == min(point.edge_macs for point in front)
    assert chosen[-1].point.int8_bytes == min(point.int8_bytes for point in front)


def test_a_float_half_sends_four_times_as_much(model: Model) -> None:
    splits = list_splits(model)
    image = replace(splits.remote, fp32_bytes=100_000, int8_bytes=100_000)  # one byte per value, whatever the precision
    found = choose_automatically(Splits((image, *splits.points[1:]), splits.cuts), bytes_per_value=4)
    for choice in found:
        (crossing,) = choice.point.crossing
        assert choice.point.fp32_bytes == 4 * math.prod(crossing.shape) < 100_000
        assert choice.reason is not None
        assert f"{choice.point.fp32_bytes:,} bytes" in choice.reason


def test_where_nothing_sends_less_than_the_image_nothing_is_picked(model: Model, splits: Splits) -> None:
    tiny_image = replace(splits.remote, int8_bytes=1)
    with pytest.raises(UserError, match='sends less than remote only does \\("1" bytes\\)'):
        choose_automatically(Splits((tiny_image, *splits.points[1:]), splits.cuts))

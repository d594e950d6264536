"""Older operator sets: what is lowered computes the same, and what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import made_of
from onnx import defs, helper
from quantised import exported, images  # type: ignore[import-not-found, unused-ignore]

from export.opset import lower_opset, opset_of
from export.reference import reference_session, relative_error
from splitboard.contract.errors import UserError

node = helper.make_node
FAMILIES = ("unet", "depths", "two_scales", "shared", "mobilenet_v3_small_two_heads", "efficientnet_lite0_two_heads")


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("name", FAMILIES)
def test_whole_networks_compute_the_same(name: str, opset: int) -> None:
    graph = exported(name)
    lowered = lower_opset(graph.model, opset)
    assert opset_of(lowered) == opset
    assert lowered.ir_version <= 8
    for one in lowered.graph.node:  # every operator is there, with attributes that it has
        schema = defs.get_schema(one.op_type, opset, one.domain)
        assert {attribute.name for attribute in one.attribute} <= schema.attributes.keys()
    assert {name for one in graph.nodes for name in one.output} <= {
        name for n in lowered.graph.node for name in n.output
    }
    image = images(graph, 1)[0]
    expected, actual = (reference_session(one).run(None, {"image": image}) for one in (graph.model, lowered))
    for ours, theirs in zip(actual, expected, strict=True):
        assert relative_error(ours, theirs) < 1e-6


@pytest.mark.parametrize("opset", [13, 14, 17])
def test_a_reduction_has_its_axes_as_an_attribute_again(opset: int) -> None:
    graph = made_of(
        [
            node("HardSwish", ["x"], ["a"]),
            node("ReduceMean", ["a", "axes"], ["b"], keepdims=1, noop_with_empty_axes=0),
            node("Add", ["a", "b"], ["y"]),
        ],
        constants={"axes": np.array([0])},
    )
    lowered = lower_opset(graph.model, opset)
    assert opset_of(lowered) == opset
    x = np.array([-1.5, 2.5], np.float32)
    (actual,) = reference_session(lowered).run(["y"], {"x": x})
    swished = F.hardswish(torch.from_numpy(x))
    np.testing.assert_allclose(actual, (swished + swished.mean()).numpy(), rtol=1e-6)


@pytest.mark.parametrize(("opset", "op_types"), [(13, ["HardSigmoid", "Mul"]), (14, ["HardSwish"])])
def test_hard_swish_is_written_out_where_it_is_not_known(opset: int, op_types: list[str]) -> None:
    graph = made_of([node("HardSwish", ["x"], ["y"])], shape=(99,))
    lowered = lower_opset(graph.model, opset)
    assert [one.op_type for one in lowered.graph.node] == op_types
    x = np.linspace(-5, 5, 99, dtype=np.float32)
    (actual,) = reference_session(lowered).run(None, {"x": x})
    np.testing.assert_allclose(actual, F.hardswish(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", [{"num_outputs": 3}, {}])
@pytest.mark.parametrize("opset", [13, 17])
def test_split_becomes_slices(opset: int, how: dict[str, int]) -> None:
    inputs = ["x"] if how else ["x", "sizes"]
    nodes = [
        node("Split", inputs, ["a", "b", "c"], axis=1, **how),
        node("Concat", ["c", "a", "b"], ["y"], axis=1),
    ]
    graph = made_of(nodes, constants={} if how else {"sizes": np.array([4, 1, 2])}, shape=(2, 7))
    lowered = lower_opset(graph.model, opset)
    assert "Split" not in {one.op_type for one in lowered.graph.node}
    x = np.arange(14, dtype=np.float32).reshape(2, 7)
    a, b, c = np.split(x, [3, 6] if how else [4, 5], axis=1)
    (actual,) = reference_session(lowered).run(None, {"x": x})
    np.testing.assert_array_equal(actual, np.concatenate([c, a, b], axis=1))


@pytest.mark.parametrize("opset", [12, 19])
def test_an_opset_out_of_range_is_refused(opset: int) -> None:
    with pytest.raises(UserError, match=f'opset "{opset}" cannot be written'):
        lower_opset(made_of([node("Relu", ["x"], ["y"])]).model, opset)


@pytest.mark.parametrize(
    ("made", "opset"),
    [
        (node("LayerNormalization", ["x", "one"], ["y"]), 16),
        (node("Trilu", ["x"], ["y"]), 13),  # began in 14, below which nothing is converted
    ],
)
def test_an_operator_that_has_no_older_form_is_named(made: helper.NodeProto, opset: int) -> None:
    graph = made_of([made], constants={"one": np.ones(2, np.float32)}, shape=(2, 2))
    with pytest.raises(UserError, match=f'in opset "{opset}": No Previous Version of {made.op_type}') as error:
        lower_opset(graph.model, opset)
    assert error.value.tries == ("a newer one, up to 18",)
    assert opset_of(lower_opset(graph.model, opset + 1)) == opset + 1

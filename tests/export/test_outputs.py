"""What a model returns and takes, by name: every structure, renamed tasks, and what cannot be exported."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.child_program import Input, bind, flatten, outputs_of, run_samples, samples, trace
from export.child_refusals import Refused
from export.clean import clean
from export.exporter import PARITY_LIMIT, compare
from export.model import Model, load_model
from export.naming import task_names
from export.reference import reference_session
from splitboard.cli.main import run
from splitboard.contract.errors import SplitboardError, UserError

pytestmark = pytest.mark.usefixtures("quick_exports")

NET = """
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


@dataclass
class Detection:  # torch.export was not told of it
    box: torch.Tensor
    mul: torch.Tensor
    loss: object = None


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class ModelOutput(OrderedDict):
    pass


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.mul = nn.Parameter(torch.ones(8))  # the exporter would give its products the same name
        self.words = nn.Embedding(2, 8)
        self.box = nn.Linear(8, 4)

    def forward(self, relu, ids, meta=None, scale=2.0):
        seen = torch.relu(self.conv(relu))
        features = seen.mean((2, 3)) * self.mul + self.words(ids).mean(1)
        if meta is not None:
            features = features + meta.sum(1, keepdim=True)
        return {
            "det": Detection(self.box(features) * scale, features * 3),
            "aux": (Pair(features * 2, features + 1), [seen]),
            "relu": ModelOutput(logits=features - 1, hidden=None),
        }


def make():
    torch.manual_seed(3)
    return Net()
"""
SHAPES = {"relu": (1, 3, 6, 5), "ids": (1, 7), "meta": (1, 6)}
TASKS = ["box", "det.mul", "aux.0.left", "aux.0.right", "dense", "relu.logits"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("outputs")
    (made / "structured.py").write_text(NET)
    return made


@pytest.fixture(scope="module")
def net(folder: Path) -> nn.Module:
    namespace: dict[str, Any] = {"__name__": "structured"}
    exec(compile(NET, "structured.py", "exec", dont_inherit=True), namespace)
    made: nn.Module = namespace["make"]()
    return made.eval()


@pytest.fixture(scope="module")
def model(folder: Path, net: nn.Module) -> Model:
    torch.save(net.state_dict(), folder / "net.pt")
    inputs = ["--input", "meta=1x6", "--input", "relu=1x3x6x5:float32", "--input", "ids=1x7:int64"]
    argv = ["export", str(folder / "net.pt"), "--model", "structured:make", "--path", str(folder), *inputs]
    assert run([*argv, "--tasks", "det.box=box,aux.1.0=dense", "-o", str(folder / "model")]) == 0
    return load_model(folder / "model")


def test_every_tensor_of_a_nested_result_is_an_output_by_its_name(model: Model, net: nn.Module) -> None:
    assert [task.name for task in model.info.tasks] == TASKS
    random = torch.Generator().manual_seed(9)
    given = {
        "relu": torch.randn(SHAPES["relu"], generator=random),
        "ids": torch.randint(0, 2, SHAPES["ids"], generator=random),
        "meta": torch.randn(SHAPES["meta"], generator=random),
    }
    with torch.no_grad():
        result = net(**given)
    expected = [
        result["det"].box, result["det"].mul, result["aux"][0].left, result["aux"][0].right, result["aux"][1][0],
        result["relu"]["logits"],
    ]  # fmt: skip
    session = ort.InferenceSession(model.graph.model.SerializeToString(), providers=["CPUExecutionProvider"])
    actual = session.run(TASKS, {name: tensor.numpy() for name, tensor in given.items()})
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)
    assert all(one.relative < 1e-5 and one.cosine > 0.99999 for one in model.info.parity.values())


def test_inputs_are_those_of_forward_in_its_order(model: Model) -> None:
    assert {one.name: (one.shape, one.dtype) for one in model.info.inputs} == {
        name: (shape, "int64" if name == "ids" else "float32") for name, shape in SHAPES.items()
    }
    assert model.graph.inputs == list(SHAPES) == [one.name for one in model.info.inputs]
    assert model.info.image is None
    assert model.info.preprocessing is None


def test_classes_are_counted_along_the_right_dimension(model: Model) -> None:
    assert [len(task.labels) for task in model.info.tasks] == [4, 8, 8, 8, 8, 8]
    assert model.graph.shapes["dense"] == (1, 8, 6, 5)


def test_a_dense_task_has_the_labels_of_its_channels(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 6, 5]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    preprocessing = "[preprocessing]\nheight=6\nwidth=5\nsource_channels=3\nmean=[0.5,0.5,0.5]\nstd=[1,1,1]\n"
    (tmp_path / "s.toml").write_text(preprocessing + '[labels]\nseg = ["road", "sky", "tree"]\n')
    argv = ["export", str(tmp_path / "m.onnx"), "--spec", str(tmp_path / "s.toml"), "--tasks", "seg"]
    assert run([*argv, "-o", str(tmp_path / "m")]) == 0
    assert load_model(tmp_path / "m").info.tasks[0].labels == ("road", "sky", "tree")


def test_two_swapped_outputs_of_one_shape_fail() -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "a", "b")]
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])]
    graph = helper.make_graph(nodes, "heads", value[:1], value[1:])
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    x = np.random.default_rng(0).normal(size=(3, 1, 4)).astype(np.float32)
    right = {"a": np.maximum(x, 0), "b": -x}
    assert max(one.max_abs for one in compare(made, made, {"x": x}, right).values()) == 0
    with pytest.raises(SplitboardError, match='output "a" of the exported graph differs'):
        compare(made, made, {"x": x}, {"a": right["b"], "b": right["a"]})


def sensitive(factor: float) -> onnx.ModelProto:
    """A sine of large numbers: one rounding more or less of the convolution, and it is another."""
    shape = [1, 8, 16, 16]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["t"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["t", "gamma", "beta", "mean", "variance"], ["u"]),
        helper.make_node("Mul", ["u", "many"], ["v"]),
        helper.make_node("Sin", ["v"], ["y"]),
    ]
    random = np.random.default_rng(1)
    constants = {"w": random.normal(size=(8, 8, 3, 3)).astype(np.float32) * factor, "many": np.float32(100)}
    constants |= {n: random.uniform(0.5, 2, 8).astype(np.float32) for n in ("gamma", "beta", "mean", "variance")}
    tensors = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], tensors)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_an_ill_conditioned_model_may_differ_by_its_own_rounding_and_no_more() -> None:
    source = sensitive(1.0)
    x = np.random.default_rng(0).normal(size=(3, 1, 8, 16, 16)).astype(np.float32)
    session = reference_session(source)
    right = {"y": np.stack([session.run(None, {"x": one})[0] for one in x])}
    found = compare(clean(source).model, source, {"x": x}, right)["y"]
    assert PARITY_LIMIT < found.relative < 1e-2
    with pytest.raises(SplitboardError, match='output "y" of the exported graph differs'):
        compare(clean(sensitive(1.0001)).model, source, {"x": x}, right)


# The structure of what a model returns.


def test_the_order_is_that_of_torch_export() -> None:
    from torch.utils._pytree import tree_leaves

    a, b, c, d = (torch.tensor(float(i)) for i in range(4))
    value = OrderedDict(z={"y": a, "x": [b]}, w=(c, None), v=d)
    named = dict(flatten(value))
    assert list(named) == ["z.y", "z.x.0", "w.0", "v"]
    assert list(named.values()) == [leaf for leaf in tree_leaves(value) if leaf is not None]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": torch.ones(1), "n": {"count": 3}}, '"n.count" is "int"'),
        ((torch.ones(1), "text"), '"output_1" is "str"'),
        (None, "without a tensor"),
        ([], "without a tensor"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(2)}, 'two outputs that are called "a.b"'),
    ],
)
def test_what_is_no_named_tensor_is_refused(value: Any, said: str) -> None:
    with pytest.raises(Refused, match=said.replace(".", r"\.")):
        outputs_of(value, {})


def test_a_tensor_is_returned_once() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    assert list(outputs_of((y, y[:, :2], y * 1), {"x": x})) == ["output_0", "output_1", "output_2"]
    with pytest.raises(Refused, match='"output_1" is the same tensor as the output "output_0"'):
        outputs_of((y, y.view(2, 3)), {"x": x})
    with pytest.raises(Refused, match='"output" is the same tensor as the input "x"'):
        outputs_of(x, {"x": x})


# How it is called.


def forward(**requests: tuple[int, ...]) -> list[dict[str, Any]]:
    return [{"name": name or None, "shape": shape, "dtype": None} for name, shape in requests.items()]


class Asking(nn.Module):
    def forward(self, image: Tensor, /, meta: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return image + meta if mask is None else image


class Anything(nn.Module):
    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return sum([*args, *kwargs.values()], torch.zeros(1))


def test_inputs_are_bound_as_python_does() -> None:
    bound = bind(Asking(), forward(mask=(1, 2), image=(1, 3), meta=(1, 6)))
    assert bound == [
        Input("image", (1, 3), "float32", keyword=False),
        Input("meta", (1, 6), "float32"),
        Input("mask", (1, 2), "float32"),
    ]
    assert bind(nn.Sequential(nn.ReLU()), forward(**{"": (1, 2)})) == [Input("input", (1, 2), "float32")]
    assert [one.name for one in bind(Anything(), forward(b=(1,), a=(1,)))] == ["b", "a"]


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        (forward(image=(1, 3)), 'forward needs "meta"'),
        (forward(image=(1, 3), meta=(1, 6), depth=(1, 2)), '"depth" is no parameter'),
    ],
)
def test_inputs_that_forward_does_not_take_are_refused(requests: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(Refused, match=said):
        bind(Asking(), requests)


def test_samples_are_valid_and_differ() -> None:
    made = samples([Input("x", (1, 3), "float32"), Input("ids", (1, 64), "int64"), Input("on", (1, 64), "bool")])
    assert made["ids"].dtype == torch.int64
    assert set(made["ids"].flatten().tolist()) == {0, 1}
    assert made["on"].dtype == torch.bool
    assert made["x"].abs().max() <= 1
    assert not torch.equal(made["x"][0], made["x"][1])


# What cannot be exported, with the line of the user's code and the module.


class Choosing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return -x


class Finding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten().nonzero().float().mean(0)


class Decomposing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.linalg.qr(x)[0]
        return y


class ByNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.abs(x.numpy()))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """As in the child: torch.export warns of its own parts, and nothing is trained."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def line_of(module: type[nn.Module], offset: int) -> str:
    return f"{Path(__file__).name}:{module.forward.__code__.co_firstlineno + offset}"


@pytest.mark.parametrize(
    ("module", "offset", "said"),
    [
        (Choosing, 1, "control flow in"),
        (Finding, 1, 'the shape of what "aten.nonzero.default" returns in'),
        (Decomposing, 1, 'operator "aten.linalg_qr.default" in'),
        (ByNumpy, 1, "torch.export stopped in"),
    ],
)
def test_what_cannot_be_exported_is_named_with_its_line_and_module(
    module: type[nn.Module], offset: int, said: str
) -> None:
    model = nn.ModuleDict({"body": nn.Identity(), "head": nn.Sequential(nn.ReLU(), module())})
    model.forward = lambda x: model["head"](model["body"](x))  # type: ignore[assignment]
    inputs = [Input("x", (1, 3, 4), "float32")]
    given = {name: tensor[0] for name, tensor in samples(inputs).items()}

    def export() -> None:
        traced = trace(model, inputs, given, Path(__file__).parent)
        traced.check_shapes()
        traced.to_onnx(["x"], 1)

    with pytest.raises(Refused) as error:
        export()
    assert str(error.value).startswith(f'{said} "{line_of(module, offset)}"')
    assert error.value.tries
    assert 'module "head.1"' in str(error.value)


def test_an_output_of_another_type_or_of_a_changing_shape_is_refused() -> None:
    taken = samples([Input("x", (1, 8), "float32")])
    with pytest.raises(Refused, match='"output" is int64, not float32'):
        run_samples(lambda given: given["x"].argmax(1), taken)
    with pytest.raises(Refused, match='the shape of the model\'s output "output" depends on values'):
        run_samples(lambda given: given["x"][given["x"] > 0.3], taken)


# Names of tasks.


def test_tasks_are_renamed_in_order_or_by_name() -> None:
    assert task_names(["a", "b"], "") == {"a": "a", "b": "b"}
    assert task_names(["a", "b"], "x, y") == {"a": "x", "b": "y"}
    assert task_names(["a", "b"], "b=y") == {"a": "a", "b": "y"}
    assert task_names(["a", "b"], "a=b,b=a") == {"a": "b", "b": "a"}
    assert task_names(["call:0"], "call:0=score-1.x") == {"call:0": "score-1.x"}


WRONG_TASKS = ["x", "x,y,z", "x,", "=x", "a=", "c=x", "a=x,a=y", "a=x,y", "x,x", "a=b", "x y,z", "\u00e9,z"]


@pytest.mark.parametrize("tasks", WRONG_TASKS)
def test_other_names_of_tasks_are_refused(tasks: str) -> None:
    with pytest.raises(UserError):
        task_names(["a", "b"], tasks)

"""Exits of the user's own model: declared, checked, and out of the way of cuts and servers."""

from __future__ import annotations

from pathlib import Path

import branches
import early
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from export.choice import choose, place_tasks
from export.exits import exits_at, head_nodes
from export.exported import ExportRequest
from export.exporter import export_model
from export.inputs import InputRequest
from export.model import Model, ModelInfo, load_model
from export.reference import reference_session
from export.spec import ModelSpec, read_spec
from export.splits import list_splits
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import Preprocessing

pytestmark = pytest.mark.usefixtures("quick_exports")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nets") / "net.safetensors"
    save_file(early.make().state_dict(), path)
    return path


MODELS = Path(__file__).parents[1] / "models"


def exported(source: Path, target: Path, exits: dict[str, str], factory: str = "make") -> ModelInfo:
    spec = ModelSpec(Preprocessing(32, 32, 1, (0.5,) * 3, (0.5,) * 3), {"kind": ("a", "b", "c")}, exits)
    inputs = (InputRequest(None, (1, 3, 32, 32)),)
    request = ExportRequest(source, "net", f"early:{factory}", inputs, spec, source_folder=MODELS)
    return export_model(request, target)


@pytest.fixture(scope="module")
def model(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    target = tmp_path_factory.mktemp("model") / "early"
    exported(source, target, {"kind_early": "kind"})
    return load_model(target)


def test_a_declared_exit_is_no_task(model: Model) -> None:
    assert [task.name for task in model.info.tasks] == ["kind", "age"]
    assert model.info.tasks[0].labels == ("a", "b", "c")
    assert [(one.output, one.task, one.scope) for one in model.info.exits] == [("kind_early", "kind", "stages.0")]
    assert model.info.exit_samples == ()
    assert model.graph.outputs == ["kind", "age"]
    assert set(model.whole.outputs) == {"kind", "age", "kind_early"}


def test_the_exit_computes_what_torch_does(model: Model) -> None:
    images = np.random.default_rng(1).normal(0, 1, (5, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = early.make().eval()(torch.from_numpy(images))
    session = reference_session(model.whole.model)
    for i, image in enumerate(images):
        found = dict(zip(model.whole.outputs, session.run(model.whole.outputs, {"image": image[None]}), strict=True))
        for name, value in found.items():
            np.testing.assert_allclose(value[0], expected[name][i].numpy(), atol=1e-5)


def test_the_split_points_are_those_of_the_model_without_exits(model: Model, source: Path, tmp_path: Path) -> None:
    exported(source, tmp_path / "plain", {}, "plain")
    plain, found = list_splits(load_model(tmp_path / "plain")), list_splits(model)
    assert len(plain.proper) >= 4
    # The exporter numbers tensors as it meets them, so their names may differ and nothing else.
    assert [(p.id, p.scope, p.int8_bytes, p.edge_macs, p.edge_parameters, p.edge_peak_bytes) for p in found.points] == [
        (p.id, p.scope, p.int8_bytes, p.edge_macs, p.edge_parameters, p.edge_peak_bytes) for p in plain.points
    ]
    undeclared = tmp_path / "undeclared"
    exported(source, undeclared, {})
    assert [p.id for p in list_splits(load_model(undeclared)).points] != [p.id for p in found.points]


def test_an_exit_is_where_all_that_it_takes_is(model: Model) -> None:
    splits = list_splits(model)
    (taken,) = model.info.exits[0].takes
    made = model.graph.producer[taken]
    holding = [point.id for point in splits.proper if splits.cuts[point.id].edge >> made & 1]
    found = {point.id: exits_at(model.graph, model.info.exits, splits.cuts[point.id]) for point in splits.proper}
    assert {split_id for split_id, exits in found.items() if exits} == set(holding)
    assert 0 < len(holding) < len(splits.proper)


def test_a_local_task_needs_no_exit(model: Model) -> None:
    splits = list_splits(model)
    last = splits.proper[-1] if splits.proper[-1].local_tasks else next(p for p in splits.proper if p.local_tasks)
    for task, exits in (("kind", ()), ("age", ("kind_early",))):
        (placed,) = place_tasks(model, splits, choose(model, splits, last.id), [task])
        assert exits_at(model.graph, model.info.exits, placed.cut) == exits


def test_the_head_is_all_that_only_the_exit_needs(model: Model) -> None:
    heads = head_nodes(model.whole, model.graph, ("kind_early",))
    made = {model.whole.nodes[i].output[0] for i in range(len(model.whole.nodes)) if heads >> i & 1}
    assert made == {node.output[0] for node in model.whole.nodes} - {node.output[0] for node in model.graph.nodes}
    assert {model.info.scopes[name].partition(".")[0] for name in made} <= {"early", "early_head", ""}


@pytest.mark.parametrize(
    ("exits", "said", "advice"),
    [
        ({"kind_erly": "kind"}, "kind_erly", "kind_early"),
        ({"kind_early": "knd"}, "knd", "kind, age"),
        ({"kind_early": "age"}, "1x3", "classes of its task"),
        ({"kind_early": "kind", "kind": "age", "age": "kind"}, "kind_early, kind, age", "out of [exits]"),
    ],
)
def test_exits_that_do_not_fit_are_refused(
    source: Path, tmp_path: Path, exits: dict[str, str], said: str, advice: str
) -> None:
    spec = ModelSpec(Preprocessing(32, 32, 1, (0.5,) * 3, (0.5,) * 3), {}, exits)
    inputs = (InputRequest(None, (1, 3, 32, 32)),)
    request = ExportRequest(source, "net", "early:make", inputs, spec, source_folder=MODELS)
    with pytest.raises(UserError) as caught:
        export_model(request, tmp_path / "model")
    assert f'"{said}"' in caught.value.message
    assert any(advice in line for line in caught.value.tries)
    assert not (tmp_path / "model").exists()


def test_an_output_that_others_take_is_no_exit(tmp_path: Path) -> None:
    onnx.save(branches.make(), tmp_path / "branches.onnx")
    spec = ModelSpec(Preprocessing(32, 32, 1, (0.5,) * 3, (0.5,) * 3), {}, {"shape": "size"})
    with pytest.raises(UserError, match=r'exit "shape" is taken by operator "Gemm" \("hint"'):
        export_model(ExportRequest(tmp_path / "branches.onnx", "branches", spec=spec), tmp_path / "model")


def test_the_spec_declares_exits(tmp_path: Path) -> None:
    head = "[preprocessing]\nheight = 8\nwidth = 8\nsource_channels = 1\nmean = [0.5]\nstd = [0.5]\n"
    (tmp_path / "a.toml").write_text(head + '[exits]\nearly = "kind"\n')
    assert read_spec(tmp_path / "a.toml").exits == {"early": "kind"}
    (tmp_path / "b.toml").write_text(head + "[exits]\nearly = 3\n")
    with pytest.raises(UserError, match="early"):
        read_spec(tmp_path / "b.toml")


def test_a_folder_from_before_exits_is_still_read(tiny_model: Path) -> None:
    info = load_model(tiny_model).info
    assert (info.exits, info.exit_samples) == ((), ())

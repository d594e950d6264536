"""The families of networks that users bring: exported by the real exporter, and every listed split proved."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import families  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import pytest
import torch

from export.exported import ExportRequest
from export.exporter import export_model
from export.inputs import InputRequest
from export.model import Model, load_model
from export.splits import list_splits
from export.verify import LIMIT, verify_all, verify_cut
from splitboard.cli.main import run
from splitboard.cli.splits import seeded_inputs

SOURCE = Path(families.__file__).parent
FULL_SIZE = {"vgg16_two_heads": 224, "efficientnet_b0_two_heads": 224}
"""Those whose natural bottlenecks are known at the size that the papers use."""

TASKS = {
    "unet": ["depth", "seg"],
    "vit": ["output_0", "output_1"],
    "two_inputs": ["kind", "state"],
    "depths": ["coarse", "fine", "middle"],
    "nested": ["det.box", "det.score", "aux.0", "aux.1"],
    "as_dataclass": ["mean", "spread"],
    "shared": ["output_0", "output_1"],
    "two_scales": ["output_0", "output_1", "output_2"],
    "reduced_mean": ["flat", "kept"],
}
"""In the order in which the model returns them; all others have the heads left and right."""


LARGE = {"vgg16_two_heads", "resnet18_two_heads", "mobilenet_v3_small_two_heads", "efficientnet_b0_two_heads"}
"""Their exports and proofs take a minute together. Each proves what the smaller ones prove, on a published network."""


def each(names: Iterable[str]) -> list[Any]:
    """A case per family."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in names]


def inputs_of(name: str) -> dict[str, tuple[int, ...]]:
    size = FULL_SIZE.get(name)
    return {
        key: (1, 3, size, size) if size is not None and len(shape) == 4 else shape
        for key, shape in families.INPUTS[name].items()
    }


def _export(name: str, folder: Path) -> Path:
    checkpoint = folder / f"{name}.pt"
    with families.unhurried():
        torch.save(getattr(families, name)().state_dict(), checkpoint)
    inputs = tuple(InputRequest(key, shape) for key, shape in inputs_of(name).items())
    request = ExportRequest(checkpoint, name, f"families:{name}", inputs, source_folder=SOURCE)
    export_model(request, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def folder_of(quick_exports: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model folder of a family, exported when it is first asked for."""
    folder = tmp_path_factory.mktemp("families")
    return functools.cache(lambda name: _export(name, folder))


@pytest.fixture(scope="module")
def model_of(folder_of: Callable[[str], Path]) -> Callable[[str], Model]:
    return functools.cache(lambda name: load_model(folder_of(name)))


@pytest.fixture(scope="module")
def foreign(foreign_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """From another framework's exporter."""
    target = tmp_path_factory.mktemp("foreign") / "model"
    inputs = (InputRequest(None, (1, 43844, 1)),)
    request = ExportRequest(foreign_onnx, "foreign", inputs=inputs, tasks="onset,note,contour")
    export_model(request, target)
    return load_model(target)


def check_every_split(model: Model) -> int:
    """Proves every listed cut at once, and each tenth by running both written halves; returns how many."""
    splits, sample = list_splits(model), seeded_inputs(model)
    errors = verify_all(model.graph, splits.cuts, sample)
    assert errors.keys() == splits.cuts.keys()
    for found in errors.values():
        assert list(found) == model.graph.outputs
        assert max(found.values()) <= LIMIT
    for cut in list(splits.cuts.values())[::10]:
        assert max(verify_cut(model.graph, cut, [sample]).values()) <= LIMIT
    return len(errors)


@pytest.mark.parametrize("name", each(families.INPUTS))
def test_every_split_of_every_family_is_the_whole(model_of: Callable[[str], Model], name: str) -> None:
    model = model_of(name)
    assert [task.name for task in model.info.tasks] == model.graph.outputs == TASKS.get(name, ["left", "right"])
    assert {one.name: one.shape for one in model.info.inputs} == inputs_of(name)
    assert max(one.relative for one in model.info.parity.values()) <= 1e-4
    assert min(one.cosine for one in model.info.parity.values()) > 0.9999
    assert check_every_split(model) >= 3


def test_every_split_of_a_foreign_file_is_the_whole(foreign: Model) -> None:
    assert foreign.graph.outputs == ["onset", "note", "contour"]
    assert check_every_split(foreign) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("efficientnet_b0_two_heads", 15), ("vgg16_two_heads", 5)])
def test_natural_blocks_are_those_of_the_paper(
    folder_of: Callable[[str], Path], name: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["splits", str(folder_of(name)), "--natural", "--blocks", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["splits"]
    assert len(shown) == count
    assert all(point["natural"] and point["block"] for point in shown)
    # The ids are those of the whole list.
    assert run(["splits", str(folder_of(name)), "--json"]) == 0
    everything = {point["id"]: point for point in json.loads(capsys.readouterr().out)["splits"]}
    assert all(everything[point["id"]] == point for point in shown)


BLOCKS = {
    "resnet18_two_heads": [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)],
    "mobilenet_v3_small_two_heads": [str(i) for i in range(1, 12)],
    "efficientnet_lite0_two_heads": [f"blocks.{i}" for i in range(16)],
    "vit": [f"blocks.{i}" for i in range(3)],
    "depths": [f"blocks.{i}" for i in range(2)],
}


@pytest.mark.parametrize("name", each(BLOCKS))
def test_blocks_carry_the_users_names(model_of: Callable[[str], Model], name: str) -> None:
    from export.choice import choose

    model = model_of(name)
    splits = list_splits(model)
    prefix = "backbone." if name.endswith("two_heads") else ""
    blocks = [point.id for point in splits.points if point.block and len(point.crossing) == 1]
    named = choose(model, splits, ",".join(prefix + scope for scope in BLOCKS[name]))
    assert [choice.point.id for choice in named] == blocks


def test_multi_tensor_cuts_are_those_of_the_architecture(model_of: Callable[[str], Model]) -> None:
    unet = {point.scope for point in list_splits(model_of("unet")).points}
    assert "encoder.0 + encoder.1 + encoder.2 + bottom" in unet
    assert "encoder.0 + decoder.1" in unet
    depths = {point.scope for point in list_splits(model_of("depths")).points}
    assert "blocks.1 + blocks.2 + blocks.3" in depths
    scales = {point.scope for point in list_splits(model_of("two_scales")).points}
    assert "stages.0 + stages.1 + stages.2" in scales
    two = [point for point in list_splits(model_of("two_inputs")).points if "meta" in point.scope.split(" + ")]
    assert two
    assert all(any(one.name == "meta" for one in point.crossing) for point in two)


def test_a_head_that_leaves_early_can_answer_on_the_edge(model_of: Callable[[str], Model]) -> None:
    from export.choice import choose, place_tasks

    model = model_of("depths")
    splits = list_splits(model)
    point = next(p for p in splits.points if p.scope == "blocks.1 + blocks.2")
    assert "coarse" in point.local_tasks
    (placed,) = place_tasks(model, splits, choose(model, splits, point.id), ["coarse"])
    assert [one.scope for one in placed.point.crossing] == ["blocks.2"]
    errors = verify_cut(model.graph, placed.cut, [seeded_inputs(model)])
    assert list(errors) == ["coarse", "fine", "middle"]
    assert max(errors.values()) <= LIMIT


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two_inputs", 'has the inputs "image, meta"; a bundle feeds one image'),
        ("unet", 'task "depth" gives "1x1x32x32"; a bundle serves class scores'),
        ("depths", "declares no preprocessing"),
    ],
)
def test_what_the_runtimes_cannot_run_is_refused_before_any_work(
    folder_of: Callable[[str], Path], name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--board", "rpi5", "--split", "all", "--calib", str(tmp_path), "-o", str(tmp_path / "bundle")]
    assert run(["build", str(folder_of(name)), *options]) == 3
    said = capsys.readouterr().err
    assert words in said.splitlines()[0]
    assert "Try: " in said
    assert not (tmp_path / "bundle").exists()


def test_means_over_the_image_become_global_average_pools(model_of: Callable[[str], Model]) -> None:
    kinds = [node.op_type for node in model_of("reduced_mean").graph.nodes]
    assert kinds.count("GlobalAveragePool") == 2
    assert "ReduceMean" not in kinds


def test_the_model_itself_still_gives_what_torch_gives(model_of: Callable[[str], Model]) -> None:
    """Not by the exporter's own parity check: the folder as written, on another input."""
    from export.reference import reference_session

    model = model_of("depths")
    net = families.depths()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        expected = net(image)
    names = model.graph.outputs
    actual = reference_session(model.graph.model).run(names, {"image": image.numpy()})
    for name, ours in zip(names, actual, strict=True):
        np.testing.assert_allclose(ours, expected[name].numpy(), rtol=1e-4, atol=1e-5)

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import branches
import pytest
from serving import Running, running_server


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Running]:
    with running_server(tiny_bundle) as running:
        yield running


@pytest.fixture(scope="session")
def placed_bundle(tiny_model: Path, tiny_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `branches` with the head of "size" on the board at one split, that of "shape" at another."""
    from boards.kinds import this_machine
    from calib.dataset import MOST_IMAGES, calibration_set
    from export.choice import choose, place_tasks
    from export.graph import Graph
    from export.model import Model, load_model
    from export.splits import list_splits
    from splitboard.cli.build import BuildRequest, build_bundle
    from splitboard.contract.bundle import Task

    tasks = tuple(Task(name, labels) for name, labels in branches.TASKS.items())
    info = dataclasses.replace(load_model(tiny_model).info, name="branches", tasks=tasks, scopes={}, sequences=())
    model = Model(info, Graph(branches.make()))
    splits = list_splits(model)
    chosen = []
    for task, crossing in (("size", {"image", "early", "late"}), ("shape", {"image", "early", "late.mean", "shape"})):
        (point,) = (point for point in splits.proper if {one.name for one in point.crossing} == crossing)
        chosen += place_tasks(model, splits, choose(model, splits, point.id), [task])
    target = tmp_path_factory.mktemp("bundle") / "branches"
    with calibration_set(str(tiny_samples), 1, MOST_IMAGES, target) as data:
        build_bundle(model, splits, BuildRequest(chosen, this_machine()), data, target, lambda what, done, total: None)
    return target

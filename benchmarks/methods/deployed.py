"""A trained network on its way to the board: exported, cut, quantised, judged on the test images as it is deployed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from commands import splitboard
from jobs import Store
from trainings import WEIGHTS, Training

from splitboard.cli.train_files import factory_text, spec_text
from splitboard.contract.bundle import load_bundle
from splitboard.contract.samples import save_samples
from splitboard.zoo.data.dataset import DataSet, Part
from splitboard.zoo.networks import make

BOARD = "linux-x86-64"
N_CALIBRATION = 200
BEHIND, LOCAL = "behind the backbone", "local"
"""The cut of MTL-Split, and none."""


@dataclass(frozen=True)
class Deployment:
    """One bundle.

    Attributes:
        training: of its network.
        cuts: modules of the backbone that it is cut behind, the last one last.
        precision: of its edge half.
    """

    training: Training
    cuts: tuple[str, ...]
    precision: str = "int8"

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.training.name}.{self.precision}"

    def bundle(self, store: Store) -> Path:
        """Its folder."""
        return store.path(f"{self.name}.bundle")


def test_images(data: DataSet, store: Store) -> Path:
    """The test part as a file for the command line, written once."""
    return part_file(data.test, store.path(f"{data.name}.test.npz"))


def part_file(part: Part, file: Path, n: int | None = None) -> Path:
    """The first images of a part, all if ``n`` is ``None``, as a file for the command line; written once."""
    if not file.exists():
        rows = np.arange(len(part.images) if n is None else min(n, len(part.images)))
        beside = file.with_name(f"{os.getpid()}.{file.name}")  # another process may want the same file at this moment
        save_samples(beside, part.images.read(rows), {task: labels[rows] for task, labels in part.labels.items()})
        beside.replace(file)
    return file


def exported(training: Training, trainings: Store, store: Store) -> Path:
    """The model folder of a training, made once."""
    folder = store.path(f"{training.name}.model")
    if not folder.exists():
        name = training.name.replace("-", "_")
        data = training.data.load()
        outputs = make(training.network).outputs
        spec = spec_text(training.recipe.preprocessing(data.source_channels), data.classes, outputs)
        store.path(f"{name}.toml").write_text(spec, encoding="utf-8")
        store.path(f"{name}.py").write_text(factory_text(training.network), encoding="utf-8")
        size = training.network.size
        splitboard(
            *("export", trainings.path(training.name + WEIGHTS), "--model", f"{name}:make", "--path", store.root),
            *("--spec", store.path(f"{name}.toml"), "--input", f"1x3x{size}x{size}", "--name", name, "-o", folder),
        )
    return folder


def built(trainings: Store, deployment: Deployment, store: Store) -> Mapping[str, Any]:
    """Builds the bundle.

    Returns:
        ``edge_bytes`` of the edge files, ``server_bytes`` by split, ``scopes`` by split, and what the build warned of.
    """
    training = deployment.training
    data = training.data.load()
    model = exported(training, trainings, store)
    calibration = part_file(data.train, store.path(f"{data.name}.calibration.npz"), N_CALIBRATION)
    bundle = deployment.bundle(store)
    cuts = ",".join(f"backbone.{module}" for module in deployment.cuts)
    told = splitboard(
        *("build", model, "--board", BOARD, "--split", cuts, "--precision", deployment.precision),
        *("--calib", calibration, "-o", bundle),
    )
    return {
        "edge_bytes": told["edge_bytes"],
        "server_bytes": {file.stem: file.stat().st_size for file in sorted((bundle / "server").glob("*.onnx"))},
        "scopes": {split.id: split.scope for split in load_bundle(bundle).splits},
        "warnings": told["warnings"],
    }


def judged(trainings: Store, deployment: Deployment, store: Store) -> Mapping[str, Any]:
    """Builds the bundle, and runs `splitboard check` on the test images: cut behind the backbone, and local only.

    Returns:
        As `built`, and ``accuracy`` by `BEHIND` or `LOCAL` and by task: of the float model, and deployed.
    """
    found = built(trainings, deployment, store)
    *_, behind, local = found["scopes"]  # in the network's order
    names = {behind: BEHIND, local: LOCAL}
    test = test_images(deployment.training.data.load(), store)
    bundle = deployment.bundle(store)
    lines = splitboard("check", bundle, "--data", test, "--splits", ",".join(names), verdicts=(0, 1, 2))
    accuracy: dict[str, dict[str, tuple[float, float]]] = {}
    for one in lines[:-1]:  # the last line is of the whole
        accuracy.setdefault(names[one["split"]], {})[one["task"]] = (one["reference"], one["deployed"])
    return {**found, "accuracy": accuracy}

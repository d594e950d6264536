"""What several folders of tests share: a real model folder and bundle of a tiny network, built once a session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

TINY_SOURCE = Path(__file__).parent / "models"


def synthetic_images(count: int, size: int = 40, channels: int = 1) -> NDArray[np.uint8]:
    """Smooth random images: ``[count, size, size, channels]``, uint8."""
    random = np.random.default_rng(3)
    coarse = random.integers(0, 256, (count, 5, 5, channels)).astype(np.float64)
    fine = np.kron(coarse, np.ones((1, size // 5, size // 5, 1)))
    return np.clip(fine + random.normal(0, 12, fine.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 grey images of 40x40 with labels for both tasks."""
    from splitboard.contract.samples import save_samples

    path = tmp_path_factory.mktemp("samples") / "tiny.npz"
    images = synthetic_images(120)
    random = np.random.default_rng(4)
    save_samples(path, images, {"shape": random.integers(0, 2, 120), "colour": random.integers(0, 3, 120)})
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network's state dict."""
    import sys

    from safetensors.torch import save_file

    sys.path.insert(0, str(TINY_SOURCE))
    try:
        from tiny import make  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.remove(str(TINY_SOURCE))
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_file(make().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder."""
    from export.checkpoint import export_checkpoint
    from export.spec import ModelSpec
    from splitboard.contract.preprocess import Preprocessing

    target = tmp_path_factory.mktemp("model") / "tiny"
    spec = ModelSpec(
        Preprocessing(height=32, width=32, source_channels=1, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7)),
        {"shape": ("round", "square")},
    )
    export_checkpoint(
        tiny_checkpoint, "tiny:make", (1, 3, 32, 32), spec, target, name="tiny", source_folder=TINY_SOURCE
    )
    return target


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: Path, tiny_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle: remote only, two cuts, local only."""
    from boards.kinds import this_machine
    from export.model import load_model
    from export.splits import choose_splits, list_splits
    from splitboard.cli.build import build_bundle
    from splitboard.contract.samples import load_samples

    model = load_model(tiny_model)
    points = list_splits(model.graph, model.info.scopes, model.info.preprocessing)
    chosen = choose_splits(points, "blocks.0,blocks.1")
    target = tmp_path_factory.mktemp("bundle") / "tiny"
    samples = load_samples(tiny_samples, channels=1)
    build_bundle(model, points, chosen, samples, this_machine(), target, lambda what, done, total: None)
    return target

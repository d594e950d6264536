"""The gate's metrics, each against scikit-learn's own function, on all samples and on resamples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn import metrics as sk

from calib.gate.metrics import METRICS, effective_samples
from calib.gate.own_metric import own_pair
from splitboard.contract.errors import UserError

Array = NDArray[Any]
N = 90


def _classes() -> tuple[Array, Array]:
    random = np.random.default_rng(1)
    truth = random.choice(4, N, p=[0.6, 0.2, 0.15, 0.05])
    return truth, (random.normal(0, 1, (N, 4)) + 1.2 * np.eye(4)[truth]).astype(np.float32)


def _numbers() -> tuple[Array, Array]:
    random = np.random.default_rng(2)
    truth = random.normal(0, 3, (N, 2))
    return truth, (truth + random.normal(0, [0.5, 2.0], (N, 2))).astype(np.float32)


def _maps() -> tuple[Array, Array]:
    random = np.random.default_rng(3)
    truth = random.integers(0, 3, (N, 6, 5))  # a class that the model has and no map holds
    scores = random.normal(0, 1, (N, 4, 6, 5)) + 2 * np.moveaxis(np.eye(4)[truth], -1, 1)
    return truth, scores.astype(np.float32)


def _mean_average_precision(truth: Array, scores: Array) -> float:
    shares = softmax(scores.astype(np.float64), axis=1)
    return float(np.mean([sk.average_precision_score(truth == k, shares[:, k]) for k in np.unique(truth)]))


REFERENCES: dict[str, tuple[Callable[[], tuple[Array, Array]], Callable[[Array, Array], float]]] = {
    "top1": (_classes, lambda truth, scores: sk.accuracy_score(truth, scores.argmax(1))),
    "balanced_accuracy": (_classes, lambda truth, scores: sk.balanced_accuracy_score(truth, scores.argmax(1))),
    "map": (_classes, _mean_average_precision),
    "mae": (_numbers, lambda truth, values: sk.mean_absolute_error(truth, values)),
    "rmse": (_numbers, lambda truth, values: sk.root_mean_squared_error(truth, values)),
    "miou": (_maps, lambda truth, s: sk.jaccard_score(truth.ravel(), s.argmax(1).ravel(), average="macro")),
}


def test_every_metric_has_a_reference() -> None:
    assert REFERENCES.keys() == METRICS.keys()


@pytest.mark.parametrize("name", METRICS)
def test_as_scikit_learn_computes_it(name: str) -> None:
    make, reference = REFERENCES[name]
    truth, outputs = make()
    over = METRICS[name].over
    assert over is not None
    values = over(truth, outputs)
    assert float(values(np.arange(N))) == pytest.approx(reference(truth, outputs), rel=1e-6)
    rows = np.random.default_rng(4).integers(0, N, (6, N))
    expected = [reference(truth[row], outputs[row]) for row in rows]
    assert len(set(expected)) > 1
    assert values(rows) == pytest.approx(expected, rel=1e-6)
    left_out = np.arange(N - 1)
    assert float(values(left_out)) == pytest.approx(reference(truth[:-1], outputs[:-1]), rel=1e-6)


def test_probabilities_are_ranked_as_they_are() -> None:
    truth, scores = _classes()
    shares = softmax(scores.astype(np.float64), axis=1)
    over = METRICS["map"].over
    assert over is not None
    everything = np.arange(N)
    assert float(over(truth, shares)(everything)) == pytest.approx(float(over(truth, scores)(everything)))


def test_a_lost_sample_of_the_rarest_class_weighs_most() -> None:
    truth = np.repeat([0, 1, 2], [60, 30, 10])
    right = np.eye(3)[truth]
    wrong = right.copy()
    wrong[-1] = [1, 0, 0]
    over = METRICS["balanced_accuracy"].over
    assert over is not None
    everything = np.arange(100)
    drop = float(over(truth, right)(everything)) - float(over(truth, wrong)(everything))
    assert drop == pytest.approx(1 / effective_samples(METRICS["balanced_accuracy"], truth))
    assert effective_samples(METRICS["top1"], truth) == 100


OWN = {
    "metrics.py": "import numpy as np\n\n\ndef recall(truth, outputs):\n"
    "    return np.mean(outputs.argmax(1)[truth == 0] == 0)\n",
    # Named as a package of ours, and it prints.
    "export.py": "import calib\n\nprint('hello')\n\n\ndef right(truth, outputs):\n"
    "    return calib.WEIGHT * (truth == outputs.argmax(1)).mean()\n",
    "calib.py": "WEIGHT = 2.0\n",
    "broken.py": "def raises(truth, outputs):\n    raise KeyError('no such class')\n\n\n"
    "def text(truth, outputs):\n    return 'high'\n\n\n"
    "def nan(truth, outputs):\n    return float('nan')\n\n\nNUMBER = 3\n",
    "syntax.py": "def metric(:\n",
    "leaves.py": "import sys\n\nsys.exit(0)\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in OWN.items():
        (tmp_path / name).write_text(code)
    return tmp_path


def test_own_metric_on_every_row_and_both_models(folder: Path) -> None:
    truth, deployed = _classes()
    reference = np.eye(4)[truth].astype(np.float32)
    rows = np.random.default_rng(4).integers(0, N, (2, 3, N))
    with own_pair("metrics:recall", folder, truth, reference, deployed) as pair:
        values = pair(rows)
    assert values.shape == (2, 3, 2)
    assert (values[..., 0] == 1).all()
    for row, value in zip(rows.reshape(6, N), values[..., 1].ravel(), strict=True):
        assert value == pytest.approx(sk.recall_score(truth[row] == 0, deployed[row].argmax(1) == 0))


def test_modules_called_like_ours_are_theirs(folder: Path) -> None:
    truth, outputs = _classes()
    with own_pair("export:right", folder, truth, outputs, outputs) as pair:
        expected = 2 * sk.accuracy_score(truth, outputs.argmax(1))
        assert pair(np.arange(N)) == pytest.approx([expected, expected])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("metrics:precision", "precision"),
        ("nowhere:metric", "nowhere"),
        ("metrics", "metrics"),
        ("broken:raises", "broken.py:2"),
        ("broken:text", "'high'"),
        ("broken:nan", "nan"),
        ("broken:NUMBER", "int"),
        ("syntax:metric", "syntax.py:1"),
        ("leaves:metric", "leaves.py:3"),
    ],
)
def test_own_metric_refused_in_one_line(folder: Path, name: str, words: str) -> None:
    truth, outputs = _classes()
    with own_pair(name, folder, truth, outputs, outputs) as pair, pytest.raises(UserError) as refused:
        pair(np.arange(N))
    assert words in refused.value.message
    assert refused.value.tries

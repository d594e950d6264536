"""How sure an exit is, compared with scipy, and what the engines give for one, compared with the interpreters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from scipy.special import softmax
from scipy.stats import entropy

from runtime_edge.engines.engine import FakeEngine
from runtime_edge.engines.litert import LiteRtEngine
from runtime_edge.loop.exits import measured, sure
from splitboard.contract.bundle import load_bundle
from splitboard.contract.exits import ExitRule
from splitboard.contract.preprocess import edge_image, prepare
from splitboard.contract.samples import load_samples


def a_rule(measure: str, threshold: float | None) -> ExitRule:
    return ExitRule("s", "e", "t", measure, threshold, None, 0.01, 0.95, 400, 0.5, 0.8, 0.7, 0.9, 0.8, 0.005)


@pytest.fixture
def scores() -> np.ndarray:
    """Rows of class scores, among them ones whose exponentials overflow and ones that are alike."""
    random = np.random.default_rng(5)
    rows = [
        *random.normal(0, 3, (200, 4)),
        [1000.0, -1000.0, 0.0, 999.0],
        [0.0] * 4,
        [-900.0, -1000.0, -1000.0, -2000.0],
    ]
    return np.array(rows, np.float32)


def test_measures_are_those_of_scipy(scores: np.ndarray) -> None:
    probabilities = softmax(scores.astype(np.float64), axis=1)
    np.testing.assert_allclose(measured(scores, "max_softmax"), probabilities.max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(measured(scores, "entropy"), entropy(probabilities, axis=1), atol=1e-12)


@pytest.mark.parametrize("threshold", [0.3, 0.9, 0.999])
def test_sure_is_above_the_largest_probability_or_below_the_entropy(scores: np.ndarray, threshold: float) -> None:
    probabilities = softmax(scores.astype(np.float64), axis=1)
    by_max = [sure(row[None], a_rule("max_softmax", threshold)) for row in scores]
    by_entropy = [sure(row[None], a_rule("entropy", threshold)) for row in scores]
    assert by_max == list(probabilities.max(axis=1) > threshold)
    assert by_entropy == list(entropy(probabilities, axis=1) < threshold)
    assert 0 < sum(by_max) < len(scores)
    assert 0 < sum(by_entropy) < len(scores)


@pytest.mark.parametrize("measure", ["max_softmax", "entropy"])
def test_a_rule_without_threshold_and_scores_that_are_no_numbers_never_exit(measure: str) -> None:
    certain = np.array([[50.0, -50.0]], np.float32)
    anything = a_rule(measure, 0.0 if measure == "max_softmax" else 9.0)
    assert sure(certain, anything)
    assert not sure(certain, a_rule(measure, None))
    with np.errstate(invalid="ignore"):
        for bad in (np.nan, np.inf):
            assert not sure(np.array([[bad, 0.0]], np.float32), anything)


def test_litert_gives_exits_as_the_interpreter_does(exit_bundle: Path, exit_samples: Path) -> None:
    bundle = load_bundle(exit_bundle)
    splits = [split for split in bundle.splits if split.exits]
    assert [len(split.exits) for split in splits] == [2, 4]
    images = load_samples(exit_samples / "held.npz", 1).images[:3]
    inputs = edge_image(prepare(images, bundle.preprocessing), bundle.input_table())
    interpreter = Interpreter(model_path=str(exit_bundle / bundle.edge_files[0]))
    with LiteRtEngine(exit_bundle, bundle, splits) as engine:
        for split in splits:
            runner = interpreter.get_signature_runner(split.edge_signature)
            details = runner.get_output_details()
            assert set(details) == {*split.exits, *(tensor.name for tensor in split.tensors)}
            for image in inputs:
                found, expected = engine.infer(split.id, image[None]), runner(image=image[None])
                for one in bundle.exits_of(split):
                    scale, zero_point = details[one.output]["quantization"]
                    real = (expected[one.output].astype(np.float64) - zero_point) * scale
                    assert found[one.output].dtype == np.float32
                    assert found[one.output].shape == (1, len(bundle.task(one.task).labels))
                    np.testing.assert_allclose(found[one.output], real, rtol=1e-6)
                    assert np.ptp(real) > 0


def test_the_fake_gives_exits_too(exit_bundle: Path) -> None:
    bundle = load_bundle(exit_bundle)
    split = bundle.splits[2]
    with FakeEngine(bundle, bundle.splits) as engine:
        found = engine.infer(split.id, np.zeros(bundle.edge_input.shape, np.int8))
    assert {name: found[name].shape[1] for name in split.exits} == {
        one.output: len(bundle.task(one.task).labels) for one in bundle.exits_of(split)
    }
    assert all(found[name].dtype == np.float32 for name in split.exits)

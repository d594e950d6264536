"""Exit heads compared with scikit-learn and torch; thresholds with a search by brute force and with simulated sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from calib.exits.fitting import FOLDS, INVERSE_PENALTIES, features, fit
from calib.exits.heads import Head, with_heads
from calib.exits.thresholds import Answers, Target, candidates, fit_rule, keeping, needed_images
from calib.gate.statistics import paired_limits
from export.graph import Graph
from export.model import Model, load_model
from export.reference import reference_session
from runtime_edge.loop.exits import sure
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise, prepare
from splitboard.contract.samples import Samples, load_samples


def reference(values: np.ndarray, labels: np.ndarray, inverse_penalty: float) -> np.ndarray:
    """What scikit-learn says of the same images, ``[n, classes]``."""
    scaler = StandardScaler().fit(values)
    model = LogisticRegression(C=inverse_penalty, max_iter=10_000).fit(scaler.transform(values), labels)
    return np.asarray(model.predict_proba(scaler.transform(values)))


@pytest.mark.parametrize("n_classes", [2, 3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_head_says_what_scikit_learn_says(n_classes: int) -> None:
    data = load_digits() if n_classes != 3 else load_wine()
    rows = data.target < n_classes
    values, labels = data.data[rows].astype(np.float32), data.target[rows].astype(np.int64)
    found = fit(values, labels, [str(i) for i in range(n_classes)], "digit")
    assert found.weight.shape == (n_classes, values.shape[1])
    assert found.inverse_penalty in INVERSE_PENALTIES
    ours = softmax(values.astype(np.float64) @ found.weight.T.astype(np.float64) + found.bias, axis=1)
    np.testing.assert_allclose(ours, reference(values.astype(np.float64), labels, found.inverse_penalty), atol=1e-4)
    assert 0.9 < found.accuracy <= 1


def test_the_penalty_is_chosen_by_what_was_left_out() -> None:
    random = np.random.default_rng(2)
    noise = random.normal(0, 1, (60, 40)).astype(np.float32)
    labels = random.integers(0, 2, 60)
    useless = fit(noise, labels, ["a", "b"], "coin")
    assert useless.inverse_penalty == min(INVERSE_PENALTIES)
    clear = fit(np.c_[noise[:, :1], labels * 9.0].astype(np.float32), labels, ["a", "b"], "step")
    assert clear.inverse_penalty == max(INVERSE_PENALTIES)
    assert clear.accuracy == 1


def test_a_class_with_too_few_images_and_a_strange_class_are_refused() -> None:
    values, labels = np.zeros((20, 2), np.float32), np.array([0] * 16 + [1] * 4)
    with pytest.raises(UserError, match='"kind" has 4 images of the class "b"') as caught:
        fit(values, labels, ["a", "b"], "kind")
    assert str(FOLDS) in caught.value.tries[0]
    with pytest.raises(UserError, match='no class "1"'):
        fit(values, labels, ["a"], "kind")


@pytest.fixture(scope="module")
def training(exit_samples: Path) -> Samples:
    return load_samples(exit_samples / "train.npz", 1)


@pytest.fixture(scope="module")
def tensors(tiny_checkpoint: Path, tiny_model: Path, training: Samples) -> dict[str, np.ndarray]:
    """What torch computes behind some modules of the tiny network: by scope, ``[n, c, h, w]``."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    try:
        from tiny import make  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.pop(0)
    net = make().eval()
    net.load_state_dict(load_file(tiny_checkpoint))
    spec = load_model(tiny_model).info.declared()
    found: dict[str, np.ndarray] = {}
    for scope, module in (("stem", net.stem), ("blocks.0", net.blocks[0])):
        module.register_forward_hook(lambda _, __, value, scope=scope: found.update({scope: value.numpy()}))
    with torch.no_grad():
        net(torch.from_numpy(normalise(prepare(training.images, spec), spec)))
    return found


def test_fitted_exits_say_what_scikit_learn_says_of_torch_s_features(
    exit_model: Path, training: Samples, tensors: dict[str, np.ndarray]
) -> None:
    model = load_model(exit_model)
    assert [(one.output, one.task, one.scope) for one in model.info.exits] == [
        ("shape_exit_stem", "shape", "stem"),
        ("colour_exit_stem", "colour", "stem"),
        ("shape_exit_blocks_0", "shape", "blocks.0"),
        ("colour_exit_blocks_0", "colour", "blocks.0"),
    ]
    assert model.info.exit_samples == tuple(sorted(training.hashes))
    assert training.sha256 in model.info.changes[-1]
    session, spec = reference_session(model.whole.model), model.info.declared()
    inputs = normalise(prepare(training.images, spec), spec)
    names = [one.output for one in model.info.exits]
    runs = [session.run(names, {"image": inputs[i : i + 1]}) for i in range(len(inputs))]
    for number, one in enumerate(model.info.exits):
        ours = softmax(np.concatenate([run[number] for run in runs]).astype(np.float64), axis=1)
        values = tensors[one.scope].mean((2, 3)).astype(np.float64)
        theirs = [reference(values, training.labels[one.task], penalty) for penalty in INVERSE_PENALTIES]
        assert min(float(np.abs(ours - other).max()) for other in theirs) < 1e-3


def test_nothing_else_of_the_model_changes(tiny_model: Path, exit_model: Path) -> None:
    old, new = load_model(tiny_model), load_model(exit_model)
    assert new.graph.outputs == old.graph.outputs == ["shape", "colour"]
    assert [(n.op_type, list(n.input), list(n.output)) for n in new.graph.nodes] == [
        (n.op_type, list(n.input), list(n.output)) for n in old.graph.nodes
    ]
    assert new.graph.constants.keys() == old.graph.constants.keys()
    before, after = reference_session(old.graph.model), reference_session(new.whole.model)
    for image in np.random.default_rng(9).normal(0, 1, (4, 1, 3, 32, 32)).astype(np.float32):
        for one, other in zip(
            before.run(None, {"image": image}), after.run(["shape", "colour"], {"image": image}), strict=True
        ):
            assert one.tobytes() == other.tobytes()


def test_heads_of_one_place_share_their_pooling(exit_model: Path) -> None:
    graph = load_model(exit_model).whole
    assert sum(node.op_type == "GlobalAveragePool" for node in graph.nodes) == 3  # two places, and the model's own


def test_a_head_on_a_vector_takes_its_values(exit_model: Path, training: Samples) -> None:
    model = load_model(exit_model)
    vector = next(name for name, shape in model.graph.shapes.items() if shape == (1, 12))
    spec = model.info.declared()
    inputs = [normalise(prepare(training.images[i : i + 1], spec), spec) for i in range(30)]
    seen = features(model.graph, [vector], inputs, lambda done: None)[vector]
    fitted = fit(seen, np.arange(30) % 2, ["a", "b"], "parity")
    graph = with_heads(model.whole, [Head("parity", "mean", vector, fitted)])
    session = reference_session(graph.model)
    found = np.concatenate([session.run(["parity_exit_mean"], {"image": image})[0] for image in inputs])
    np.testing.assert_allclose(found, seen @ fitted.weight.T + fitted.bias, atol=1e-4)


def test_a_head_that_is_there_is_refused(exit_model: Path) -> None:
    model = load_model(exit_model)
    (one, *_), fitted = model.info.exits, fit(np.eye(16, dtype=np.float32), np.arange(16) % 2, ["a", "b"], "shape")
    with pytest.raises(UserError, match='has "shape_exit_stem" already'):
        with_heads(model.whole, [Head("shape", "stem", one.takes[0], fitted)])
    other = next(name for name in model.graph.producer if model.graph.shapes[name] == (1, 12, 8, 8))
    with pytest.raises(UserError, match=r'another tensor "exit_stem\.pooled"'):
        with_heads(model.whole, [Head("size", "stem", other, fitted)])


def test_the_graph_without_exits_is_the_graph(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    assert isinstance(model, Model)
    assert isinstance(model.graph, Graph)
    assert model.graph is model.whole


# Thresholds


def answers(n: int, classes: int = 3, seed: int = 0, skill: float = 2.0) -> Answers:
    """An exit that is the better the surer it is, and a split that is mostly right."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, n)
    easy = random.exponential(skill, n)
    scores = random.normal(0, 1, (n, classes)) + easy[:, None] * np.eye(classes)[truth]
    final = random.normal(0, 1, (n, classes)) + (easy + 3)[:, None] * np.eye(classes)[truth]
    return Answers(scores.astype(np.float32), final.astype(np.float32), truth)


def by_hand(found: Answers, target: Target, threshold: float) -> tuple[np.ndarray, int, int]:
    """Where the exit answers with a threshold, and what is lost and gained."""
    p = softmax(found.scores.astype(np.float64), axis=1)
    early = p.max(axis=1) > threshold if target.measure == "max_softmax" else entropy(p, axis=1) < threshold
    exit_right = found.scores.argmax(axis=1) == found.truth
    final_right = found.final.argmax(axis=1) == found.truth
    return early, int((early & final_right & ~exit_right).sum()), int((early & exit_right & ~final_right).sum())


@pytest.mark.parametrize("measure", ["max_softmax", "entropy"])
@pytest.mark.parametrize("drop", [0.01, 0.03, 0.1])
def test_thresholds_are_those_of_a_brute_force_search(measure: str, drop: float) -> None:
    target = Target(measure, drop, 0.95)
    for seed in range(4):
        found = answers(600, seed=seed)
        rule = fit_rule("s01", "early", "kind", found, target, 1)
        passing = []
        for threshold in candidates(measure, 3):
            early, lost, gained = by_hand(found, target, threshold)
            if paired_limits(lost, gained, 600, 0.95).upper > drop:
                break
            passing.append((float(early.mean()), threshold))
        rate, threshold = max(passing)
        assert rule.exit_rate == pytest.approx(rate)
        assert rate > 0
        early, lost, gained = by_hand(found, target, rule.threshold or 0.0)
        assert float(early.mean()) == pytest.approx(rate)
        assert rule.accuracy - rule.accuracy_combined == pytest.approx((lost - gained) / 600)
        assert rule.drop_upper == pytest.approx(paired_limits(lost, gained, 600, 0.95).upper)
        assert rule.drop_upper <= drop
        assert rule.accuracy_exited == pytest.approx((found.scores.argmax(axis=1) == found.truth)[early].mean())
        assert [sure(row[None], rule) for row in found.scores] == early.tolist()


@pytest.mark.parametrize("measure", ["max_softmax", "entropy"])
@pytest.mark.parametrize("classes", [2, 10])
def test_candidates_begin_with_nothing_and_end_with_everything(measure: str, classes: int) -> None:
    values = candidates(measure, classes)
    p = softmax(np.random.default_rng(3).normal(0, 2, (500, classes)), axis=1)
    shares = [(p.max(axis=1) > v if measure == "max_softmax" else entropy(p, axis=1) < v).mean() for v in values]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)


def test_more_exits_where_more_may_be_lost_and_fewer_where_several_share_the_error() -> None:
    found = answers(800)
    rates = [fit_rule("s", "e", "t", found, Target("entropy", drop, 0.95), 1).exit_rate for drop in (0.01, 0.02, 0.05)]
    assert rates[0] < rates[1] < rates[2]
    shared = [fit_rule("s", "e", "t", found, Target("entropy", 0.02, 0.95), n).exit_rate for n in (1, 3)]
    assert shared[1] < shared[0]


def test_too_few_images_are_inconclusive_and_never_exit() -> None:
    target = Target("max_softmax", 0.01, 0.95)
    # Clopper-Pearson by hand: with no change in n images the drop may still be 1 - 0.05 ** (1 / n).
    enough = next(n for n in range(1, 1000) if 1 - 0.05 ** (1 / n) <= 0.01)
    assert needed_images(target, 0.95) == enough == 299
    perfect = np.eye(2, dtype=np.float32)[np.arange(enough) % 2] * 50
    same = Answers(perfect, perfect, np.arange(enough) % 2)
    assert fit_rule("s", "e", "t", same, target, 1).exit_rate == 1
    few = Answers(perfect[1:], perfect[1:], same.truth[1:])
    rule = fit_rule("s", "e", "t", few, target, 1)
    assert (rule.threshold, rule.exit_rate, rule.accuracy_combined, rule.drop_upper) == (None, 0, 1, 0)
    assert rule.reason is not None
    assert rule.reason.startswith("inconclusive: 298 images, 299")
    assert fit_rule("s", "e", "t", same, target, 2).threshold is None


def test_a_target_that_cannot_be_met_never_exits() -> None:
    truth = np.arange(500) % 2
    wrong = np.eye(2, dtype=np.float32)[1 - truth] * 9
    rule = fit_rule("s", "e", "t", Answers(wrong, -wrong, truth), Target("max_softmax", 0.02, 0.95), 1)
    assert rule.threshold is None
    assert rule.reason == "already its surest answers may lose more than is allowed"
    assert (rule.accuracy, rule.accuracy_exit, rule.accuracy_exited) == (1, 0, None)
    assert not any(sure(row[None], rule) for row in wrong)


@pytest.mark.parametrize("measure", ["max_softmax", "entropy"])
@pytest.mark.parametrize("below", [0.012, 0.04])
def test_a_kept_accuracy_is_that_of_a_brute_force_search(measure: str, below: float) -> None:
    for seed in range(3):
        found = answers(600, seed=seed)
        own = float((found.final.argmax(axis=1) == found.truth).mean())
        kept = own - below
        rule = fit_rule("s01", "early", "kind", found, keeping(kept, found, Target(measure, 0.5, 0.95)), 2)
        passing = []
        for threshold in candidates(measure, 3):
            early, lost, gained = by_hand(found, Target(measure, 0.5, 0.95), threshold)
            if own - paired_limits(lost, gained, 600, 0.975).upper < kept:
                break
            passing.append((float(early.mean()), threshold))
        rate, threshold = max(passing)
        assert rate > 0
        assert (rule.exit_rate, rule.threshold) == (pytest.approx(rate), pytest.approx(threshold))
        assert (rule.accuracy, rule.target_drop) == (pytest.approx(own), pytest.approx(below))
        assert rule.target_accuracy == kept
        assert own - rule.drop_upper >= kept
        early, lost, gained = by_hand(found, Target(measure, 0.5, 0.95), threshold)
        assert rule.accuracy_combined == pytest.approx(own - (lost - gained) / 600)


def test_a_split_that_misses_the_accuracy_gets_no_threshold_however_good_its_exit() -> None:
    truth = np.arange(500) % 2
    right = np.eye(2, dtype=np.float32)[truth] * 9
    final = right.copy()
    final[:100] *= -1
    found = Answers(right, final, truth)
    missed = fit_rule("s", "e", "t", found, keeping(0.81, found, Target("entropy", 0.5, 0.95)), 1)
    assert missed.is_out_of_reach
    assert (missed.threshold, missed.exit_rate, missed.accuracy, missed.target_drop) == (None, 0, 0.8, 0)
    assert missed.reason == "out of reach: the split itself is below 81 %"
    just = fit_rule("s", "e", "t", found, keeping(0.8, found, Target("entropy", 0.5, 0.95)), 1)
    assert not just.is_out_of_reach
    assert (just.threshold, just.target_drop) == (None, 0)
    assert just.reason == "inconclusive: nothing may be lost, which no number of images shows"
    met = fit_rule("s", "e", "t", found, keeping(0.79, found, Target("entropy", 0.5, 0.95)), 1)
    assert (met.reason, met.exit_rate, met.accuracy_combined) == (None, 1, 1)


def test_no_more_is_lost_than_a_kept_accuracy_leaves() -> None:
    """What may be lost comes from the same images as the rule, and is still exceeded by one set in twenty at most."""
    everything = answers(200_000, classes=2, seed=98, skill=1.0)
    wrong = np.random.default_rng(7).random(200_000) < 0.1
    everything.final[wrong] *= -1  # a split that is itself in doubt
    p = softmax(everything.scores.astype(np.float64), axis=1).max(axis=1)
    drop = everything.final_right.astype(int) - everything.exit_right.astype(int)
    kept = float(everything.final_right.mean()) - 0.03
    random, broken, fitted, sets = np.random.default_rng(12), 0, 0, 120
    for _ in range(sets):
        rows = random.choice(len(p), 500, replace=False)
        some = Answers(everything.scores[rows], everything.final[rows], everything.truth[rows])
        target = keeping(kept, some, Target("max_softmax", 0.5, 0.95))
        rule = fit_rule("s", "e", "t", some, target, 1)
        if rule.threshold is not None:
            fitted += 1
            broken += float(drop[p > rule.threshold].sum() / len(p)) > target.drop
    assert fitted > sets / 2
    assert broken <= 13  # binomial, as below


def test_the_target_holds_beyond_the_held_out_images() -> None:
    """Of many held-out sets, those whose rule loses more than was allowed on all images are about one in twenty."""
    target = Target("max_softmax", 0.03, 0.95)
    everything = answers(200_000, classes=2, seed=99, skill=1.0)
    p = softmax(everything.scores.astype(np.float64), axis=1).max(axis=1)
    drop = everything.final_right.astype(int) - everything.exit_right.astype(int)
    order = np.argsort(-p)
    lost = np.cumsum(drop[order]) / len(drop)
    assert lost[-1] > 2 * target.drop  # there is something to get wrong
    random, broken, sets = np.random.default_rng(11), 0, 120
    for _ in range(sets):
        rows = random.choice(len(p), 500, replace=False)
        some = Answers(everything.scores[rows], everything.final[rows], everything.truth[rows])
        rule = fit_rule("s", "e", "t", some, target, 1)
        if rule.threshold is not None:
            broken += float(drop[p > rule.threshold].sum() / len(p)) > target.drop
    # Binomial: with a true rate of 5.6 %, more than 13 of 120 come in less than 1 of 100 runs.
    assert broken <= 13

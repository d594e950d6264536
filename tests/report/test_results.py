"""Results from records: accuracy against scikit-learn, the JSON keys, the gate and the refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from splitboard.contract.bundle import Bundle
from splitboard.contract.errors import Inconclusive, UserError
from splitboard.contract.record import FLOAT_REFERENCE, RunRecord
from splitboard.report.results import check_accuracy, demo_result, result_json, summarise

Records = Callable[..., list[RunRecord]]

SPLIT_KEYS = {
    "id", "scope", "kind", "natural", "board", "emulated", "inconclusive", "payload_bytes", "n", "accuracy",
    "total_ms_p50_low", "total_ms_p50_high", "energy_j", "energy_above_idle_j", "energy_source", "energy_reason",
    "energy_detail",
} | {
    f"{span}_ms_p{percent}"
    for span in (
        "read", "pre", "edge", "encode", "serialise", "link", "queue", "decode", "server", "post", "total",
    )
    for percent in (50, 95)
}  # fmt: skip


def test_percentiles_are_those_of_the_raw_samples(records: list[RunRecord]) -> None:
    record = records[2]
    (result,) = (split for split in summarise(records, None).splits if split.id == record.split)
    assert result.edge_ms_p95 == pytest.approx(np.percentile(record.spans_ns["edge"], 95) / 1e6)
    assert result.total_ms_p50 == pytest.approx(np.percentile(record.total_ns, 50) / 1e6)
    there = np.sum([record.spans_ns[span] for span in ("queue", "decode", "server")], axis=0)
    assert result.server_ms_p50 == pytest.approx(np.percentile(there, 50) / 1e6)
    assert result.queue_ms_p50 == pytest.approx(np.percentile(record.spans_ns["queue"], 50) / 1e6)


def test_order_and_ends(records: list[RunRecord], bundle: Bundle) -> None:
    splits = summarise(records[::-1], bundle).splits
    assert [split.id for split in splits] == [split.id for split in bundle.splits]
    assert [split.kind for split in splits] == ["remote", "split", "split", "split", "split", "local"]
    assert splits[0].edge_ms_p50 == 0.0
    assert splits[-1].link_ms_p95 == 0.0


def test_accuracy_is_scikit_learns(records: list[RunRecord]) -> None:
    rng = np.random.default_rng(3)
    n, classes = 200, 4

    def relabelled(record: RunRecord) -> RunRecord:
        scores = np.random.default_rng(len(record.scope)).normal(size=(n, classes))
        return replace(record, outputs={"kind": tuple(map(tuple, scores.tolist()))}, labels={"kind": truth})

    truth = tuple(rng.integers(0, classes, n).tolist())
    reference, deployed = relabelled(records[0]), relabelled(records[2])
    # The reference holds the same images in another order.
    order = rng.permutation(n).tolist()
    shuffled = replace(
        reference,
        sample_ids=tuple(reference.sample_ids[i] for i in order),
        outputs={"kind": tuple(reference.outputs["kind"][i] for i in order)},
        labels={"kind": tuple(truth[i] for i in order)},
    )
    summary = summarise([shuffled, deployed], None)
    exact, answers = (np.argmax(record.outputs["kind"], axis=1) for record in (reference, deployed))
    accuracy = summary.splits[0].accuracy["kind"]
    assert accuracy.float_ == pytest.approx(accuracy_score(truth, exact))
    assert accuracy.int8 == pytest.approx(accuracy_score(truth, answers))
    (detail,) = summary.comparisons
    assert detail.balanced_int8 == pytest.approx(balanced_accuracy_score(truth, answers))
    assert detail.balanced_float == pytest.approx(balanced_accuracy_score(truth, exact))
    assert [one.int8 for one in detail.classes] == pytest.approx(recall_score(truth, answers, average=None))
    assert detail.n_disagree == int((exact != answers).sum())
    assert accuracy.float_ is not None
    assert detail.drop_points is not None
    assert detail.n_lost is not None
    assert detail.n_gained is not None
    assert detail.drop_points == pytest.approx(100 * (accuracy.float_ - accuracy.int8))
    assert detail.drop_points == pytest.approx(100 * (detail.n_lost - detail.n_gained) / n)


def test_an_image_that_ran_twice_counts_once(records: list[RunRecord]) -> None:
    once = records[2]
    twice = replace(
        once,
        sample_ids=once.sample_ids * 2,
        spans_ns={span: samples * 2 for span, samples in once.spans_ns.items()},
        total_ns=once.total_ns * 2,
        outputs={task: scores * 2 for task, scores in once.outputs.items()},
        labels={task: truth * 2 for task, truth in once.labels.items()},
    )
    repeated, single = (summarise([records[0], record], None).splits[0] for record in (twice, once))
    assert repeated.accuracy == single.accuracy
    assert (repeated.n, single.n) == (400, 200)


def test_without_a_reference_only_the_deployed_accuracy_is_known(records: list[RunRecord]) -> None:
    result = summarise(records[1:], None).splits[0]
    assert {accuracy.float_ for accuracy in result.accuracy.values()} == {None}
    with pytest.raises(Inconclusive, match='no float reference for task "defect"'):
        check_accuracy([result], 1.0)


def test_without_labels_there_is_no_accuracy(make_records: Records) -> None:
    splits = summarise(make_records(labels={}), None).splits
    assert splits[0].accuracy == {}
    with pytest.raises(Inconclusive, match="no labelled images"):
        check_accuracy(splits, 1.0)


def test_gate_names_split_task_and_loss(records: list[RunRecord]) -> None:
    flipped = {"defect": tuple((b, a) for a, b in records[3].outputs["defect"])}
    broken = replace(records[3], outputs={**records[3].outputs, **flipped})
    failures = check_accuracy(summarise([*records[:3], broken], None).splits, 2.0)
    assert len(failures) == 1
    assert failures[0].startswith("s06 (backbone.blocks.4), defect: ")
    assert "points lost, 2 allowed (200 images)" in failures[0]


def test_a_drop_of_exactly_the_margin_passes(records: list[RunRecord]) -> None:
    result = summarise(records, None).splits[1]
    accuracy = replace(result.accuracy["defect"], float_=0.9, int8=0.89)
    edge = replace(result, accuracy={"defect": accuracy})
    assert check_accuracy([edge], 1.0) == []
    assert len(check_accuracy([edge], 0.999)) == 1


def test_energy_is_the_median_per_inference(records: list[RunRecord], with_energy: Callable[..., RunRecord]) -> None:
    result = summarise([with_energy(records[1])], None).splits[0]
    assert (result.energy_j, result.energy_source, result.energy_reason) == (1.2, "ina3221:VDD_IN", None)
    assert result.energy_above_idle_j == pytest.approx(0.8)


def test_too_few_windows_are_no_energy(records: list[RunRecord], with_energy: Callable[..., RunRecord]) -> None:
    result = summarise([with_energy(records[1], n_windows=4)], None).splits[0]
    assert (result.energy_j, result.energy_above_idle_j) == (None, None)
    assert result.energy_reason == "4 windows of at least 10 s, 5 are needed"


def test_energy_that_was_not_measured_keeps_its_reason(records: list[RunRecord]) -> None:
    result = summarise(records, None).splits[0]
    assert (result.energy_j, result.energy_reason) == (None, "no meter on this machine")


def test_emulated_times_do_not_reach_the_json(make_records: Records) -> None:
    for split in summarise(make_records(emulated=True), None).splits:
        printed = json.loads(result_json(split))
        assert all(printed[key] is None for key in printed if "_ms_" in key)
        assert printed["accuracy"]["defect"]["n"] == 200


@pytest.mark.parametrize(
    ("before", "after", "slowed"),
    [
        ("throttled=0x0", "throttled=0x0", False),
        ("throttled=0x50000", "throttled=0x50000", False),  # set since boot, not by this run
        ("throttled=0x0", "throttled=0x40000", True),
        ("throttled=0x4", "throttled=0x4", True),
        ("oc1 3", "oc1 3", False),
        ("oc1 3", "oc1 4", True),
        (None, None, False),
    ],
)
def test_a_throttled_run_is_inconclusive(
    records: list[RunRecord], before: str | None, after: str | None, slowed: bool
) -> None:
    record = records[2]
    record = replace(
        record, before=replace(record.before, throttled=before), after=replace(record.after, throttled=after)
    )
    reason = summarise([record], None).splits[0].inconclusive
    assert (reason is not None) == slowed
    assert reason is None or f'"{after}" after' in reason


def test_demo_result_has_exactly_the_published_keys(records: list[RunRecord], bundle: Bundle) -> None:
    printed = json.loads(result_json(demo_result(summarise(records, bundle), "report.html")))
    assert printed.keys() == {"splits", "local", "remote", "report"}
    assert (printed["local"]["scope"], printed["remote"]["scope"]) == ("local", "remote")
    for split in printed["splits"]:
        assert split.keys() == SPLIT_KEYS
        assert split["accuracy"].keys() == {"defect", "cell_type"}
        for accuracy in split["accuracy"].values():
            assert accuracy.keys() == {"float", "int8", "n"}
            assert accuracy["n"] == 200


def test_a_demo_without_its_ends_is_refused(records: list[RunRecord]) -> None:
    with pytest.raises(UserError, match='no "local" run'):
        demo_result(summarise(records[:-1], None), "report.html")


def _other_images(records: list[RunRecord]) -> list[RunRecord]:
    return [records[0], replace(records[1], sample_ids=("other", *records[1].sample_ids[1:]))]


def _nan(records: list[RunRecord]) -> list[RunRecord]:
    first, *rest = records[1].outputs["defect"]
    return [replace(records[1], outputs={"defect": ((float("nan"), first[1]), *rest)}, labels={})]


REFUSALS: dict[str, tuple[Callable[[list[RunRecord]], list[RunRecord]], str]] = {
    "nothing measured": (lambda r: r[:1], "no measured split"),
    "other images": (_other_images, '2 are not in both, the first is "'),
    "two bundles": (lambda r: [r[1], replace(r[2], bundle_sha256="00")], 'more than one bundle: "abab'),
    "two boards": (lambda r: [r[1], replace(r[2], board="rpi5")], 'more than one board: "local" and "rpi5"'),
    "twice": (lambda r: [r[1], replace(r[1], run_id="b")], 'split "s00" is there twice, in runs "run-0001" and "b"'),
    "schema": (lambda r: [replace(r[1], schema_version=9)], 'has schema "9"'),
    "spans": (lambda r: [replace(r[1], spans_ns={"edge": r[1].total_ns})], 'has the spans "edge"'),
    "lengths": (lambda r: [replace(r[1], total_ns=r[1].total_ns[1:])], 'has 200 samples and "199" end-to-end times'),
    "label": (lambda r: [replace(r[1], labels={"defect": (7,) * 200})], 'not fit the outputs of task "defect"'),
    "task": (lambda r: [replace(r[1], labels={"colour": (0,) * 200})], 'no outputs for task "colour"'),
    "reference task": (lambda r: [replace(r[0], outputs={}, labels={}), r[1]], "reference has no outputs for task"),
    "nan": (_nan, 'task "defect" that are "nan"'),
    "bundle name": (lambda r: [replace(r[1], bundle_name="cars")], 'records are of "cars", the bundle is "elpv"'),
    "payload": (lambda r: [replace(r[2], payload_bytes=5)], 'split "s03" sent "5" bytes, in this bundle it is 31360'),
    "split": (lambda r: [replace(r[2], split="s99")], 'unknown split "s99"'),
    "bundle task": (
        lambda r: [replace(r[2], labels={}, outputs={"colour": r[2].outputs["defect"]})],
        'a task "colour" that the bundle',
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_records_that_do_not_fit_are_refused(records: list[RunRecord], bundle: Bundle, name: str) -> None:
    change, message = REFUSALS[name]
    assert records[0].split == FLOAT_REFERENCE
    with pytest.raises(UserError) as refused:
        summarise(change(records), bundle)
    assert message in refused.value.message

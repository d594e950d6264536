"""Refuses records that contradict themselves or do not belong together: they come from other machines and old runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from splitboard.contract.bundle import Bundle
from splitboard.contract.errors import UserError
from splitboard.contract.record import FLOAT_REFERENCE, SCHEMA_VERSION, SPANS, RunRecord

_AGAIN = ["run the benchmark again"]


def check_records(records: Sequence[RunRecord]) -> None:
    """Checks that the records are whole, of one bundle, of one board, and that no split is there twice.

    Raises:
        UserError: one of these does not hold.
    """
    for record in records:
        _check_record(record)
    runs = [record for record in records if record.split != FLOAT_REFERENCE]
    if not runs:
        raise UserError(f'"{len(records)}" run records and no measured split among them', ["bench at least one split"])
    _check_same("bundle", [record.bundle_sha256 for record in records], "report each bundle's runs on their own")
    _check_same("board", [record.board for record in runs], "report each board's runs on their own")
    known: dict[str, RunRecord] = {}
    for record in records:
        if record.split in known:
            raise UserError(
                f'split "{record.split}" is there twice, in runs "{known[record.split].run_id}" and "{record.run_id}"',
                ["report each run on its own"],
            )
        known[record.split] = record


def check_bundle(records: Sequence[RunRecord], bundle: Bundle) -> None:
    """Checks that the records are of this bundle, as far as its manifest tells.

    Raises:
        UserError: another name, an unknown split, other payloads or other tasks.
    """
    tasks = {task.name: len(task.labels) for task in bundle.tasks}
    for record in records:
        if record.bundle_name != bundle.name:
            raise UserError(f'the records are of "{record.bundle_name}", the bundle is "{bundle.name}"')
        for task, scores in record.outputs.items():
            if task not in tasks or any(len(row) != tasks[task] for row in scores[:1]):
                raise UserError(f'the records have a task "{task}" that the bundle has not in that form', _AGAIN)
        if record.split == FLOAT_REFERENCE:
            continue
        expected = bundle.split(record.split).payload_bytes
        if record.payload_bytes != expected:
            raise UserError(
                f'split "{record.split}" sent "{record.payload_bytes}" bytes, in this bundle it is {expected}',
                ["give the bundle that was benchmarked", *_AGAIN],
            )


def _check_same(what: str, values: Sequence[str], advice: str) -> None:
    other = next((value for value in values if value != values[0]), None)
    if other is not None:
        raise UserError(f'the records are of more than one {what}: "{values[0]}" and "{other}"', [advice])


def _check_record(record: RunRecord) -> None:
    where = f'the record of split "{record.split}" (run "{record.run_id}")'
    if record.schema_version != SCHEMA_VERSION:
        raise UserError(f'{where} has schema "{record.schema_version}", this version reads {SCHEMA_VERSION}', _AGAIN)
    n = len(record.sample_ids)
    lengths = {f"outputs of {task}": len(scores) for task, scores in record.outputs.items()}
    lengths |= {f"labels of {task}": len(truth) for task, truth in record.labels.items()}
    if record.split != FLOAT_REFERENCE:
        if record.spans_ns.keys() != set(SPANS):
            raise UserError(f'{where} has the spans "{", ".join(record.spans_ns)}"', _AGAIN)
        lengths |= {f"span {span}": len(samples) for span, samples in record.spans_ns.items()}
        lengths["end-to-end times"] = len(record.total_ns)
    for what, length in lengths.items():
        if length != n:
            raise UserError(f'{where} has {n} samples and "{length}" {what}', _AGAIN)
    for task, scores in record.outputs.items():
        if any(math.isnan(score) for row in scores for score in row):
            raise UserError(f'{where} has outputs of task "{task}" that are "nan"', _AGAIN)
    if record.split != FLOAT_REFERENCE:  # the reference's own labels are not used, its data may have more of them
        _check_labels(record, where)


def _check_labels(record: RunRecord, where: str) -> None:
    for task, truth in record.labels.items():
        if task not in record.outputs:
            raise UserError(f'{where} has labels and no outputs for task "{task}"', _AGAIN)
        widths = {len(row) for row in record.outputs[task]}
        if len(widths) > 1 or any(not 0 <= label < min(widths) for label in truth):
            raise UserError(f'{where} has labels that do not fit the outputs of task "{task}"', _AGAIN)

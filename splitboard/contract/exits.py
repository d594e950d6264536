"""When an early exit may answer alone: rules that were fitted on held-out data, in a file of their own.

The file belongs to one bundle, whose sha256 it names; a rule fitted for another says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

from splitboard.contract.bundle import Bundle
from splitboard.contract.decode import read_json, to_json
from splitboard.contract.errors import UserError
from splitboard.contract.folder import write_whole

SCHEMA_VERSION = 1
MEASURES = ("max_softmax", "entropy")
BEGINNING = '{\n "schema_version"'
"""What every such file begins with."""

_REFIT = ["fit the rules again: splitboard thresholds BUNDLE --data HELD_OUT -o RULES"]


@dataclass(frozen=True)
class ExitRule:
    """When one exit of one split answers its task alone, and what that did on the held-out images.

    Accuracies and rates are shares from 0 to 1. *Combined* is the answer of the exit where it is sure, of the whole
    split elsewhere.

    Attributes:
        split: id.
        output: the exit.
        task: that it answers.
        measure: ``max_softmax``: sure is a largest probability above the threshold; ``entropy``: an entropy of the
            probabilities, in nats, below it.
        threshold: ``None`` where none meets the target: the exit never answers.
        reason: why there is none; ``None`` where there is one.
        target_drop: the most accuracy that the combined answer may lose against the split's own; 0 where that alone is
            below ``target_accuracy``.
        confidence: that the true drop is no larger.
        n_samples: labelled held-out images.
        exit_rate: share of them that the exit answers.
        accuracy: of the split without the exit.
        accuracy_exit: of the exit, were it to answer everything.
        accuracy_exited: of the exit on what it answers; ``None`` where that is nothing.
        accuracy_combined: of the combined answer.
        drop_upper: with the confidence above, the true drop of the combined answer is below it.
        target_accuracy: that the drop leaves of the split's own on these images; ``None`` where the drop was given, and
            in files from before there was one.
    """

    split: str
    output: str
    task: str
    measure: str
    threshold: Optional[float]
    reason: Optional[str]
    target_drop: float
    confidence: float
    n_samples: int
    exit_rate: float
    accuracy: float
    accuracy_exit: float
    accuracy_exited: Optional[float]
    accuracy_combined: float
    drop_upper: float
    target_accuracy: Optional[float] = None

    @property
    def is_out_of_reach(self) -> bool:
        """Whether the split misses the target accuracy by itself: then there is nothing that an exit may lose."""
        return self.target_accuracy is not None and self.accuracy < self.target_accuracy


@dataclass(frozen=True)
class ExitRules:
    """The rules of one bundle.

    Attributes:
        schema_version: of this file.
        bundle_sha256: whose exits they are for.
        data_sha256: of the held-out images.
        rules: one for every exit of every split, in the bundle's order.
    """

    schema_version: int
    bundle_sha256: str
    data_sha256: str
    rules: Tuple[ExitRule, ...]

    def best(self, split_id: str, task: str) -> Optional[ExitRule]:
        """Of a task's exits at a split the one that answers most often, of equals the better one.

        ``None`` where none ever answers.
        """
        able = [
            rule
            for rule in self.rules
            if rule.split == split_id and rule.task == task and rule.threshold is not None and rule.exit_rate > 0
        ]
        return max(able, key=lambda rule: (rule.exit_rate, rule.accuracy_exit)) if able else None


def write_exit_rules(path: Path, rules: ExitRules) -> None:
    """Writes the file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    write_whole(path, to_json(rules, indent=1) + "\n")


def read_exit_rules(path: Path, bundle: Bundle, bundle_sha256: str) -> ExitRules:
    """Reads the rules of a bundle.

    Args:
        path: the file.
        bundle: the manifest.
        bundle_sha256: its identity.

    Raises:
        UserError: the file cannot be read, is of another schema or another bundle, or names what that has not.
    """
    rules = read_json(ExitRules, path)
    if rules.schema_version != SCHEMA_VERSION:
        raise UserError(
            f'"{path}" has exit rules of schema "{rules.schema_version}", this version reads {SCHEMA_VERSION}', _REFIT
        )
    if rules.bundle_sha256 != bundle_sha256:
        raise UserError(
            f'"{path}" was fitted for the bundle "{rules.bundle_sha256}", this one is {bundle_sha256}', _REFIT
        )
    known = {(split.id, one.output, one.task) for split in bundle.splits for one in bundle.exits_of(split)}
    for rule in rules.rules:
        if (rule.split, rule.output, rule.task) not in known:
            raise UserError(
                f'"{path}" has a rule for the exit "{rule.output}" of task {rule.task} at {rule.split}, which the '
                "bundle does not have",
                _REFIT,
            )
        if rule.measure not in MEASURES:
            raise UserError(f'"{path}" measures by "{rule.measure}"', [f"known: {', '.join(MEASURES)}"])
    return rules

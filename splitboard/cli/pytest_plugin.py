"""The gate as tests: ``pytest --splitboard-bundle B --splitboard-data D`` has one test per split and task.

They fail for the same reason, in the same words, as ``splitboard check``. Nothing heavy is imported unless the options
are given.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from calib.gate.judgement import Judgement
    from splitboard.cli.check import Plan

_OPTIONS = {
    "bundle": "bundle folder, from splitboard build: adds one test per split and task",
    "data": "labelled images that the build has not seen: .npz, or a folder per class",
    "split": "comma-separated ids, or all",
    "gate": "gate.toml: metric, margin and confidence per task",
    "baseline": "judge against this committed file, not against float",
    "path": "folder that a metric of your own lies in",
}
_NODE = "splitboard"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of ``splitboard check``."""
    group = parser.getgroup("splitboard", "accuracy gate of a bundle")
    for name, meaning in _OPTIONS.items():
        group.addoption(f"--splitboard-{name}", default=None, help=meaning)


class GateRun:
    """One run of the gate, which all its tests share; nothing is computed before the first of them.

    Args:
        made: what is to be run.
    """

    def __init__(self, made: Plan) -> None:
        self.made = made
        self._judgements: dict[tuple[str, str], Judgement] | None = None

    def judgement(self, split: str, task: str) -> Judgement:
        """Of one split and task."""
        if self._judgements is None:
            from splitboard.cli.check import judge, run_here

            checked = judge(self.made, run_here(self.made, _unseen), _unseen)
            self._judgements = {(one.split, one.task): one for one in checked.judgements}
        return self._judgements[split, task]


def _unseen(step: str, done: int, total: int) -> None:
    """Progress; pytest shows its own."""
    del step, done, total


class NotPassed(Exception):
    """A verdict that is not PASS; its text is the command's."""


class GateItem(pytest.Item):
    """One task on one split."""

    def __init__(self, *, gate: GateRun, split: str, task: str, **rest: Any) -> None:
        super().__init__(**rest)
        self._gate = gate
        self._split = split
        self._task = task
        self.extra_keyword_matches.add(_NODE)  # pytest -k splitboard

    def runtest(self) -> None:
        """Judges.

        Raises:
            NotPassed: the verdict is FAIL or INCONCLUSIVE.
        """
        from splitboard.report.gate_text import explained

        one = self._gate.judgement(self._split, self._task)
        if one.verdict != "PASS":
            raise NotPassed(explained(one))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The reason alone; a traceback only for what is a bug."""
        from splitboard.contract.errors import EXIT_BUG, SplitboardError

        error = excinfo.value
        if isinstance(error, NotPassed) or (isinstance(error, SplitboardError) and error.exit_code != EXIT_BUG):
            return str(error)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the test comes from: the bundle."""
        return self._gate.made.request.bundle, None, self.nodeid


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Adds the gate's tests after all others, before ``-k`` and ``-m`` choose."""
    if config.getoption("--splitboard-bundle") is None:
        return
    gate = GateRun(_plan(config))
    for split, task in gate.made.pairs:
        item: pytest.Item = GateItem.from_parent(
            session, name=f"{split}::{task}", nodeid=f"{_NODE}::{split}::{task}", gate=gate, split=split, task=task
        )
        items.append(item)


def _plan(config: pytest.Config) -> Plan:
    from splitboard.cli.check import CheckRequest, plan
    from splitboard.contract.errors import UserError

    given = {name: config.getoption(f"--splitboard-{name}") for name in _OPTIONS}
    if given["data"] is None:
        raise pytest.UsageError("error: --splitboard-bundle is given without --splitboard-data")
    files = {name: None if given[name] is None else Path(given[name]) for name in ("gate", "baseline")}
    request = CheckRequest(
        bundle=Path(given["bundle"]),
        data=Path(given["data"]),
        splits=given["split"] or "all",
        gate=files["gate"],
        baseline=files["baseline"],
        folder=Path(given["path"] or "."),
    )
    try:
        return plan(request)
    except UserError as error:
        raise pytest.UsageError(str(error)) from error

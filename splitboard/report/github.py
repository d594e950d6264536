"""What GitHub shows of a run: the job summary (Markdown) and one annotation per verdict that is not PASS."""

from __future__ import annotations

from collections.abc import Sequence

from calib.gate.judgement import Judgement
from splitboard.report.gate_table import escaped, markdown_judgements
from splitboard.report.gate_text import explained, name, overview
from splitboard.report.outputs import CheckOutput

BEGINNING = "## splitboard check"
"""Every summary begins so."""


def job_summary(output: CheckOutput, judgements: Sequence[Judgement], abilities: Sequence[str]) -> str:
    """The page that a job shows.

    Args:
        output: of the run.
        judgements: in the order of the table.
        abilities: what the set can detect at all, one line per task.
    """
    lines = [
        f"{BEGINNING}: {output.verdict}",
        "",
        f"{escaped(output.name)} on {escaped(output.board)}, {escaped(output.precision)}, against {output.against}: "
        f"{overview(judgements)}. Data {output.data_sha256[:12]}, bundle {output.bundle_sha256[:12]}.",
        "",
        markdown_judgements(judgements),
        *(f"- {escaped(explained(one))}" for one in judgements if one.verdict != "PASS"),
        *(f"- not judged, no labels: {escaped(task)}" for task in output.not_judged),
        *(f"- {escaped(line)}" for line in abilities),
    ]
    return "\n".join(lines) + "\n"


def error_annotations(judgements: Sequence[Judgement]) -> list[str]:
    """Workflow commands, one line each; both verdicts end the step, so both are errors."""
    return [
        f"::error title={_property(f'{one.verdict}: {name(one)}')}::{_data(explained(one))}"
        for one in judgements
        if one.verdict != "PASS"
    ]


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

"""JUnit XML: one test case per split and task.

INCONCLUSIVE is a failure of the type ``inconclusive``, not a skipped test: the command ends with an error there, and a
skipped test is shown as green. A task without labels is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from calib.gate.judgement import Judgement
from splitboard.report.gate_text import explained
from splitboard.report.outputs import CheckOutput

_DECLARATION = '<?xml version="1.0" encoding="utf-8"?>\n'
BEGINNING = f'{_DECLARATION}<testsuites name="splitboard check"'
"""Every file that `junit_xml` makes begins so."""

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


def junit_xml(output: CheckOutput, judgements: Sequence[Judgement]) -> str:
    """The judgements of one run as JUnit XML, as CI systems read it."""
    failures = sum(one.verdict != "PASS" for one in judgements)
    splits = list(dict.fromkeys(one.split for one in judgements))
    skipped = [(split, task) for split in splits for task in output.not_judged]
    counts = {
        "tests": str(len(judgements) + len(skipped)),
        "failures": str(failures),
        "errors": "0",
        "skipped": str(len(skipped)),
    }
    root = ET.Element("testsuites", {"name": "splitboard check", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": _text(output.name), **counts})
    for one in judgements:
        case = ET.SubElement(suite, "testcase", _case(output, one.split, one.task))
        if one.verdict != "PASS":
            failure = ET.SubElement(case, "failure", {"type": one.verdict.lower(), "message": _text(explained(one))})
            failure.text = _text(explained(one))
        else:
            ET.SubElement(case, "system-out").text = _text(explained(one))
    for split, task in skipped:
        case = ET.SubElement(suite, "testcase", _case(output, split, task))
        ET.SubElement(case, "skipped", {"message": "the data has no labels for this task"})
    ET.indent(root)
    return f"{_DECLARATION}{ET.tostring(root, encoding='unicode')}\n"


def _case(output: CheckOutput, split: str, task: str) -> dict[str, str]:
    return {"classname": _text(f"{output.name}.{split}"), "name": _text(task), "time": "0"}


def _text(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)

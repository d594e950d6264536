"""What is printed: as many decimals as the set supports, limits outwards, and nothing of the user's read as markup."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lxml import etree

from calib.gate.judgement import Detectable, Judgement
from splitboard.report.gate_text import ability, decimals, explained, interval, p_value, share
from splitboard.report.github import error_annotations, job_summary
from splitboard.report.junit import junit_xml
from splitboard.report.outputs import CheckOutput

ONE = Judgement(
    split="s03",
    task="defect",
    metric="top1",
    unit="points",
    against="float",
    n=525,
    reference=0.95238,
    deployed=0.94286,
    drop=0.952381,
    lower=-0.4301,
    upper=2.3801,
    margin=1.0,
    confidence=0.95,
    detectable=1.9,
    lost=9,
    gained=4,
    mcnemar_p=0.2668,
    p=0.5,
    p_holm=0.5,
    verdict="INCONCLUSIVE",
    samples_needed=1234567,
)
OUTPUT = CheckOutput(
    verdict="INCONCLUSIVE",
    bundle="net.bundle",
    name="net",
    bundle_sha256="b" * 64,
    model_sha256="c" * 64,
    board="rpi5",
    precision="int8",
    data_sha256="d" * 64,
    against="float",
    n=525,
    n_repeated=0,
    judged=1,
    not_judged=("type|of*cell",),
    reasons=(),
)


@pytest.mark.parametrize("n", [3, 20, 99, 100, 101, 525, 999, 1000, 1001, 10_000, 12_345])
def test_decimals_tell_counts_apart_and_no_more(n: int) -> None:
    shown = [share(count / n, n) for count in range(n + 1)]
    if n >= 100:
        assert len(set(shown)) == n + 1
        coarser = {f"{100 * count / n:.{decimals(n) - 1}f}" for count in range(n + 1)} if decimals(n) else set()
        assert len(coarser) < n + 1
    else:
        assert all("." not in text for text in shown)


def test_limits_are_rounded_outwards() -> None:
    assert interval(ONE) == ("-0.5", "2.4")
    assert interval(replace(ONE, lower=-0.5, upper=2.4)) == ("-0.5", "2.4")
    assert interval(replace(ONE, n=100)) == ("-1", "3")
    assert interval(replace(ONE, unit="", lower=-0.000123456, upper=12.34567)) == ("-0.0001235", "12.35")


def test_reasons() -> None:
    assert explained(ONE) == (
        "INCONCLUSIVE: s03, defect: top1 94.3 % deployed, 95.2 % float: drop 1.0 points (9 lost, 4 gained of 525); "
        "between -0.5 and 2.4 points, 1 point allowed: 525 samples do not tell, about 1,300,000 would"
    )
    assert explained(replace(ONE, verdict="FAIL", p_holm=0.0004, margin=0.5)).endswith(
        "more than the 0.5 points allowed, p <0.001 after Holm's correction"
    )
    assert explained(replace(ONE, verdict="PASS", margin=2.5)).endswith(
        "at most 2.4 points with 95 % confidence, 2.5 points allowed"
    )
    assert "no number of samples" in explained(replace(ONE, samples_needed=None))
    assert p_value(0.0006) == "<0.001"


def test_abilities() -> None:
    able = Detectable("defect", "top1", 525, 1.0, 1.9047, 10, 1, 299)
    assert ability(able) == (
        "defect (top1, 525 samples): this set can only detect a drop of 1.9 points or more (10 lost, none gained), "
        "1 allowed; it can PASS with at most 1 lost"
    )
    assert "that needs 299 samples" in ability(replace(able, n_passing=None))
    assert "a margin above 0" in ability(replace(able, margin=0.0, n_passing=None, n_needed=None))
    assert "detect no drop at all" in ability(replace(able, drop=None, n_lost=None))
    assert "spread of the errors" in ability(Detectable("depth", "mae", 525, 0.1, None, None, None, None))


def test_names_of_the_user_are_text() -> None:
    odd = replace(ONE, split="a,b:c%\n", task='<x> & "y" \x00 | *z*')
    root = etree.fromstring(junit_xml(OUTPUT, (odd,)).encode())
    case, skipped = root.findall("testsuite/testcase")
    assert case.get("name") == '<x> & "y" \ufffd | *z*'
    assert case.find("failure").get("type") == "inconclusive"
    assert (skipped.get("name"), skipped.find("skipped") is not None) == ("type|of*cell", True)
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("2", "1", "1")
    (command,) = error_annotations((odd,))
    assert command.startswith("::error title=INCONCLUSIVE%3A a%2Cb%3Ac%25%0A%2C ")
    assert "\n" not in command
    page = job_summary(OUTPUT, (odd,), [])
    assert '\\<x\\> & "y" \x00 \\| \\*z\\*' in page
    assert "type\\|of\\*cell" in page

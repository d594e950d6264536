"""The table on a narrow and a wide terminal, and as Markdown."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from splitboard.contract.bundle import Bundle
from splitboard.contract.record import RunRecord
from splitboard.report.results import summarise
from splitboard.report.table import markdown_table, print_results

Records = Callable[..., list[RunRecord]]


def _printed(records: list[RunRecord], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_results(console, summarise(records, None))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [100, 160])
def test_every_number_is_whole_at_both_widths(records: list[RunRecord], width: int) -> None:
    text = _printed(records, width)
    assert max(map(len, text.splitlines())) <= width
    for split in summarise(records, None).splits:
        accuracy = split.accuracy["defect"]
        assert f" {split.total_ms_p50:.2f} " in text
        assert f" {split.total_ms_p95:.2f} " in text
        assert f" {split.payload_bytes:,} " in text
        assert split.scope in text
        assert accuracy.float_ is not None
        assert f"{100 * accuracy.int8:.2f} ({100 * accuracy.float_:.2f})" in text
    assert "…" not in text
    assert "energy not measured: no meter on this machine" in text


def test_one_table_where_it_fits(records: list[RunRecord]) -> None:
    assert _printed(records, 160).count("scope") == 1
    assert _printed(records, 100).count("scope") == 2


def test_energy_is_shown_whole_and_above_idle(records: list[RunRecord], with_energy: Callable[..., RunRecord]) -> None:
    text = _printed([with_energy(records[1]), records[2]], 100)
    assert "1200.0 (800.0)" in text
    assert "s00: energy: median per inference, in brackets above idle; ina3221:VDD_IN" in text
    assert "s03: energy not measured: no meter on this machine" in text


def test_emulated_times_are_not_shown(make_records: Records) -> None:
    records = make_records(emulated=True)
    text = _printed(records, 160)
    assert "emulated: times not shown" in text
    edge_ms = [sorted(record.spans_ns["edge"])[100] / 1e6 for record in records[2:]]
    assert not any(f"{ms:.2f}" in text for ms in edge_ms)


def test_a_throttled_split_is_starred(records: list[RunRecord]) -> None:
    record = records[2]
    text = _printed(
        [replace(record, before=replace(record.before, throttled="0x2"), after=record.after), records[1]], 160
    )
    assert "s03*" not in text  # one side alone proves nothing
    hot = replace(record.before, throttled="0x2")
    text = _printed([replace(record, before=hot, after=hot), records[1]], 160)
    assert "s03*" in text
    assert "* s03: inconclusive: throttled" in text


def test_few_samples_show_a_dash_and_say_why(make_records: Records) -> None:
    text = _printed(make_records(n=7), 160)
    assert '"-" too few samples for this percentile (p50: 5, p95: 20)' in text


def test_scopes_are_never_markup(records: list[RunRecord]) -> None:
    odd = replace(records[2], scope="[red]a|b[/red]")
    assert "[red]a|b[/red]" in _printed([odd], 160)
    assert "| \\[red\\]a\\|b\\[/red\\] |" in markdown_table(summarise([odd], None))


def test_markdown_has_one_row_per_split(records: list[RunRecord]) -> None:
    lines = markdown_table(summarise(records, None)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 6
    assert {row.count("|") for row in rows} == {rows[0].count("|")}
    assert rows[1].startswith("| :--- | :--- | ---: |")


def test_heads_on_the_board_are_named_with_the_scope(records: list[RunRecord], bundle: Bundle) -> None:
    splits = tuple(replace(split, local_tasks=("defect",)) if split.id == "s09" else split for split in bundle.splits)
    summary = summarise(records, replace(bundle, splits=splits))
    table = markdown_table(summary)
    assert "| backbone.blocks.6 (defect on the board) |" in table
    assert table.count("on the board") == 1
    assert "on the board" not in markdown_table(summarise(records, None))

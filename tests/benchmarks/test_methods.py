"""The pure parts of benchmarks/methods that were not seen to be right by running them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "methods"))

import link
import stamp
from split_conditions import Setting, compare, steady, true_costs

ROWS = [
    {"split": "s00", "payload_bytes": 50_000, "edge_ms": 1.0, "server_ms": {"1": 20.0}, "server_macs": 400_000_000},
    {"split": "s05", "payload_bytes": 10_000, "edge_ms": 40.0, "server_ms": {"1": 5.0}, "server_macs": 100_000_000},
    {"split": "s09", "payload_bytes": 0, "edge_ms": 60.0, "server_ms": {}, "server_macs": 0},
]


def image(label: str, failure: str | None = None) -> str:
    task = {"label": label, "scores": [1.0], "by": "exit", "after_ns": 1}
    return json.dumps(
        {
            "failure": failure, "outputs": {"kind": task}, "total_ns": 2_000_000, "edge_ns": 1_000_000,
            "server_ns": None, "sent_bytes": None, "split": "s09",
        }
    )  # fmt: skip


def test_memory_is_what_the_kernel_tells_otherwise() -> None:
    told = stamp.memory_bytes(Path("/proc/meminfo").read_text(encoding="utf-8"))
    assert told == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_stamp_survives_json_and_names_no_place() -> None:
    from dataclasses import asdict

    taken = stamp.take_stamp((3,))
    assert stamp.from_json(json.loads(json.dumps(asdict(taken)))) == taken
    words = stamp.paragraph(taken)
    assert os.uname().nodename not in words
    assert "/" not in words


def test_answers_are_judged_behind_the_warm_up() -> None:
    labels = ["a", "b", "a", "b", "a", "a", "b"]
    said = ["b"] * link.N_WARM + ["a", "b", "b"]
    found = link.read_answers(iter(map(image, said)), {"kind": labels}, lambda: 7)
    assert np.mean(found.right["kind"]) == accuracy_score(labels[link.N_WARM :], said[link.N_WARM :])
    assert found.by["kind"] == ("exit", "exit", "exit")
    assert found.peak_bytes == 7


def test_a_failed_image_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="timeout"):
        link.read_answers(iter([image("a", "timeout")]), {}, lambda: 0)


@pytest.mark.parametrize(("rate_mbps", "load"), [(1.0, 1.0), (3.0, 1.0), (100.0, 1.0), (100.0, 8.0)])
def test_the_oracle_takes_what_the_formula_says_is_least(rate_mbps: float, load: float) -> None:
    """T = head + 8 bytes / rate + rtt + load * tail, far enough apart for headers and noise not to matter."""
    setting, rtt_ms = Setting(1.0, 1, load), 5.0
    by_formula = {
        row["split"]: row["edge_ms"]
        + (8e-3 * row["payload_bytes"] / rate_mbps + rtt_ms + load * row["server_ms"]["1"] if row["server_ms"] else 0)
        for row in ROWS
    }
    found = compare(ROWS, setting, "link", steady(rate_mbps, rtt_ms), 40, 0)
    assert found.oracle.split == found.best_static == min(by_formula, key=lambda split: by_formula[split])
    assert found.oracle.mean_ms == pytest.approx(min(by_formula.values()), rel=0.15)


def test_a_batch_costs_the_board_every_image() -> None:
    rows = [{**row, "server_ms": {**row["server_ms"], "4": 50.0} if row["server_ms"] else {}} for row in ROWS]
    remote, _, local = true_costs(rows, Setting(2.0, 4, 3.0))
    assert (remote.edge_ns, remote.payload_bytes, remote.server_ns) == (8e6, 200_000, 150e6)
    assert (local.edge_ns, local.payload_bytes) == (480e6, 0)

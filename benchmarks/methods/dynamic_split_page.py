"""The page `docs/results/dynamic-split.md`: every sentence with a figure is made here from what was stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dynamic_split_pictures import NOTICEABLE, draw
from dynamic_split_results import DATA, NAME, Names, Results, slowness
from figures import table
from latency_tables import markdown
from split_conditions import (
    BEST,
    DYNAMIC,
    LOCAL_ONLY,
    ORACLE,
    REMOTE_ONLY,
    SINGLE,
    Cell,
)
from stamp import from_json, paragraph

PAGE = f"{NAME}.md"


def write_page(folder: Path, results: Results) -> None:
    """The page and its pictures."""
    names = Names(results)
    draw(folder, results, names)
    parts = [
        "# Dynamic split computing",
        _verdict(results, names),
        "## How",
        _method(results),
        "## Which split is chosen",
        f"![Heat maps of the chosen split]({NAME}-choice.svg)",
        _choice_words(results, names),
        "## Links that stay as they are",
        _constant_table(results, names),
        _constant_words(results),
        "## Links that change",
        f"![One trace over time]({NAME}-time.svg)",
        f"![Regret on every trace]({NAME}-regret.svg)",
        f"![Latency distributions]({NAME}-latency.svg)",
        _varying_table(results, names),
        _varying_words(results, names),
        "## Answers",
        _answers(results),
        "## What the splits cost",
        _tables(results),
        "## What this does not show",
        _limits(),
        "## Where it comes from",
        _source(results),
    ]
    (folder / PAGE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _regrets(cells: Sequence[Cell], name: str) -> np.ndarray[Any, Any]:
    return np.array([100 * cell.regret(name) for cell in cells])


def _all(results: Results, kind: str) -> list[Cell]:
    return [cell for kinds in results.simulations.values() for cell in kinds[kind]]


def _verdict(results: Results, names: Names) -> str:
    constant, varying = _all(results, "constant"), _all(results, "varying")
    lines = [
        "**Claim** (arXiv 2205.11269): where a network is best cut depends on the link and on the load, so choosing "
        "the "
        "split at run time among the network's natural bottlenecks beats every choice that is made once, and costs no "
        "accuracy.",
        "**Result.** "
        + _sums(constant, "links of constant rate")
        + " "
        + _sums(varying, "varying links")
        + " "
        + _against_hindsight(varying),
        "**Where it does not win.** " + _no_win(results, names) + " " + _ends(results, names),
    ]
    return "\n\n".join(lines)


def _sums(cells: Sequence[Cell], what: str) -> str:
    dynamic, single = _regrets(cells, DYNAMIC), _regrets(cells, SINGLE)
    better = sum(cell.players[DYNAMIC].mean_ms < cell.players[SINGLE].mean_ms for cell in cells)
    return (
        f"Over {len(cells)} conditions with {what} the policy's mean latency is {dynamic.mean():.1f} % above that of "
        "an "
        f"oracle (median {np.median(dynamic):.1f} %, worst {dynamic.max():.1f} %); the one static split that does best "
        f"over the same conditions of its network and board is {single.mean():.1f} % above (median "
        f"{np.median(single):.1f} %, worst {single.max():.0f} %), and slower than the policy in {better} of "
        f"{len(cells)}."
    )


def _against_hindsight(cells: Sequence[Cell]) -> str:
    better = sum(cell.players[DYNAMIC].mean_ms < cell.players[BEST].mean_ms for cell in cells)
    matter = [cell for cell in cells if cell.regret(BEST) > NOTICEABLE]
    wins = sum(cell.players[DYNAMIC].mean_ms < cell.players[BEST].mean_ms for cell in matter)
    return (
        "Against the static split that is best on just that trace, which nobody can know beforehand, it is faster in "
        f"{better} of {len(cells)}, and in {wins} of the {len(matter)} where that split loses more than "
        f"{100 * NOTICEABLE:.0f} % to the oracle: where one split is nearly always right, there is nothing to gain and "
        "the policy pays a little for looking."
    )


def _no_win(results: Results, names: Names) -> str:
    lost = []
    for kind, what in (("constant", "constant rate"), ("varying", "varying")):
        for job, kinds in results.simulations.items():
            dynamic, single = (_regrets(kinds[kind], name).mean() for name in (DYNAMIC, SINGLE))
            if dynamic > single:
                lost.append(f"{names.job(job)}, {what} ({dynamic:.1f} % against {single:.1f} %)")
    if not lost:
        return "On no network and board is the policy's mean regret above that of the one static split."
    return f"Its mean regret is above that of the one static split for: {'; '.join(lost)}."


def _ends(results: Results, names: Names) -> str:
    inner = total = 0
    for job, kinds in results.simulations.items():
        ends = {names.order(job)[0], names.order(job)[-1]}
        cells = kinds["constant"]
        inner += sum(names.split(job, cell.players[ORACLE].split) not in ends for cell in cells)
        total += len(cells)
    return (
        "And in INT8 the choice is mostly between the two ends: the oracle itself cuts inside of the network in "
        f"{inner} of "
        f"{total} constant conditions, elsewhere it computes all on the board or sends the image."
    )


def _method(results: Results) -> str:
    rounds = next(iter(results.tables.values()))["rounds"]
    return "\n".join(
        [
            "1. The split points are those that `splitboard splits --natural --blocks` lists: outputs of whole blocks "
            "with "
            "strictly fewer values than the input; beside them remote only and local only. INT8 tensors cross.",
            "2. Board (LiteRT, one thread, image by image) and server (ONNX Runtime, one thread, one run per batch) "
            "are "
            f"measured, medians of {rounds} interleaved rounds. A board that is so many times slower is these times "
            f"multiplied: an assumption, no board was there. {_pace(results)}",
            f"3. Links: constant rates with {results.rtt_ms:g} ms of round trip, and the held-out traces of "
            "`benchmarks/traces`, which the policy's constants were not tuned on.",
            "4. Players, in simulated time with the same noise for all: every static split; the product's policy "
            "(`--split auto`), which starts from the board's own times and learns link and server from its requests; "
            "an "
            "oracle that knows link and noise of every request. No answer within 1 s per image: the board answers "
            "itself.",
            "5. *Regret*: mean latency over the oracle's, less one. *One static*: the split with the least mean regret "
            "over "
            "all conditions of that network and board. *Best static*: the best on just that condition, known "
            "afterwards.",
        ]
    )


def _pace(results: Results) -> str:
    """How fast the edge's engine is beside the server's, which differs with the processor's instructions."""
    found = []
    for one in results.tables.values():
        if one["precision"] == "int8":
            rows = {row["scope"]: row for row in one["rows"]}
            ratio = rows["remote"]["server_ms"]["1"] / rows["local"]["edge_ms"]
            found.append(f"{ratio:.1f} times as fast as the server does it in float ({one['title']})")
    return (
        f"The measured thread does the whole network in INT8 {', '.join(found)}: so much slower a board is its equal."
    )


def _choice_words(results: Results, names: Names) -> str:
    told, slowest = [], max(map(slowness, results.simulations))
    for job in results.simulations:
        cells = results.simulations[job]["constant"]
        used: dict[str, int] = {}
        for cell in cells:
            name = names.split(job, cell.players[DYNAMIC].split)
            used[name] = used.get(name, 0) + 1
        ranked = sorted(used.items(), key=lambda one: -one[1])
        listed = ", ".join(f"{name} {count}" for name, count in ranked)
        ends = used.get("local", 0) + used.get(names.order(job)[0], 0)
        told.append(f"- {names.job(job)}: {listed} (of {len(cells)} conditions; neither end in {len(cells) - ends}).")
    return (
        f"What the policy settles on, boards {slowest:g}x slower. "
        "Yellow: the board does it all; dark blue: the image is sent; "
        "between them the block behind which is cut. A red dot: its mean latency, learning included, is more than "
        f"{100 * NOTICEABLE:.0f} % above the oracle's.\n\nChosen most, per condition:\n\n" + "\n".join(told)
    )


def _constant_table(results: Results, names: Names) -> str:
    header = ["network, board", "one static", DYNAMIC, "one static, regret", REMOTE_ONLY, LOCAL_ONLY, "best static"]
    return _regret_table(results, names, "constant", header)


def _varying_table(results: Results, names: Names) -> str:
    header = ["network, board", "one static", DYNAMIC, "one static, regret", REMOTE_ONLY, LOCAL_ONLY, "best static"]
    return _regret_table(results, names, "varying", header)


def _regret_table(results: Results, names: Names, kind: str, header: Sequence[str]) -> str:
    rows = []
    for job, kinds in results.simulations.items():
        cells = kinds[kind]
        figures = [_regrets(cells, name) for name in (DYNAMIC, SINGLE, REMOTE_ONLY, LOCAL_ONLY, BEST)]
        single = names.split(job, cells[0].players[SINGLE].split)
        rows.append([names.job(job), single, *(f"{one.mean():.1f} (worst {one.max():.0f})" for one in figures)])
    return f"Regret in %, mean over {len(cells)} conditions each.\n\n{table(header, rows, left=2)}"


def _constant_words(results: Results) -> str:
    cells = _all(results, "constant")
    over = np.array([100 * (c.players[DYNAMIC].mean_ms / c.players[BEST].mean_ms - 1) for c in cells])
    return (
        "On a link that never changes nothing can beat the right static split. There the policy's price for finding "
        "it, "
        f"first requests included, is {over.mean():.1f} % in the mean and {over.max():.1f} % at worst; its gain is "
        "that "
        "nobody has to know the link beforehand."
    )


def _varying_words(results: Results, names: Names) -> str:
    lost = []
    for job, kinds in results.simulations.items():
        for cell in kinds["varying"]:
            off = 100 * (cell.players[DYNAMIC].mean_ms / cell.players[SINGLE].mean_ms - 1)
            if off > 1:
                setting = f"batch {cell.setting.batch}, load {cell.setting.load:g}x"
                lost.append((off, f"- {cell.link}, {setting}, {names.job(job)}: {off:.1f} % slower."))
    lost.sort(reverse=True)
    n = len(_all(results, "varying"))
    words = f"More than 1 % slower than the one static split: {len(lost)} of {n} conditions"
    if not lost:
        return words + "."
    return words + (", the worst of them:" if len(lost) > 8 else ":") + "\n\n" + "\n".join(t for _, t in lost[:8])


def _answers(results: Results) -> str:
    int8, floats = results.accuracies["int8"], results.accuracies.get("fp32")
    tasks, n = list(int8["float"]), int8["n_images"]
    header = ["split", *(["float: changed", "largest difference"] if floats else [])]
    header += [column for task in tasks for column in (f"INT8: {task} %", "against float")]
    rows = []
    for split, by in int8["splits"].items():
        row = [split]
        if floats:
            here = floats["splits"].get(split)
            row += ["", ""] if here is None else [
                str(sum(one["changed"] for one in here.values())),
                f"{max(one['relative_error'] for one in here.values()):.1e}",
            ]  # fmt: skip
        for task in tasks:
            right, was = by[task]["right"], int8["float"][task]["right"]
            row += [f"{100 * right / n:.2f}", f"{100 * (right - was) / n:+.2f}"]
        rows.append(row)
    whole = ", ".join(f"{task} {100 * one['right'] / n:.2f} %" for task, one in int8["float"].items())
    told = [
        f"`elpv_lite0` on {n} images of the ELPV test part; the float model in one piece: {whole}. "
        "INT8 ranges are minima and maxima here; `make demo` tries several, and differs by a few answers for it."
    ]
    if floats:
        changed = sum(t["changed"] for by in floats["splits"].values() for t in by.values())
        asked = sum(len(by) for by in floats["splits"].values()) * n
        cut = max(floats["cut_error"].values())
        told.append(
            f"**In float** the split changes {changed} of {asked:,} answers (halves as deployed: LiteRT on the board, "
            "ONNX "
            "Runtime on the server; the largest difference of a score is relative to the largest score and comes from "
            "two "
            "libraries rounding differently). Cut and run in one library, server(edge(x)) differs by at most "
            f"{cut:.1e}."
        )
    told.append(
        "**In INT8**, which is what crosses here, the differences in the table are the price; remote only by JPEG "
        "files "
        "stands beside it, since that is lossy too."
    )
    return "\n\n".join([*told, table(header, rows)])


def _tables(results: Results) -> str:
    parts = []
    for one in results.tables.values():
        title = f"{one['title']}, {one['precision']}"
        parts.append(f"<details><summary>{title}</summary>\n\n{markdown(one['rows'])}\n\n</details>")
    floats = [one for one in results.tables.values() if one["precision"] == "fp32"]
    words = (
        "Milliseconds of one thread's processor time. Lite0 takes grey images, so remote only sends a third of what "
        "B0's RGB "
        "images take. B0's weights are random: times do not depend on them."
    )
    if floats:
        row = next(row for row in floats[-1]["rows"] if row["values"] and not row["scope"].startswith("remote"))
        words += (
            " In float the same tensors are four times as large: behind the first natural bottleneck of "
            f"{floats[-1]['title']} {row['payload_bytes']:,} bytes, against {floats[-1]['rows'][0]['payload_bytes']:,} "
            "of "
            "the image. *Natural* counts values, not bytes."
        )
    return "\n\n".join([words, *parts])


def _limits() -> str:
    return "\n".join(
        [
            "- No board took part. Multiplying one processor's times keeps their proportions, which a real "
            "board's "
            "caches and instruction set do not.",
            "- Time is simulated from measured tables; `benchmarks/dynamic_split_real.py` sends real requests over a "
            "real "
            "link and a slowed process, and is not part of this page.",
            "- One server of one thread; its load is constant during a run. Traces are synthetic.",
            "- Energy was not weighed, though the policy can (`--joules`).",
            "- The paper's fourteen networks are two here, its GPU a processor.",
        ]
    )


def _source(results: Results) -> str:
    tables = {name: from_json(one["stamp"]) for name, one in results.tables.items()}
    one = next(iter(tables.values()))
    return "\n\n".join(
        [
            "`python benchmarks/methods/dynamic_split.py` measures, simulates and writes this page; `--page` writes it "
            "from "
            f"[{DATA}]({DATA}) again.",
            f"Latency tables: {paragraph(one)}",
            f"Simulation: {paragraph(results.stamp)}",
        ]
    )

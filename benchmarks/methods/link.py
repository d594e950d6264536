"""What a bundle's splits take end to end: the real edge runtime, the real server, the emulated link between.

Local only, remote only (the image as it is, and as a JPEG file) and every split answer the same images, at four rates,
each with a round trip that is usual for such a link. Every answer comes from `splitboard-edge run` in a process of its
own, through kernel TCP where there is root (else through a proxy on loopback), from `splitboard serve`. Rounds are
interleaved: every variant over every link once, in rotating order, so that all meet the same load; the first answers of
each process warm up and are dropped.

`--share` gives the edge's process a share of one processor (cgroup v1). That models a slower edge; no board was there,
and the table says so.

Usage: python benchmarks/methods/link.py BUNDLE --data test.npz [--rounds 4] [--images 8] [--share 0.25]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # the link emulator is the tests'

import numpy as np
from dynamic_split_real import TRACES, server, slow_board
from figures import table
from network.emulator import Network, ProxyNetwork, TunNetwork
from network.traces import Trace, constant, read_trace
from numpy.typing import NDArray
from stamp import paragraph, take_stamp

from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.samples import Samples, load_samples, save_samples

ROOT = Path(__file__).parents[2]
N_WARM = 4
"""Answers of every process that are dropped."""

JPEG_QUALITIES = (90, 75)
LOCAL, REMOTE = "local", "remote"
_NO_FALLBACK = ("--fallback", "unavailable")
_KIB = 1024


@dataclass(frozen=True)
class Link:
    """A link that does not change.

    Attributes:
        rate_mbps: in each direction.
        rtt_ms: round trip of an empty packet.
    """

    rate_mbps: float
    rtt_ms: float

    def __str__(self) -> str:
        return f"{self.rate_mbps:g} Mbit/s, {self.rtt_ms:g} ms"

    def trace(self) -> Trace:
        """What the emulator plays."""
        return constant(self.rate_mbps * 1e6, self.rtt_ms / 2e3)


@dataclass(frozen=True)
class Varying:
    """A link that changes; every process meets it from its beginning.

    Attributes:
        name: of a file in `benchmarks/traces`.
    """

    name: str

    def __str__(self) -> str:
        return f"varying: {self.name.removeprefix('held-out-')}"

    def trace(self) -> Trace:
        """What the emulator plays."""
        return read_trace(TRACES / f"{self.name}.csv")


LINKS = (Link(1, 40), Link(10, 20), Link(100, 5), Link(1000, 1))
"""Four decades of rates, with round trips as on LTE-M, LTE, Wi-Fi and Ethernet (assumed, not recorded)."""


@dataclass(frozen=True)
class Variant:
    """One way to answer.

    Attributes:
        name: for the table.
        split: id, or ``auto``.
        options: further ones of `splitboard-edge run`, such as ``--coding jpeg`` or ``--exits RULES.json``.
    """

    name: str
    split: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What one process answered behind its warm-up.

    Attributes:
        total_ms: end to end, one per image.
        edge_ms: preprocessing and edge half.
        server_ms: decoding and computing there; 0 where no server was asked.
        sent_bytes: of the requests; 0 likewise.
        splits: that were run.
        right: by task, whether the answer was the label, one per image; empty without labels.
        by: by task, who answered (``edge``, ``exit``, ``server`` or ``local``), one per image.
        after_ms: by task, when, since the image was there.
        peak_bytes: most memory that the edge's process had (proc(5), VmHWM), Python included.
    """

    total_ms: tuple[float, ...]
    edge_ms: tuple[float, ...]
    server_ms: tuple[float, ...]
    sent_bytes: tuple[int, ...]
    splits: tuple[str, ...]
    right: Mapping[str, tuple[bool, ...]]
    by: Mapping[str, tuple[str, ...]]
    after_ms: Mapping[str, tuple[float, ...]]
    peak_bytes: int


@dataclass(frozen=True)
class Cell:
    """One variant over one link, all rounds.

    Attributes:
        variant: how it was answered.
        link: over what.
        answers: one per round, in the order of the rounds.
        share: of one processor that the edge had; ``None`` for all of one.
    """

    variant: Variant
    link: Link | Varying
    answers: tuple[Answers, ...] = field(repr=False)
    share: float | None = None

    @property
    def total_ms(self) -> NDArray[np.float64]:
        """Latencies of all rounds."""
        return np.concatenate([one.total_ms for one in self.answers])

    @property
    def sent_bytes(self) -> float:
        """Mean size of a request."""
        return float(np.mean([size for one in self.answers for size in one.sent_bytes]))

    @property
    def edge_ms(self) -> float:
        """Median time on the board before anything is sent."""
        return float(np.median(np.concatenate([one.edge_ms for one in self.answers])))

    @property
    def accuracy(self) -> dict[str, float]:
        """Share of right answers by task; empty without labels. The same images count once per round that had them."""
        tasks = self.answers[0].right
        return {task: float(np.mean([hit for one in self.answers for hit in one.right[task]])) for task in tasks}

    @property
    def exit_rate(self) -> dict[str, float]:
        """Share of answers that an early exit gave, by task."""
        return {task: share.get("exit", 0.0) for task, share in self.by.items()}

    @property
    def by(self) -> dict[str, dict[str, float]]:
        """By task and who answered, the share of the answers."""
        found = {}
        for task in self.answers[0].by:
            who = Counter(one for answers in self.answers for one in answers.by[task])
            found[task] = {name: count / who.total() for name, count in who.most_common()}
        return found

    def after_ms(self, task: str) -> float:
        """Median time until a task was answered."""
        return float(np.median(np.concatenate([one.after_ms[task] for one in self.answers])))

    def to_json(self) -> dict[str, Any]:
        """The raw samples."""
        return {
            "link": asdict(self.link),
            "share": self.share,
            "variant": asdict(self.variant),
            "rounds": [*map(asdict, self.answers)],
        }

    @staticmethod
    def from_json(read: Mapping[str, Any]) -> Cell:
        """The cell that was written so."""
        link = Link(**read["link"]) if "rate_mbps" in read["link"] else Varying(**read["link"])
        variant = Variant(**{**read["variant"], "options": tuple(read["variant"]["options"])})
        return Cell(variant, link, tuple(Answers(**one) for one in read["rounds"]), read["share"])

    @property
    def peak_mib(self) -> float:
        """Median over the rounds of the process's most memory."""
        return float(np.median([one.peak_bytes for one in self.answers])) / _KIB**2

    def row(self) -> list[str]:
        """For the table, behind the link."""
        ms = self.total_ms
        return [
            self.variant.name,
            f"{self.sent_bytes:,.0f}",
            f"{np.median(ms):.1f}",
            f"{np.percentile(ms, 90):.1f}",
            f"{self.edge_ms:.1f}",
            f"{self.peak_mib:.0f}",
        ]


def variants_of(bundle: Bundle, splits: Sequence[str] = (), qualities: Sequence[int] = JPEG_QUALITIES) -> list[Variant]:
    """Remote only in all its forms, the splits, local only.

    Args:
        bundle: whose.
        splits: ids; none for all that the bundle has.
        qualities: of JPEG.
    """
    made = []
    for split in bundle.splits:
        if split.is_remote:
            made.append(Variant(f"{REMOTE}, raw", split.id))
            for quality in qualities:
                coding = ("--coding", "jpeg", "--jpeg-quality", str(quality))
                made.append(Variant(f"{REMOTE}, JPEG {quality}", split.id, coding))
        elif split.is_local:
            made.append(Variant(LOCAL, split.id))
        elif not splits or split.id in splits:
            made.append(Variant(f"{split.id}, {split.scope}", split.id))
    return made


def read_answers(lines: Iterator[str], labels: Mapping[str, Sequence[str]], peak: Callable[[], int]) -> Answers:
    """What a process prints, as `splitboard.contract.answers.AnsweredImage` has it.

    Args:
        lines: one JSON object per image, the warm-up first.
        labels: by task, the true class's name of every image, the warm-up's included.
        peak: most memory of the process until now.

    Raises:
        RuntimeError: an image was not answered as asked.
    """
    images, most = [], 0
    for line in lines:
        most = max(most, peak())
        image = json.loads(line)
        if image["failure"] is not None:
            raise RuntimeError(f"an image failed: {image['failure']}")
        images.append(image)
    kept = images[N_WARM:]
    outputs = [image["outputs"] for image in kept]
    tasks = list(outputs[0]) if outputs else []
    return Answers(
        total_ms=tuple(image["total_ns"] / 1e6 for image in kept),
        edge_ms=tuple(image["edge_ns"] / 1e6 for image in kept),
        server_ms=tuple((image["server_ns"] or 0) / 1e6 for image in kept),
        sent_bytes=tuple(image["sent_bytes"] or 0 for image in kept),
        splits=tuple(image["split"] for image in kept),
        right={
            task: tuple(one[task]["label"] == name for one, name in zip(outputs, names[N_WARM:], strict=True))
            for task, names in labels.items()
        },
        by={task: tuple(one[task]["by"] for one in outputs) for task in tasks},
        after_ms={task: tuple(one[task]["after_ns"] / 1e6 for one in outputs) for task in tasks},
        peak_bytes=most,
    )


def peak_bytes(pid: int) -> int:
    """Most resident memory of a process so far (proc(5), ``status``, VmHWM); 0 where it has ended."""
    try:
        status = Path("/proc", str(pid), "status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) * _KIB if found else 0


class _Runner:
    """Starts edge processes on the near side of a network."""

    def __init__(self, network: Network, folder: Path, bundle: Bundle, url: str, group: Path | None) -> None:
        self._network, self._folder, self._bundle, self._url, self._group = network, folder, bundle, url, group

    def answers(self, variant: Variant, link: Link | Varying, data: Path, samples: Samples) -> Answers:
        """One process over all images of a file."""
        self._network.play(link.trace())
        argv = [sys.executable, "-m", "runtime_edge", "run", "--bundle", str(self._folder), "--data", str(data)]
        argv += ["--split", variant.split, "--server", self._url, *_NO_FALLBACK, *variant.options]
        with contextlib.ExitStack() as stack:
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = stack.enter_context(
                self._network.start_near(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
            )
            if self._group is not None:
                (self._group / "cgroup.procs").write_text(str(process.pid))
            labels = {
                task.name: [task.labels[i] for i in samples.labels[task.name]]
                for task in self._bundle.tasks
                if task.name in samples.labels
            }
            found = read_answers(iter(process.stdout), labels, lambda: peak_bytes(process.pid))
            if process.wait() != 0:
                errors.seek(0)
                raise RuntimeError(f"{variant.name}: the edge runtime failed: {errors.read()[-500:]}")
        return found


def emulated() -> Network:
    """The best emulator that this machine allows."""
    return TunNetwork() if TunNetwork.missing() is None else ProxyNetwork()


def measure(
    folder: Path,
    data: Path,
    links: Sequence[Link | Varying],
    variants: Sequence[Variant],
    rounds: int,
    images: int = 8,
    share: float | None = None,
    first: int = 0,
) -> list[Cell]:
    """Every variant over every link.

    Args:
        folder: the bundle.
        data: ``.npz`` of images, labelled or not.
        links: to measure over.
        variants: to measure.
        rounds: processes per variant and link, interleaved.
        images: that each of them answers behind its warm-up; every round has others, as far as there are.
        share: of one processor for the edge; ``None`` for all.
        first: image of the first round.

    Returns:
        Cells by link, then by variant.

    Raises:
        RuntimeError: a process failed or an image was not answered.
    """
    bundle = load_bundle(folder)
    samples = load_samples(data, bundle.preprocessing.source_channels)
    found: dict[tuple[Link | Varying, Variant], list[Answers]] = {(link, one): [] for link in links for one in variants}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = stack.enter_context(emulated())  # type: ignore[arg-type]  # the tests' emulator is not typed here
        url = stack.enter_context(server(network, folder))  # type: ignore[arg-type]  # likewise
        group = None if share is None else stack.enter_context(slow_board(share))
        runner = _Runner(network, folder.resolve(), bundle, url, group)
        for number in range(rounds):
            rows = [i % len(samples) for i in range(first + number * images, first + number * images + images + N_WARM)]
            chosen = samples.rows(rows)
            file = work / f"{number}.npz"
            save_samples(file, chosen.images, chosen.labels)
            cells = list(found)
            turn = number * len(cells) // rounds
            for link, variant in [*cells[turn:], *cells[:turn]]:
                found[link, variant].append(runner.answers(variant, link, file, chosen))
            print(f"round {number + 1} of {rounds} over {len(links)} links", file=sys.stderr, flush=True)
    return [Cell(variant, link, tuple(answers), share) for (link, variant), answers in found.items()]


def judge(folder: Path, data: Path, variants: Sequence[Variant], images: int) -> list[Cell]:
    """Every variant on as many images, one process each, over a fast link: answers do not depend on it."""
    return measure(folder, data, [Link(1000, 1)], variants, 1, images - N_WARM)


def markdown(cells: Sequence[Cell]) -> str:
    """Sizes, times and memory of cells."""
    header = ["link", "answered by", "bytes sent", "p50 ms", "p90 ms", "board ms", "board MiB"]
    return table(header, [[str(cell.link), *cell.row()] for cell in cells], left=2)


def accuracy_table(judged: Sequence[Cell]) -> str:
    """Share of right answers by variant and task."""
    rows = [[cell.variant.name, *(f"{100 * share:.2f}" for share in cell.accuracy.values())] for cell in judged]
    return table(["answered by", *(f"{task}, %" for task in judged[0].accuracy)], rows)


def about(cells: Sequence[Cell]) -> str:
    """One line on how the cells were measured."""
    first = cells[0]
    n = len(first.total_ms)
    edge = "one thread of this machine"
    if first.share is not None:
        edge = f"{first.share:g} of one processor of this machine: a model of a slower edge, not a board"
    return f"{n} answers per cell in {len(first.answers)} interleaved rounds; the edge ran on {edge}."


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", default="", help="ids, comma-separated (default: all)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=8, help="per round and variant")
    parser.add_argument("--share", type=float, help="of one processor, for the edge")
    options = parser.parse_args()
    splits = [one for one in options.splits.split(",") if one]
    variants = variants_of(load_bundle(options.bundle), splits)
    cells = measure(options.bundle, options.data, LINKS, variants, options.rounds, options.images, options.share)
    right = [accuracy_table(cells[: len(variants)])] if cells[0].accuracy else []
    print("\n\n".join([markdown(cells), *right, about(cells), paragraph(take_stamp())]))


if __name__ == "__main__":
    main()

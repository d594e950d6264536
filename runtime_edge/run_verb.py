"""``splitboard-edge run``: its options, and what is made of them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Iterator, Optional, Sequence, Tuple, Union

import numpy as np

from runtime_edge.bench.environment import read_environment
from runtime_edge.engines.choice import Resources, bind_cpus, make_engine
from runtime_edge.link.connection import LinkError, Security
from runtime_edge.link.link import TIMEOUT_S, Link
from runtime_edge.link.sender import CODINGS, JPEG, PLAIN, ZSTD, Sender
from runtime_edge.link.watch import ServerWatch
from runtime_edge.loop.answers import AnswerFile, AnswerPrinter, TaskPrinter, answered_image
from runtime_edge.loop.run import run, run_overlapped, stopping_on_signals
from runtime_edge.loop.session import AUTO, FALLBACKS, LOCAL, Answered, Manners, OnTask, Session
from runtime_edge.loop.sources import Frame, open_source
from runtime_edge.loop.tally import Tally
from runtime_edge.pipeline import Pipeline
from runtime_edge.policy.choosers import Chooser, FixedSplit
from runtime_edge.policy.costs import as_jpeg, measured_costs, recorded_costs
from runtime_edge.policy.dynamic_split import DynamicSplit, Objective, SplitCost
from runtime_edge.tensorrt.options import build_options
from splitboard.contract.answers import SCHEMA_VERSION, RunStart, RunSums
from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle
from splitboard.contract.errors import EXIT_PASS, UserError
from splitboard.contract.exits import read_exit_rules
from splitboard.contract.interface import Interface, interface

EXIT_INTERRUPTED = 130
START_TIMEOUT_S = 3.0
"""What a server that is to be asked first may take."""


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where the server is and how to talk to it."""
    parser.add_argument("--server", metavar="URL", help="of splitboard serve; not needed for local only")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help=f"default {TIMEOUT_S:g} s")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="holds the server's bearer token")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="certificates to trust for https, PEM")
    parser.add_argument("--jpeg-quality", type=int, default=90, metavar="Q", help="of --coding jpeg (default 90)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``run`` alone."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="folder of images, .npz, video, camera:0, package.module:callable",
    )
    parser.add_argument("--path", type=Path, metavar="DIR", help="folder that the callable's package lies in")
    parser.add_argument("--split", required=True, metavar="ID", help="of the bundle, or auto: chosen per image")
    parser.add_argument("--among", metavar="ID,ID", help="what auto chooses from (default: all splits)")
    parser.add_argument(
        "--costs", type=Path, metavar="RUNS.jsonl", help="of an earlier bench here, in place of measuring"
    )
    parser.add_argument("--deadline", type=float, metavar="MS", help="of every image, the fallback included")
    parser.add_argument("--fallback", choices=FALLBACKS, default=LOCAL, help="while there is no server (default local)")
    parser.add_argument("--exits", type=Path, metavar="RULES.json", help="of splitboard thresholds: early exits")
    parser.add_argument(
        "--coding", choices=(*CODINGS, AUTO), default=PLAIN, help="of requests; auto: zstd where it pays (default none)"
    )
    parser.add_argument("--joules", type=float, default=0.0, metavar="W", help="auto: seconds that a joule is worth")
    parser.add_argument("--pipeline", action="store_true", help="the next edge half while the server computes")
    parser.add_argument("--rate", type=float, metavar="HZ", help="at most so many images a second")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--cpus", metavar="0,1", help="processors to stay on")
    parser.add_argument(
        "--arena", type=float, metavar="MIB", help="for splits set up ahead (default: half of what is free)"
    )
    parser.add_argument("--stream", action="store_true", help="print every task's answer at once, not every image's")
    parser.add_argument("--out", type=Path, metavar="FILE", help="answers as lines of JSON (default: standard output)")


def security(options: argparse.Namespace) -> Security:
    """Token and certificates.

    Raises:
        UserError: the token's file cannot be read.
    """
    if options.token_file is None:
        return Security(None, options.ca)
    try:
        return Security(options.token_file.read_text(encoding="ascii").strip(), options.ca)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'"{options.token_file}" holds no token: {error}', ["--token-file FILE"]) from error


def resources(options: argparse.Namespace) -> Resources:
    """What the engine may use."""
    arena = getattr(options, "arena", None)
    if arena is not None and not 0 <= arena < 1 << 30:
        raise UserError(f'--arena is "{arena:g}"', ["--arena 64, in MiB"])
    return Resources(options.threads, None if arena is None else round(arena * (1 << 20)), build_options(options))


def run_verb(options: argparse.Namespace, arguments: Tuple[str, ...]) -> int:
    """Answers every image of the source."""
    _check(options)
    if options.cpus is not None:
        bind_cpus(options.cpus)
    bundle = load_bundle(options.bundle)
    sha256 = bundle_sha256(options.bundle)
    frames = open_source(options.data, bundle.preprocessing.source_channels, options.path)
    if options.limit is not None:
        frames = _first(frames, options.limit)
    deadline_ns = None if options.deadline is None else round(options.deadline * 1e6)
    tally = Tally([task.name for task in bundle.tasks], deadline_ns)
    period_s = 0.0 if options.rate is None else 1 / options.rate
    with contextlib.ExitStack() as stack:
        sink: Union[AnswerFile, AnswerPrinter, TaskPrinter] = TaskPrinter(bundle) if options.stream else AnswerPrinter()
        if options.out is not None:
            sink = stack.enter_context(AnswerFile(options.out))
        on_task = sink.task if isinstance(sink, TaskPrinter) else None
        session, chooser, engine = stack.enter_context(_session(options, bundle, sha256, on_task))
        if isinstance(sink, AnswerFile):
            sink.start(RunStart(SCHEMA_VERSION, bundle.name, sha256, arguments, read_environment(engine)))
        stop = stack.enter_context(stopping_on_signals())

        notice = _Notice()

        def emit(frame: Frame, done: Answered) -> None:
            if options.split == AUTO and done.answer is not None and done.answer.server is None:
                raise UserError(
                    f'the server at "{options.server}" sends no Server-Timing, which --split auto needs',
                    ["--split ID", "splitboard serve BUNDLE"],
                )
            tally.add(done, frame.labels)
            notice.tell(done)
            sink.image(answered_image(bundle, frame, done, chooser.link))

        try:
            (run_overlapped if options.pipeline else run)(session, frames, emit, stop, period_s)
        finally:  # a source or a disk that fails half-way does not take the answers until then with it
            sums = tally.sums(stop.is_set())
            if isinstance(sink, AnswerFile):
                sink.sums(sums)
            _tell(sums)
    return EXIT_INTERRUPTED if stop.is_set() else EXIT_PASS


class _Notice:
    """Says on standard error when the server is lost and when it is there again."""

    def __init__(self) -> None:
        self._lost = False

    def tell(self, done: Answered) -> None:
        """Looks at one image."""
        if done.failure is not None and not self._lost:
            self._lost = True
            sys.stderr.write(f"image {done.number}: without the server ({done.failure})\n")
        elif done.answer is not None and self._lost:
            self._lost = False
            sys.stderr.write(f"image {done.number}: the server answers again\n")


def _check(options: argparse.Namespace) -> None:
    for name, value in (("--deadline", options.deadline), ("--rate", options.rate), ("--timeout", options.timeout)):
        if value is not None and not 0 < value < 1e9:
            raise UserError(f'{name} is "{value:g}"', [f"{name} with a number above 0"])
    if options.limit is not None and options.limit < 1:
        raise UserError(f'--limit is "{options.limit}"', ["give at least 1"])
    if options.stream and options.out is not None:
        raise UserError(f'--stream prints, and --out is "{options.out}"', ["leave one of them out"])
    if options.joules < 0:
        raise UserError(f'--joules is "{options.joules:g}"', ["0, or how many seconds a joule is worth"])
    if options.joules > 0 and options.costs is None:
        raise UserError("--joules needs to know the energy of every split", ["--costs RUNS.jsonl of bench --energy"])


def _first(frames: Iterator[Frame], n: int) -> Iterator[Frame]:
    for i, frame in enumerate(frames):
        yield frame
        if i + 1 == n:
            return


@contextlib.contextmanager
def _session(
    options: argparse.Namespace, bundle: Bundle, sha256: str, on_task: Optional[OnTask]
) -> Iterator[Tuple[Session, Chooser, str]]:
    """A session, what chooses its splits, and the engine's name; ``none`` where nothing runs on the board."""
    splits = _splits(options, bundle)
    check_coding(options.coding, splits)
    asked = [interface(bundle, sha256, split) for split in splits if not split.is_local]
    manners = Manners(
        fallback=options.fallback,
        deadline_s=None if options.deadline is None else options.deadline / 1e3,
        coding=options.coding,
        rules=None if options.exits is None else read_exit_rules(options.exits, bundle, sha256),
    )
    with contextlib.ExitStack() as stack:
        sender, watch = None, None
        if options.server is not None and asked:
            allowed = security(options)
            link = stack.enter_context(Link(options.server, options.timeout, allowed))
            sender = Sender(link, options.jpeg_quality)
            watch = ServerWatch(Link(options.server, options.timeout, allowed), asked[0])
            _greet_or_wait(sender, asked, watch, options.coding)
        made = make_engine(options.bundle, bundle, splits, resources(options))
        engine = None if made is None else stack.enter_context(made)
        pipeline = Pipeline(bundle, sha256, splits, engine, sender)
        if watch is not None:
            stack.enter_context(watch)
        chooser = _chooser(options, pipeline, splits, sha256)
        session = Session(pipeline, splits, chooser, watch, manners, on_task)
        yield session, chooser, "none" if engine is None else engine.name


def _splits(options: argparse.Namespace, bundle: Bundle) -> Tuple[Split, ...]:
    """What may run: what was named, or all, and local only where that stands in."""
    if options.split == AUTO:
        wanted = {split.id for split in bundle.splits}
        if options.among is not None:
            wanted = {bundle.split(name).id for name in _named(options.among)}
    else:
        if options.among is not None:
            raise UserError(f'--among is of --split auto, and --split is "{options.split}"', ["--split auto"])
        wanted = {bundle.split(options.split).id}
    if options.fallback == LOCAL and any(not bundle.split(one).is_local for one in wanted):
        wanted |= {split.id for split in bundle.splits if split.is_local}
    return tuple(split for split in bundle.splits if split.id in wanted)


def _named(text: str) -> Tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def check_coding(coding: str, splits: Sequence[Split]) -> None:
    """Refuses JPEG where no image is sent.

    Raises:
        UserError: none of the splits is remote only.
    """
    if coding == JPEG and not any(split.is_remote for split in splits):
        names = ", ".join(split.id for split in splits)
        raise UserError(f'the coding "jpeg" is for images, and "{names}" sends none', ["--split s00", "--coding zstd"])


def greet(sender: Sender, asked: Sequence[Interface], coding: str) -> None:
    """Asks the server whose bundle it serves and what it can, before the first image.

    Raises:
        LinkError: it is not there, serves another bundle or none of this name, or does not know us.
        UserError: the coding that was asked for cannot be used.
    """
    for to in asked:
        sender.link.check_pair(to, min(START_TIMEOUT_S, sender.link.timeout_s))
    # With AUTO nothing is asked for, and the answer is remembered.
    if not sender.can(ZSTD if coding == AUTO else coding) and coding != AUTO:
        raise UserError(
            f'the coding "{coding}" is not known to both sides',
            [f"install {'zstandard' if coding == ZSTD else 'pillow'} on board and server", "--coding none"],
        )


def _greet_or_wait(sender: Sender, asked: Sequence[Interface], watch: ServerWatch, coding: str) -> None:
    """`greet`, where a server that is not there yet is waited for by the watch; one that will never do is an error."""
    try:
        greet(sender, asked, coding)
    except LinkError as error:
        if error.reason not in ("unreachable", "timeout", "closed", "overloaded", "draining"):
            raise
        watch.lost(error.reason)
        sys.stderr.write(f"{error.message}; going on without it until it is there\n")


def _chooser(options: argparse.Namespace, pipeline: Pipeline, splits: Tuple[Split, ...], sha256: str) -> Chooser:
    local = next((split for split in splits if split.is_local), None)
    if options.split == AUTO:
        objective = Objective(
            energy=options.joules,
            deadline_ns=None if options.deadline is None else round(options.deadline * 1e6),
        )
        # What stands in while there is no server is no choice, unless it was named.
        named = splits if options.among is None else tuple(s for s in splits if s.id in _named(options.among))
        return DynamicSplit(_costs(options, pipeline, named, sha256), objective)
    local_ns = 0.0
    if local is not None and options.deadline is not None:
        (cost,) = _costs(options, pipeline, (local,), sha256)
        local_ns = cost.edge_ns
    return FixedSplit(options.split, None if local is None else local.id, local_ns)


def _costs(
    options: argparse.Namespace, pipeline: Pipeline, splits: Tuple[Split, ...], sha256: str
) -> Tuple[SplitCost, ...]:
    if options.costs is not None:
        costs = recorded_costs(options.costs, sha256, splits)
    else:
        costs = measured_costs(pipeline, splits)
    if options.coding != JPEG:
        return costs
    with np.load(options.bundle / pipeline.bundle.golden, allow_pickle=False) as golden:
        images = golden["images"]
    remote = {split.id for split in splits if split.is_remote}
    return tuple(as_jpeg(one, images, options.jpeg_quality) if one.split in remote else one for one in costs)


def _tell(sums: RunSums) -> None:
    """The sums for people, on standard error."""
    if sums.n == 0 or sums.p50_ns is None:
        sys.stderr.write("0 images\n")
        return
    lines = [
        f"{sums.n} images in {sums.seconds:.1f} s, {sums.images_per_s:.1f} a second, latency p50 "
        f"{sums.p50_ns / 1e6:.1f} ms"
    ]
    for name, task in sums.tasks.items():
        by = ", ".join(f"{count} by {who}" for who, count in sorted(task.answers.items()))
        right = "" if task.accuracy is None else f", {100 * task.accuracy:.2f} % right"
        lines.append(f"{name}: {by}{right}")
    if len(sums.splits) > 1:
        lines.append("splits: " + ", ".join(f"{count} x {split}" for split, count in sums.splits.items()))
    if sums.late:
        lines.append(f"after the deadline: {sums.late}")
    if sums.failures:
        lines.append("without the server: " + ", ".join(f"{n} x {why}" for why, n in sorted(sums.failures.items())))
    sys.stderr.write("\n".join(lines) + "\n")

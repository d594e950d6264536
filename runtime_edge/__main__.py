"""The board's command line: ``python3 splitboard-edge.pyz VERB``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Callable, Iterator, List, NoReturn, Optional, Sequence, Tuple

import numpy as np

from runtime_edge.bench.energy import N_WINDOWS, NOT_ASKED, WINDOW_S, EnergyWindows, Plan, measure_energy
from runtime_edge.bench.environment import read_environment
from runtime_edge.bench.measure import Conditions, measure, records
from runtime_edge.bench.steady import add_clock_options, steady
from runtime_edge.bench.tether import tethered
from runtime_edge.engines.choice import find_runtime, make_engine
from runtime_edge.link.link import Link
from runtime_edge.link.sender import CODINGS, PLAIN, Sender
from runtime_edge.meters.find import AUTO, HELP, find_meter
from runtime_edge.meters.meter import Meter
from runtime_edge.pipeline import Pipeline
from runtime_edge.run_verb import (
    EXIT_INTERRUPTED,
    add_run_options,
    add_server_options,
    check_coding,
    greet,
    resources,
    run_verb,
    security,
)
from runtime_edge.selfcheck import local_split, selfcheck
from runtime_edge.tensorrt.options import add_build_options, add_trt_build, add_trt_profile
from splitboard import __version__
from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle
from splitboard.contract.errors import (
    EXIT_BUG,
    EXIT_GATE_FAILED,
    EXIT_PASS,
    EXIT_USER_ERROR,
    Inconclusive,
    SplitboardError,
    UserError,
)
from splitboard.contract.interface import interface
from splitboard.contract.record import write_records
from splitboard.contract.samples import Samples, load_samples

EXIT_BROKEN_PIPE = 141

_EXAMPLES = """examples:
  python3 splitboard-edge.pyz doctor
  python3 splitboard-edge.pyz selfcheck --bundle elpv.bundle
  python3 splitboard-edge.pyz run   --bundle elpv.bundle --data cells/ --split s07 --server http://10.0.0.5:8000
  python3 splitboard-edge.pyz run   --bundle elpv.bundle --data camera:0 --split auto --deadline 100 \\
      --server https://10.0.0.5:8000 --token-file token --out answers.jsonl
  python3 splitboard-edge.pyz bench --bundle elpv.bundle --data cells.npz --splits all --server http://10.0.0.5:8000 \\
      --out runs/board.jsonl
  python3 splitboard-edge.pyz trt-build   --bundle int8.bundle --power-mode MAXN_SUPER --sudo
  python3 splitboard-edge.pyz trt-profile --bundle int8.bundle --beside fp16.bundle
"""


class _Parser(argparse.ArgumentParser):
    """Usage errors in our form and with our exit code."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, [f"{self.prog} --help"])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="splitboard-edge",
        description="Runs the edge half of a splitboard bundle and measures it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, does: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=does, description=does)
        made.set_defaults(run=run)
        return made

    doctor = verb("doctor", "what this board has, as JSON; exit 3 where something is in the way", _doctor)
    doctor.add_argument("--bundle", type=Path, metavar="DIR", help="also check this bundle's files")
    check = verb(
        "selfcheck", "golden inputs against the float model's outputs; exit 1 where they are too far", _selfcheck
    )
    run = verb("run", "answers images, one line of JSON each, with the server and without it", _run)
    bench = verb("bench", "latency, and with --energy joules, of splits on images", _bench)
    for made in (check, run, bench):
        made.add_argument("--bundle", type=Path, required=True, metavar="DIR")
        made.add_argument("--threads", type=int, default=1, help="of the edge engine (default 1)")
        add_build_options(made)
    for made in (run, bench):
        add_server_options(made)
    add_run_options(run)
    bench.add_argument("--data", type=Path, required=True, help=".npz with images, or a folder of images of one size")
    bench.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    bench.add_argument("--coding", choices=CODINGS, default=PLAIN, help="of requests (default none)")
    bench.add_argument("--splits", default="all", metavar="ID,ID", help="ids or all (default)")
    bench.add_argument("--out", type=Path, required=True, metavar="RUNS.jsonl")
    bench.add_argument("--warmup", type=int, default=20, metavar="N", help="discarded per split (default 20)")
    _add_energy_options(bench)
    _add_board_options(bench)
    bench.add_argument("--emulated", action="store_true", help="the processor is emulated: no time means anything")
    bench.add_argument("--board", metavar="KIND", help="kind of board, for the record (default: the bundle's)")
    add_trt_build(verb("trt-build", "builds a bundle's engines for TensorRT; says what became of INT8", _trt_build))
    add_trt_profile(verb("trt-profile", "every layer's precision and time; why INT8 is slower", _trt_profile))
    return parser


def _add_energy_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--energy", action="store_true", help="also energy: about a minute per split")
    bench.add_argument("--require-energy", action="store_true", help="energy, or exit 2 where no meter tells it")
    bench.add_argument("--meter", default=AUTO, metavar="NAME", help=HELP)
    bench.add_argument("--cross-check", metavar="NAME", help="a second meter, named likewise, over the same windows")
    bench.add_argument("--windows", type=int, default=N_WINDOWS, metavar="N", help=f"per split (default {N_WINDOWS})")
    bench.add_argument(
        "--window-s", type=float, default=WINDOW_S, metavar="S", help=f"length of a window (default {WINDOW_S:g})"
    )


def _add_board_options(bench: argparse.ArgumentParser) -> None:
    add_clock_options(bench)
    bench.add_argument("--end-with-stdin", action="store_true", help="do not outlive the connection that started it")
    bench.add_argument("--progress-lines", action="store_true", help="progress for a program: lines on standard error")


def _doctor(options: argparse.Namespace) -> int:
    problems: List[UserError] = []
    bundle: Optional[Bundle] = None
    runtime = "none"
    try:
        if options.bundle is not None:
            bundle = load_bundle(options.bundle)
    except UserError as error:
        problems.append(error)
    try:
        runtime = find_runtime(bundle)
    except UserError as error:
        problems.append(error)
    said = {
        "splitboard": __version__,
        "numpy": np.__version__,
        "environment": dataclasses.asdict(read_environment(runtime)),
        "energy": find_meter().source,
        "problems": [{"message": problem.message, "tries": list(problem.tries)} for problem in problems],
    }
    _say(json.dumps(said, indent=1))
    return EXIT_USER_ERROR if problems else EXIT_PASS


def _selfcheck(options: argparse.Namespace) -> int:
    bundle = load_bundle(options.bundle)
    made = make_engine(options.bundle, bundle, (local_split(bundle),), resources(options))
    if made is None:
        raise RuntimeError("local only has no edge half")
    with made as engine:
        found = selfcheck(options.bundle, bundle, engine)
    _say(json.dumps({**dataclasses.asdict(found), "passed": found.passed}))
    return EXIT_PASS if found.passed else EXIT_GATE_FAILED


def _run(options: argparse.Namespace) -> int:
    return run_verb(options, options.arguments)


def _bench(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        if options.end_with_stdin:
            stack.enter_context(tethered())
        stack.enter_context(steady(options))
        return _measured(options)


def _trt_build(options: argparse.Namespace) -> int:
    from runtime_edge.tensorrt.verbs import trt_build  # loaded here, since most boards have no use for it

    return trt_build(options)


def _trt_profile(options: argparse.Namespace) -> int:
    from runtime_edge.tensorrt.verbs import trt_profile

    return trt_profile(options)


def _measured(options: argparse.Namespace) -> int:
    bundle = load_bundle(options.bundle)
    splits = _splits(options.splits, bundle)
    samples = _samples(options, bundle)
    if options.warmup < 0:
        raise UserError(f'--warmup is "{options.warmup}"', ["--warmup 20"])
    meters = _meters(options)
    plan = _plan(options)
    bar = _lines if options.progress_lines else _bar
    with _opened(options, bundle, splits) as (pipeline, engine):
        conditions = Conditions(
            bundle=bundle,
            bundle_sha256=bundle_sha256(options.bundle),
            board=options.board or bundle.board,
            emulated=options.emulated,
            engine=engine,
            threads=options.threads,
            n_warmup=options.warmup,
        )
        before = read_environment(engine)
        timings = measure(pipeline, splits, samples.images, options.warmup, bar("latency"))
        energy = EnergyWindows({}, (), NOT_ASKED)
        if meters is not None:
            energy = measure_energy(pipeline, splits, samples.images, meters[0], bar("energy"), plan, meters[1])
        after = read_environment(engine)
    write_records(options.out, records(conditions, splits, samples, timings, energy, before, after))
    if options.require_energy:
        _check_energy(energy)
    return EXIT_PASS


def _meters(options: argparse.Namespace) -> Optional[Tuple[Meter, Optional[Meter]]]:
    """The meter and the one to check it with; ``None`` where no energy is asked for."""
    if not (options.energy or options.require_energy):
        if options.meter != AUTO or options.cross_check is not None:
            raise UserError('"--meter" and "--cross-check" are of --energy, which is not asked for', ["--energy"])
        return None
    meter = find_meter(spec=options.meter)
    facts = meter.facts()
    if options.require_energy and (facts is None or not facts.total):
        reason = meter.source if facts is None else meter.read().reason
        raise Inconclusive(
            f'energy is required and there is none: "{reason}"', ["--meter NAME", "--energy, which goes on without"]
        )
    return meter, None if options.cross_check is None else find_meter(spec=options.cross_check)


def _plan(options: argparse.Namespace) -> Plan:
    for name, value in (("--windows", options.windows), ("--window-s", options.window_s)):
        if not 0 < value < float("inf"):
            raise UserError(f'{name} is "{value}"', [f"{name} 5"])
    return Plan(options.windows, options.window_s)


def _check_energy(energy: EnergyWindows) -> None:
    """Refuses a run whose meter has failed in the middle; its records are there all the same."""
    for split_id, windows in energy.by_split.items():
        failed = [window.source for window in windows if window.energy_j is None]
        if failed:
            raise Inconclusive(
                f'energy is required and "{len(failed)}" windows of split "{split_id}" have none: {failed[0]}',
                ["measure again"],
            )


def _splits(wanted: str, bundle: Bundle) -> Tuple[Split, ...]:
    """The splits asked for, in the bundle's order whatever the order asked."""
    if wanted == "all":
        return bundle.splits
    chosen = {bundle.split(split_id.strip()).id for split_id in wanted.split(",")}
    return tuple(split for split in bundle.splits if split.id in chosen)


def _samples(options: argparse.Namespace, bundle: Bundle) -> Samples:
    samples = load_samples(options.data, bundle.preprocessing.source_channels)
    if options.limit is None:
        return samples
    if options.limit < 1:
        raise UserError(f'--limit is "{options.limit}"', ["give at least 1"])
    n = options.limit
    return Samples(samples.images[:n], {task: v[:n] for task, v in samples.labels.items()}, samples.hashes[:n])


@contextlib.contextmanager
def _opened(options: argparse.Namespace, bundle: Bundle, splits: Tuple[Split, ...]) -> Iterator[Tuple[Pipeline, str]]:
    """A pipeline with what its splits need, and the engine's name; ``none`` where nothing runs on the board."""
    with contextlib.ExitStack() as stack:
        check_coding(options.coding, splits)
        sha256 = bundle_sha256(options.bundle)
        sender = None
        if options.server is not None:
            sender = Sender(
                stack.enter_context(Link(options.server, options.timeout, security(options))), options.jpeg_quality
            )
            greet(sender, [interface(bundle, sha256, split) for split in splits if not split.is_local], options.coding)
        made = make_engine(options.bundle, bundle, splits, resources(options))
        engine = None if made is None else stack.enter_context(made)
        pipeline = Pipeline(bundle, sha256, splits, engine, sender, options.coding)
        yield pipeline, "none" if engine is None else engine.name


def _say(text: str) -> None:
    """One answer on standard output, at once, so that another program can follow a long run."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _note(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _lines(what: str) -> Callable[[int, int], None]:
    """Progress as lines for the program that started this: ``progress WHAT DONE TOTAL``, at every percent."""
    shown = -1

    def tell(done: int, total: int) -> None:
        nonlocal shown
        if 100 * done // total != shown:
            shown = 100 * done // total
            _note(f"progress {what} {done} {total}")

    return tell


def _bar(what: str) -> Callable[[int, int], None]:
    """A progress bar on standard error, only where that is a terminal."""
    if not sys.stderr.isatty():
        return lambda *_: None
    shown = -1

    def draw(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // total
        if percent != shown:
            shown = percent
            filled = "#" * (percent // 5)
            sys.stderr.write(f"\r{what} [{filled:<20}] {done}/{total}" + ("\n" if done == total else ""))
            sys.stderr.flush()

    return draw


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one verb.

    Args:
        arguments: without the program's name; the process's own by default.

    Returns:
        The exit code: 0 pass, 1 a gate failed, 2 inconclusive, 3 wrong input, 70 our own bug, 130 interrupted.
    """
    try:
        given = tuple(sys.argv[1:] if arguments is None else arguments)
        options = _parser().parse_args(given, argparse.Namespace(arguments=given))
        code = options.run(options)
        return int(code)
    except SplitboardError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; standard output must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception:  # the roof: everything that was not foreseen is our bug and is shown whole
        traceback.print_exc()
        return EXIT_BUG


if __name__ == "__main__":
    sys.exit(main())

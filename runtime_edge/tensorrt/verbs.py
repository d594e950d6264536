"""``splitboard-edge trt-build`` and ``trt-profile``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Iterable, Iterator, List, NamedTuple, Optional, Tuple

from runtime_edge.bench.environment import read_environment
from runtime_edge.bench.steady import steady
from runtime_edge.cuda.seam import Cuda, find_cuda
from runtime_edge.tensorrt.compare import compare
from runtime_edge.tensorrt.library import Library, find_library
from runtime_edge.tensorrt.options import RUNS, BuildOptions, build_options
from runtime_edge.tensorrt.prepare import Workshop
from runtime_edge.tensorrt.profile import SCHEMA_VERSION, EngineProfile, Looked, Task, look
from runtime_edge.tensorrt.tables import comparison_lines, profile_lines, summary_lines
from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle
from splitboard.contract.decode import to_json
from splitboard.contract.errors import EXIT_PASS, UserError
from splitboard.contract.folder import write_whole


def trt_build(options: argparse.Namespace) -> int:
    """Builds the engines that are not there yet, and says what became of INT8."""
    given = _given(options.bundle)
    splits = chosen_splits(options.splits, given.bundle)
    with _looking(options, given) as (looker,):
        profiles = []
        for split, place in _placed(splits):
            looked = looker.look(split, place)
            _say(summary_lines(split.id, looked))
            profiles.append(looker.profile(split, looked))
    _write(options.out, profiles)
    return EXIT_PASS


def trt_profile(options: argparse.Namespace) -> int:
    """Times every layer, beside the same split in another precision where that is given."""
    if not 1 <= options.runs <= 1_000_000:
        raise UserError(f'--runs is "{options.runs}"', [f"--runs {RUNS}"])
    given = [_given(options.bundle)]
    splits = chosen_splits(options.splits, given[0].bundle)
    if options.beside is not None:
        given.append(_beside(options.beside, given[0], splits))
    with _looking(options, *given) as (looker, *others):
        profiles = []
        for split, place in _placed(splits):
            looked = looker.look(split, place)
            profiles.append(looker.profile(split, looked))
            if not others:
                _say(profile_lines(split.id, looked))
            for beside in others:
                other = beside.look(beside.bundle.split(split.id), place)
                profiles.append(beside.profile(split, other))
                titles = (looker.bundle.precision, beside.bundle.precision)
                _say(comparison_lines(split.id, titles, looked, other, compare(looked.side, other.side)))
    _write(options.out, profiles)
    return EXIT_PASS


class _Given(NamedTuple):
    """A bundle of the command line, read before anything is asked of TensorRT."""

    folder: Path
    bundle: Bundle


def _given(folder: Path) -> _Given:
    """Reads a bundle and checks that TensorRT can build engines of it."""
    bundle = load_bundle(folder)
    if not all(path.endswith(".onnx") for path in bundle.edge_files):
        raise UserError(
            f'"{folder}" holds "{bundle.edge_files[0]}", and TensorRT builds engines of ONNX files',
            ["splitboard build MODEL --board jetson-orin-nano"],
        )
    return _Given(folder, bundle)


def _beside(folder: Path, first: _Given, splits: Tuple[Split, ...]) -> _Given:
    """Another bundle of the same model, which has these splits too."""
    other = _given(folder)
    if other.bundle.model_sha256 != first.bundle.model_sha256:
        raise UserError(f'"{folder}" is of another model than the bundle', ["--beside, built from the same model"])
    for split in splits:
        other.bundle.split(split.id)
    return other


class _Looker:
    """Looks into the engines of one bundle."""

    def __init__(self, given: _Given, building: BuildOptions, runs: int, library: Library, cuda: Cuda) -> None:
        folder, self.bundle = given
        self._library, self._cuda = library, cuda
        self._sha256 = bundle_sha256(folder)
        self._task = Task(folder, self.bundle, building.dla, runs)
        self._workshop = Workshop(library, cuda.compute_capability(), folder, self.bundle, building)

    def look(self, split: Split, place: str) -> Looked:
        """See `runtime_edge.tensorrt.profile.look`."""
        return look(self._task, split, place, self._workshop, self._library, self._cuda)

    def profile(self, split: Split, looked: Looked) -> EngineProfile:
        """What was seen, as a result."""
        name = f"tensorrt {self._library.version}, {self._cuda.name}, {looked.how}"
        return EngineProfile(
            schema_version=SCHEMA_VERSION,
            bundle_name=self.bundle.name,
            bundle_sha256=self._sha256,
            split=split.id,
            precision=self.bundle.precision,
            engine=name,
            engine_sha256=looked.sha256,
            build_seconds=looked.seconds,
            layers=looked.reports,
            findings=looked.findings,
            off_dla=looked.off_dla,
            device_ns=looked.device_ns,
            environment=read_environment(name),
        )


@contextlib.contextmanager
def _looking(options: argparse.Namespace, *given: _Given) -> Iterator[List[_Looker]]:
    """One for each bundle, with the clocks held from before the first kernel is timed."""
    building = build_options(options)
    library, cuda = find_library(), find_cuda()
    with steady(options), cuda, cuda.current():
        yield [_Looker(one, building, options.runs, library, cuda) for one in given]


def chosen_splits(text: str, bundle: Bundle) -> Tuple[Split, ...]:
    """The splits named on the command line that have an edge half."""
    named = bundle.splits if text == "all" else tuple(bundle.split(part.strip()) for part in text.split(","))
    found = tuple(split for split in named if split.edge is not None)
    if not found:
        raise UserError(f'the board runs nothing of "{text}"', ["--splits all"])
    return found


def _placed(splits: Tuple[Split, ...]) -> Iterator[Tuple[Split, str]]:
    for number, split in enumerate(splits, 1):
        yield split, f"{number} of {len(splits)}"


def _say(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(line + "\n" for line in lines))
    sys.stdout.flush()


def _write(target: Optional[Path], profiles: List[EngineProfile]) -> None:
    if target is not None:
        write_whole(target, "".join(to_json(profile) + "\n" for profile in profiles))

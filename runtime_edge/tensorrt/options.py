"""How engines are built, as it is given on the command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

from runtime_edge.bench.steady import add_clock_options
from splitboard.contract.errors import UserError

RUNS = 100
"""Of every engine, for its times."""


class BuildOptions(NamedTuple):
    """How engines are built and where they are kept.

    Attributes:
        cache: folder of the cache.
        dla: core to run on, ``None`` for the GPU alone.
        workspace_bytes: most scratch memory of a kernel; ``None`` for a share of what is free.
        clocks: what was held still around the build, for the record.
    """

    cache: Path
    dla: Optional[int] = None
    workspace_bytes: Optional[int] = None
    clocks: Tuple[str, ...] = ()


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/splitboard/engines``, with ``~/.cache`` in place of an unset variable."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "splitboard" / "engines"


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that may build an engine."""
    group = parser.add_argument_group("TensorRT")
    group.add_argument("--engine-cache", type=Path, metavar="DIR", help="default ~/.cache/splitboard/engines")
    group.add_argument("--dla", type=int, metavar="CORE", help="run on this DLA core what it can, the rest on the GPU")
    group.add_argument(
        "--workspace", type=int, metavar="MIB", help="most scratch memory (default: 1/4 to 1/2 of what is free)"
    )


def add_trt_build(parser: argparse.ArgumentParser) -> None:
    """The options of ``trt-build``."""
    _add_common(parser)
    parser.set_defaults(runs=0)


def add_trt_profile(parser: argparse.ArgumentParser) -> None:
    """The options of ``trt-profile``."""
    _add_common(parser)
    parser.add_argument("--beside", type=Path, metavar="DIR", help="the bundle in fp16: why is INT8 slower than that")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"timed per engine (default {RUNS})")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--splits", default="all", metavar="ID,ID", help="ids or all (default)")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="layers and findings, a line of JSON per split")
    add_build_options(parser)
    add_clock_options(parser)


def build_options(options: argparse.Namespace) -> BuildOptions:
    """What was given.

    Raises:
        UserError: a number makes no sense.
    """
    if options.workspace is not None and not 1 <= options.workspace < 1 << 20:
        raise UserError(f'--workspace is "{options.workspace}"', ["--workspace 1024, in MiB"])
    if options.dla is not None and options.dla < 0:
        raise UserError(f'--dla is "{options.dla}"', ["--dla 0"])
    held = (getattr(options, "governor", None), getattr(options, "power_mode", None))
    return BuildOptions(
        cache=options.engine_cache or default_cache(),
        dla=options.dla,
        workspace_bytes=None if options.workspace is None else options.workspace << 20,
        clocks=tuple(one for one in held if one is not None),
    )

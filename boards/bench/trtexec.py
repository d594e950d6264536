"""``trtexec``, the program that comes with TensorRT: its arguments by release, and the times that it exports.

Flags differ by release: ``samples/common/sampleOptions.cpp`` of each (NVIDIA/TensorRT, 8.2 at 0a4ed147, 8.4 at
cabb42f0; 11 at ca754f7c of kevinch-nv/TensorRT) and NVIDIA's "Migrating trtexec Usage", 8.x to 10.x and 10.x to 11.x.

========  ==================  ================================  ===============================================
release   workspace           precision                         waiting, copies
========  ==================  ================================  ===============================================
8.2       ``--workspace``     ``--fp16``, ``--int8``            ``--useSpinWait``; copies unless told otherwise
8.4 on    ``--memPoolSize``   the same                          the same
10 on     the same            ``--stronglyTyped``: the graph's  the same
11 on     the same            the graph's, no flag              spins; ``--includeDataTransfers``; graphs unless
                                                                ``--noCudaGraph``
========  ==================  ================================  ===============================================
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from splitboard.contract.errors import SplitboardError

WARM_UP_MS = 1000
DURATION_S = 10
MIN_RUNS = 100
"""However long they take: a percentile needs samples."""

_MEMORY_POOLS = (8, 4)
_STRONGLY_TYPED = (10, 0)
_DEFAULTS_TURNED = (11, 0)
_RELEASE = re.compile(r"\[TensorRT v(\d+)\]")
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class Times:
    """What ``--exportTimes`` holds of the runs behind the warm-up, one of each per run.

    Attributes:
        latency_ns: input copied to the GPU, computed, outputs copied back.
        compute_ns: computed.
    """

    latency_ns: tuple[int, ...]
    compute_ns: tuple[int, ...]


def release_of(said: str) -> tuple[int, ...]:
    """TensorRT's release, from the first line of whatever trtexec prints: ``[TensorRT v8201]``, ``[TensorRT v100300]``.

    Raises:
        SplitboardError: there is no such line.
    """
    match = _RELEASE.search(said)
    if match is None:
        raise SplitboardError(f'trtexec does not tell its release: "{said[:200]}"')
    number = int(match[1])
    if number < 10_000:  # before 10, one digit for the minor number and two for the patch
        return number // 1000, number // 100 % 10, number % 100
    return number // 10_000, number // 100 % 100, number % 100


def trtexec_argv(
    program: str, release: tuple[int, ...], precision: str, onnx: str, times: str, timing_cache: str, workspace_mib: int
) -> list[str]:
    """Arguments that build an engine of an ONNX file and run it, one inference after the other.

    Args:
        program: trtexec.
        release: of TensorRT.
        precision: ``fp32``, ``fp16`` or ``int8``. From 10 on it is the graph's own.
        onnx: the file; what holds its weights lies beside it.
        times: where the times go.
        timing_cache: of kernels that were tried; made where it is not there.
        workspace_mib: the most that a kernel may use beside its tensors.
    """
    argv = [program, f"--onnx={onnx}", *_precision(release, precision)]
    pool = "--memPoolSize=workspace:" if release >= _MEMORY_POOLS else "--workspace="
    argv += [f"{pool}{workspace_mib}", f"--timingCacheFile={timing_cache}"]
    argv += [f"--warmUp={WARM_UP_MS}", f"--duration={DURATION_S}", f"--iterations={MIN_RUNS}"]
    # One image at a time: no copy of the next while this one is computed.
    argv.append("--exposeDMA")
    turned = release >= _DEFAULTS_TURNED
    argv += ["--includeDataTransfers", "--noCudaGraph"] if turned else ["--useSpinWait"]
    return [*argv, f"--exportTimes={times}"]


def _precision(release: tuple[int, ...], precision: str) -> list[str]:
    if release >= _DEFAULTS_TURNED:
        return []
    if release >= _STRONGLY_TYPED:
        return ["--stronglyTyped"]
    return {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[precision]


def read_times(text: str) -> Times:
    """Reads what ``--exportTimes`` wrote.

    TensorRT 8.2 exports the warm-up too (``sampleReporting.cpp`` at 052281f0). Six digits are printed of durations, and
    of points in time as well, which after ten seconds are tenths of milliseconds: no duration is taken as a difference.

    Raises:
        SplitboardError: it is not that.
    """
    try:
        runs = [run for run in json.loads(text) if run["startComputeMs"] >= WARM_UP_MS]
        if not runs:
            raise ValueError("no run behind the warm-up")
        latency_ns = tuple(round(_NS_PER_MS * run["latencyMs"]) for run in runs)
        return Times(latency_ns, tuple(round(_NS_PER_MS * run["computeMs"]) for run in runs))
    except (ValueError, TypeError, KeyError) as error:
        raise SplitboardError(f'trtexec exported no times that can be read: "{text[:200]}"') from error

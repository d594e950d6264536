"""How far a build is: one line that is rewritten on a terminal, two lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, List, Optional, TextIO, Tuple, Type

_EVERY_S = 1.0


class BuildLine:
    """Says what is built, for how long already, and where TensorRT tells it (from 10 on), how much of it is done.

    A thread rewrites the line, since TensorRT 8 calls nobody while it builds; it lets other threads run meanwhile.

    Args:
        what: e.g. ``s07 (2 of 9)``.
        to: standard error by default.
    """

    def __init__(self, what: str, to: Optional[TextIO] = None) -> None:
        self._what = what
        self._to = sys.stderr if to is None else to
        self._phases: List[Tuple[str, int, int]] = []
        self._ended = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._start_s = 0.0

    def __enter__(self) -> BuildLine:
        self._start_s = time.monotonic()
        if self._to.isatty():
            self._thread = threading.Thread(target=self._rewrite, name="build line", daemon=True)
            self._thread.start()
        else:
            self._write(f"building {self._what}: takes minutes\n")
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._write("\r\x1b[K")
        if error is None:
            self._write(f"built {self._what} in {time.monotonic() - self._start_s:.0f} s\n")

    @property
    def text(self) -> str:
        """The line as it is now."""
        said = f"building {self._what}: {time.monotonic() - self._start_s:.0f} s"
        for name, done, steps in self._phases[:1]:
            said += f", {name} {100 * done // max(steps, 1)} %"
        return said

    def start(self, phase: str, steps: int) -> None:
        """A phase begins, inside of those that have begun and not ended."""
        self._phases.append((phase, 0, steps))

    def step(self, phase: str, done: int) -> None:
        """A step of a phase is done."""
        self._phases = [(name, done if name == phase else old, steps) for name, old, steps in self._phases]

    def finish(self, phase: str) -> None:
        """A phase ends."""
        self._phases = [one for one in self._phases if one[0] != phase]

    def _rewrite(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._write(f"\r{self.text}\x1b[K")

    def _write(self, text: str) -> None:
        self._to.write(text)
        self._to.flush()


def monitor(trt: Any, line: BuildLine) -> Any:
    """What TensorRT tells its progress to; ``None`` where it tells none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, _: Optional[str], num_steps: int) -> None:
            line.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            line.step(phase_name, step)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            line.finish(phase_name)

    return _Monitor()

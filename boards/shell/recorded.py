"""A shell without a board: what was captured on one is replayed. It ships: users test without boards too."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path, PurePosixPath

from boards.shell.shell import RUN_TIMEOUT_S, Completed, not_there
from splitboard.contract.errors import UserError


class RecordedShell:
    """Answers from captures by argument list.

    Args:
        name: for messages.
        outputs: what programs printed and how they ended. Of several for one argument list each is given once, in
            their order, the last for ever.
        files: what lies on the board, by path.

    Attributes:
        ran: every argument list that was run, in order.
        given: the standard input of each.
        files: what lies there now.
    """

    def __init__(
        self, name: str, outputs: Iterable[Completed] = (), files: Mapping[PurePosixPath, bytes] | None = None
    ) -> None:
        self.name = name
        self.ran: list[tuple[str, ...]] = []
        self.given: list[bytes] = []
        self.files = dict(files or {})
        self._outputs: dict[tuple[str, ...], list[Completed]] = {}
        for one in outputs:
            self._outputs.setdefault(one.argv, []).append(one)

    def run(self, argv: Seq[str], *, timeout_s: float = RUN_TIMEOUT_S, stdin: bytes = b"") -> Completed:  # noqa: ARG002 - nothing takes time here
        """Replays the capture.

        Raises:
            UserError: there is none of this argument list.
        """
        known = self._outputs.get(tuple(argv))
        if known is None:
            recorded = "; ".join(shlex.join(one) for one in self._outputs)
            raise UserError(f'nothing was recorded of "{shlex.join(argv)}"', [f"recorded: {recorded or 'nothing'}"])
        self.ran.append(tuple(argv))
        self.given.append(stdin)
        return known.pop(0) if len(known) > 1 else known[0]

    def follow(self, argv: Seq[str], on_line: Callable[[str], None]) -> Completed:
        """Replays the capture, its complaints line by line.

        Raises:
            UserError: there is none of this argument list.
        """
        done = self.run(argv)
        for line in done.stderr.splitlines():
            on_line(line)
        return done

    def put(self, source: Path, target: PurePosixPath, progress: Callable[[int, int], None] | None = None) -> None:
        """Keeps the file; see `boards.shell.shell.Shell.put`."""
        content = self.files[target] = source.read_bytes()
        if progress is not None:
            progress(len(content), len(content))

    def get(self, source: PurePosixPath, target: Path) -> None:
        """Writes the file; see `boards.shell.shell.Shell.get`."""
        if source not in self.files:
            raise not_there(self.name, str(source))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.files[source])

    @contextlib.contextmanager
    def reach(self, host: str, port: int) -> Iterator[int]:  # noqa: ARG002 - there is no network
        """The same port; see `boards.shell.shell.Shell.reach`."""
        yield port

"""Coverage-guided fuzzing of the server's protocol object.

Needs the package atheris. Every input is a list of choices for `server_fuzzing.mutated_stream`; a failure is a
traceback and a file with the input, which is given as an argument to run it again.

Usage: python tests/runtime_server/fuzz_atheris.py -runs=100000 -max_len=400 -len_control=0
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

with atheris.instrument_imports(include=["runtime_server", "splitboard.contract"]):
    from server_fuzzing import Fuzzed, check_answers, mutated_stream

T = TypeVar("T")


class Provided:
    """Choices that the fuzzer makes."""

    def __init__(self, data: bytes) -> None:
        self._provider = atheris.FuzzedDataProvider(data)

    def number(self, low: int, high: int) -> int:
        """See `server_fuzzing.Choices`."""
        return int(self._provider.ConsumeIntInRange(low, high))

    def one(self, options: Sequence[T]) -> T:
        """See `server_fuzzing.Choices`."""
        return options[self.number(0, len(options) - 1)]

    def some_bytes(self, most: int) -> bytes:
        """See `server_fuzzing.Choices`."""
        return bytes(self._provider.ConsumeBytes(self.number(0, most)))


def main() -> None:
    """Runs until something fails, or as often as was said."""
    fuzzed = Fuzzed()

    def one_input(data: bytes) -> None:
        choose = Provided(data)
        check_answers(fuzzed.exchange(mutated_stream(choose), times_out=bool(choose.number(0, 1))))

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

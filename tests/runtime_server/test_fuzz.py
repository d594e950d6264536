"""Hostile bytes for the parser of heads and bodies: no exception, no hang, no malformed answer, no growing memory."""

from __future__ import annotations

import random
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_fuzzing import Fuzzed, check_answers, mutated_stream

T = TypeVar("T")
N_SLOW = 100_000


class Seeded:
    """Choices of a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def one(self, options: Sequence[T]) -> T:
        return self._random.choice(options)

    def some_bytes(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randint(0, most))


class Drawn:
    """Choices of hypothesis, which shrinks them."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def number(self, low: int, high: int) -> int:
        found: int = self._data.draw(st.integers(low, high))
        return found

    def one(self, options: Sequence[T]) -> T:
        found: T = self._data.draw(st.sampled_from(options))
        return found

    def some_bytes(self, most: int) -> bytes:
        found: bytes = self._data.draw(st.binary(max_size=most))
        return found


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Fuzzed]:
    server = Fuzzed()
    yield server
    server.service.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_requests_that_are_nearly_right(fuzzed: Fuzzed, data: Any) -> None:
    check_answers(fuzzed.exchange(mutated_stream(Drawn(data)), times_out=data.draw(st.booleans())))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_anything(fuzzed: Fuzzed, pieces: list[bytes]) -> None:
    check_answers(fuzzed.exchange(pieces))


def run(fuzzed: Fuzzed, seeds: range) -> Counter[int]:
    statuses: Counter[int] = Counter()
    for seed in seeds:
        choose = Seeded(seed)
        try:
            statuses.update(check_answers(fuzzed.exchange(mutated_stream(choose), times_out=bool(choose.number(0, 1)))))
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    return statuses


def test_the_mutations_reach_every_kind_of_answer(fuzzed: Fuzzed) -> None:
    statuses = run(fuzzed, range(10_000))
    assert set(statuses) == {200, 400, 404, 405, 408, 409, 413, 415, 504}
    assert statuses[200] > 1400


@pytest.mark.slow
def test_a_hundred_thousand_hostile_streams(fuzzed: Fuzzed) -> None:
    run(fuzzed, range(10_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statuses = run(fuzzed, range(5000, 5000 + N_SLOW))
    assert statuses.total() > N_SLOW / 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # kB

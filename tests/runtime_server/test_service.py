"""The queue behind both fronts, with real graphs and real threads, without sockets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from runtime_server.models import Model, load_models
from runtime_server.service import NO_MODEL, Answer, Service, Ticket
from splitboard.contract.bundle import load_bundle
from splitboard.contract.interface import Reason, WireError
from splitboard.contract.wire import Request


@pytest.fixture(scope="module")
def model(slow_bundle: Path) -> Model:
    return load_models([slow_bundle], threads=1)["tiny-s00"]


def request(model: Model, seed: int = 0, timeout_us: int | None = None) -> Request:
    image = np.random.default_rng(seed).integers(0, 256, model.interface.inputs[0].shape).astype(np.uint8)
    return Request({"image": image}, tuple(spec.name for spec in model.interface.outputs), str(seed), timeout_us)


class Results:
    """What tickets were answered with, by number."""

    def __init__(self) -> None:
        self.found: dict[int, Answer | WireError] = {}
        self._more = threading.Condition()

    def ticket(self, number: int, model: Model, read: Callable[[], Request], began_ns: int | None = None) -> Ticket:
        now_ns = time.perf_counter_ns()

        def done(result: Answer | WireError) -> None:
            with self._more:
                assert number not in self.found
                self.found[number] = result
                self._more.notify()

        return Ticket(model, read, now_ns, began_ns or now_ns, done)

    def wait(self, count: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: len(self.found) >= count, 60)


class Gate:
    """Keeps a worker busy until it is opened."""

    def __init__(self, service: Service, model: Model) -> None:
        self._open, began = threading.Event(), threading.Event()

        def read() -> Request:
            began.set()
            self._open.wait(60)
            return request(model)

        service.submit(Results().ticket(0, model, read), never)
        assert began.wait(60)

    def open(self) -> None:
        self._open.set()


def never(function: Callable[[], None]) -> None:
    raise AssertionError("nothing is short here")


@pytest.fixture
def service(model: Model) -> Iterator[Service]:
    running = Service({"tiny-s00": model}, queue=64)
    yield running
    running.close()


def test_the_queue_is_bounded_and_every_request_is_answered_once_in_its_turn(service: Service, model: Model) -> None:
    gate, results, order = Gate(service, model), Results(), []

    def read(number: int) -> Request:
        order.append(number)
        return request(model, number)

    refused = []
    for number in range(200):
        ticket = results.ticket(number, model, lambda number=number: read(number))  # type: ignore[misc]
        try:
            service.submit(ticket, never)
        except WireError as error:
            refused.append((number, error.reason))
    assert refused == [(number, Reason.OVERLOADED) for number in range(64, 200)]
    assert service.n_waiting == 64
    gate.open()
    results.wait(64)
    assert order == list(range(64))
    session = model.session
    for number, answer in results.found.items():
        assert isinstance(answer, Answer)
        expected = session.run(None, request(model, number).inputs)
        np.testing.assert_array_equal(answer.outputs["shape"], expected[0])
        assert answer.timing.queue_ns > 0
    assert service.statistics("tiny-s00").inference_count == 65


def test_what_has_expired_is_refused_and_not_computed(service: Service, model: Model) -> None:
    gate, results = Gate(service, model), Results()
    service.submit(results.ticket(0, model, lambda: request(model, timeout_us=1000)), never)
    service.submit(results.ticket(1, model, lambda: request(model, timeout_us=60_000_000)), never)
    slow_to_come_ns = time.perf_counter_ns() - 70 * 10**9
    service.submit(results.ticket(2, model, lambda: request(model, timeout_us=60_000_000), slow_to_come_ns), never)
    time.sleep(0.01)
    gate.open()
    results.wait(3)
    first, second, third = (results.found[number] for number in range(3))
    assert isinstance(first, WireError)
    assert isinstance(third, WireError)
    assert first.reason is third.reason is Reason.EXPIRED
    assert isinstance(second, Answer)
    assert service.statistics("tiny-s00").execution_count == 2  # the gate's and the second


def test_a_client_that_goes_away_is_not_computed_for(service: Service, model: Model) -> None:
    gate, results = Gate(service, model), Results()
    tickets = [results.ticket(number, model, lambda: request(model)) for number in range(3)]
    for ticket in tickets:
        service.submit(ticket, never)
    service.withdraw(tickets[1])
    assert service.n_waiting == 2
    gate.open()
    results.wait(2)
    service.withdraw(tickets[0])  # long done: nothing happens
    service.close()
    assert set(results.found) == {0, 2}


def test_a_coroutine_that_is_cancelled_leaves_the_queue(service: Service, model: Model) -> None:
    async def run() -> None:
        gate = Gate(service, model)
        waiting = asyncio.ensure_future(service.infer(model, request(model), time.perf_counter_ns()))
        await asyncio.sleep(0.01)
        assert service.n_waiting == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert service.n_waiting == 0
        gate.open()
        answer = await service.infer(model, request(model, 3), time.perf_counter_ns())
        np.testing.assert_array_equal(answer.outputs["shape"], model.session.run(None, request(model, 3).inputs)[0])

    asyncio.run(run())
    assert service.statistics("tiny-s00").inference_count == 2


def test_a_request_that_breaks_the_graph_is_told_and_the_next_is_served(service: Service, model: Model) -> None:
    results = Results()
    wrong = Request({"image": np.zeros((3, 3), np.uint8)}, ("shape",))
    service.submit(results.ticket(0, model, lambda: wrong), never)
    service.submit(results.ticket(1, model, lambda: 1 // 0), never)  # type: ignore[arg-type, return-value]
    service.submit(results.ticket(2, model, lambda: request(model)), never)
    results.wait(3)
    for number in (0, 1):
        error = results.found[number]
        assert isinstance(error, WireError)
        assert error.reason is Reason.INTERNAL
    assert isinstance(results.found[2], Answer)


def test_draining_refuses_what_begins_and_finishes_what_has(service: Service, model: Model) -> None:
    gate, results = Gate(service, model), Results()
    for number in range(5):
        service.submit(results.ticket(number, model, lambda: request(model)), never)
    service.drain()
    assert not service.ready
    with pytest.raises(WireError) as refusal:
        service.require_open()
    assert refusal.value.reason is Reason.DRAINING
    gate.open()
    service.close()
    assert all(isinstance(answer, Answer) for answer in results.found.values())
    assert len(results.found) == 5


def test_a_short_request_is_computed_where_it_arrived_only_while_it_is_alone(tiny_bundle: Path) -> None:
    model = load_models([tiny_bundle], threads=1)["tiny-s05"]
    ((spec),) = model.interface.inputs
    tensor = np.zeros(spec.shape, spec.dtype)
    threads: Counter[bool] = Counter()
    deferred: list[Callable[[], None]] = []
    service, results = Service({"tiny-s05": model}), Results()

    def read() -> Request:
        threads[threading.current_thread() is threading.main_thread()] += 1
        return Request({spec.name: tensor}, ("shape",))

    for number in range(100):  # until it is known to be short
        service.submit(results.ticket(number, model, read), deferred.append)
        for function in deferred:
            function()
        deferred.clear()
        results.wait(number + 1)
    here = threads[True]
    assert here > 0
    for number in range(100, 150):  # all at once: it is the workers' from the second on
        service.submit(results.ticket(number, model, read), deferred.append)
    for function in deferred:
        function()
    results.wait(150)
    service.close()
    assert all(isinstance(answer, Answer) for answer in results.found.values())
    assert threads[True] - here <= 1


def test_statistics_add_up(service: Service, model: Model) -> None:
    results = Results()
    for number in range(4):
        service.submit(results.ticket(number, model, lambda: request(model)), never)
    results.wait(4)
    service.refused(WireError(Reason.CORRUPT, "x"), "tiny-s00", 500)
    service.refused(WireError(Reason.CORRUPT, "x"), "tiny-s00", 1500)
    service.refused(WireError(Reason.NOT_FOUND, "x"))
    found = service.statistics("tiny-s00")
    timings = [answer.timing for answer in results.found.values() if isinstance(answer, Answer)]
    assert (found.inference_count, found.execution_count, found.fail_count) == (4, 4, 2)
    assert (found.failures, found.fail_ns) == ({"corrupt": 2}, 2000)
    assert found.success_ns == sum(map(sum, timings))
    for stage, times in (("queue", 0), ("decode", 1), ("compute", 2)):
        histogram = getattr(found, stage)
        assert histogram.sum_ns == sum(timing[times] for timing in timings)
        assert sum(histogram.counts) == 4
    assert found.batches == {1: (4, found.compute.sum_ns)}
    assert service.statistics(NO_MODEL).failures == {"not_found": 1}
    assert abs(found.last_inference_ms / 1000 - time.time()) < 60


def test_what_waits_is_batched_and_what_differs_is_not(tiny_bundle: Path) -> None:
    models = load_models([tiny_bundle], threads=1, max_batch=4)
    image, other = models["tiny-s00"], models["tiny-s03"]
    service, results = Service(models, max_batch=4), Results()
    gate = Gate(service, image)
    single = onnxruntime.InferenceSession(
        tiny_bundle / str(load_bundle(tiny_bundle).splits[0].server), providers=["CPUExecutionProvider"]
    )
    ((spec),) = other.interface.inputs
    for number in range(7):
        asked: Any = ("colour",) if number == 2 else ("shape", "colour")
        service.submit(
            results.ticket(number, image, lambda n=number, o=asked: Request(request(image, n).inputs, o)),  # type: ignore[misc]
            never,
        )
        if number < 2:
            wrong = results.ticket(
                10 + number, other, lambda: Request({spec.name: np.zeros(spec.shape, spec.dtype)}, ("shape",))
            )
            service.submit(wrong, never)
    gate.open()
    results.wait(9)
    service.close()
    assert {size: runs for size, (runs, _) in service.statistics("tiny-s00").batches.items()} == {1: 1, 4: 1, 3: 1}
    assert {size: runs for size, (runs, _) in service.statistics("tiny-s03").batches.items()} == {2: 1}
    for number in range(7):
        answer = results.found[number]
        assert isinstance(answer, Answer)
        assert set(answer.outputs) == ({"colour"} if number == 2 else {"shape", "colour"})
        for name, expected in zip(
            ("shape", "colour"), single.run(["shape", "colour"], request(image, number).inputs), strict=True
        ):
            if name in answer.outputs:
                np.testing.assert_allclose(answer.outputs[name], expected, rtol=1e-4, atol=1e-5)

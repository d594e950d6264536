"""A log that another program writes, and a serial line (a pseudo terminal, which the kernel treats as one)."""

from __future__ import annotations

import os
import pty
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime_edge.bench.energy import between
from runtime_edge.meters.find import find_meter
from runtime_edge.meters.meter import Meter
from splitboard.contract.errors import UserError
from splitboard.contract.record import Window


@contextmanager
def running(write: Callable[[], None], every_s: float = 0.02) -> Iterator[None]:
    """Something that writes until it is stopped."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(every_s):
            write()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def a_window(meter: Meter, seconds: float = 0.5) -> Window:
    start = meter.read()
    time.sleep(seconds)
    return between(meter.source, start, meter.read(), 1)


def mean_w(window: Window) -> float:
    if window.energy_j is None:
        raise RuntimeError(window.source)
    return window.energy_j / (window.end_ns - window.start_ns) * 1e9


@pytest.mark.parametrize(("unit_ns", "form"), [(1, "{}"), (10**3, "{}"), (10**6, "{}"), (10**9, "{:.6f}")])
def test_a_log_in_any_unit_of_time(unit_ns: int, form: str, tmp_path: Path) -> None:
    """The power rises by one watt per second of Unix time, so a shift of the clocks would show."""
    path, begun_ns = tmp_path / "log.csv", time.time_ns()
    path.write_text("time,voltage,power_w\n")

    def write() -> None:
        now_ns = time.time_ns()
        stamp = form.format(now_ns // unit_ns if unit_ns < 10**9 else now_ns / 1e9)
        with open(path, "a") as file:
            file.write(f"{stamp},5.1,{3 + (now_ns - begun_ns) / 1e9:.6f}\n")

    offset_ns = time.time_ns() - time.perf_counter_ns()
    with running(write), find_meter(spec=f"csv:{path}") as meter:
        window = a_window(meter)
    middle_s = ((window.start_ns + window.end_ns) / 2 + offset_ns - begun_ns) / 1e9
    assert mean_w(window) == pytest.approx(3 + middle_s, abs=0.02)
    assert window.source == "csv log.csv: external"
    assert window.n_power_samples >= 3


def test_a_line_that_is_no_number_is_counted(tmp_path: Path) -> None:
    path, lines = tmp_path / "log.csv", iter(range(10**6))
    path.write_text("timestamp,power_mw\n")

    def write() -> None:
        value = "overload" if next(lines) % 3 == 0 else "2500"
        with open(path, "a") as file:
            file.write(f"{time.time_ns()},{value}\n")

    with running(write), find_meter(spec=f"csv:{path}") as meter:
        window = a_window(meter)
    assert mean_w(window) == pytest.approx(2.5)
    assert window.n_failed >= 2


def test_a_log_without_the_columns(tmp_path: Path) -> None:
    for text in ("a,b\n1,2\n", ""):
        (tmp_path / "log.csv").write_text(text)
        with pytest.raises(UserError, match='has no columns "time" and "power"'):
            find_meter(spec=f"csv:{tmp_path / 'log.csv'}")


@pytest.mark.parametrize(("line", "watts"), [(b"3.250\n", 3.25), (b"5.00, 0.65\r\n", 3.25)])
def test_a_serial_meter(line: bytes, watts: float) -> None:
    meters_end, ours = pty.openpty()

    def write() -> None:
        os.write(meters_end, line)

    with running(write), find_meter(spec=f"serial:{os.ttyname(ours)}@9600") as meter:
        window = a_window(meter)
    assert mean_w(window) == pytest.approx(watts)
    assert window.source == f"serial {os.ttyname(ours)}: external"
    os.close(meters_end)
    os.close(ours)


def test_a_serial_meter_that_is_unplugged() -> None:
    meters_end, ours = pty.openpty()
    with find_meter(spec=f"serial:{os.ttyname(ours)}") as meter:
        os.write(meters_end, b"cut off\n1.0\n2.0\n")
        os.close(ours)
        os.close(meters_end)
        reading = meter.read()
    assert reading.energy_j is None
    assert "is gone" in (reading.reason or "")

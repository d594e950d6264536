"""Both ends of a conversation across an emulated network, started and ended with a block."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from network.emulator import Network

PROGRAM = [sys.executable, "-m", "network.traffic"]
_OPTIONS: dict[str, Any] = {
    "cwd": Path(__file__).parents[1],
    "stdin": subprocess.PIPE,
    "stdout": subprocess.PIPE,
    "text": True,
}

Ask = Callable[[int, int, int], list[int]]
"""Bytes to send, bytes to get back, how often: the ns of each exchange."""


@contextlib.contextmanager
def program(start: Callable[..., subprocess.Popen[Any]], *words: str) -> Iterator[subprocess.Popen[Any]]:
    """A program of `network.traffic`, started by one of a network's ``start_`` methods and ended with the block."""
    process = start([*PROGRAM, *words], **_OPTIONS)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[Any]) -> str:
    """The next line that a program prints."""
    if process.stdout is None:
        raise RuntimeError("the program's output is not piped")
    return str(process.stdout.readline()).strip()


@contextlib.contextmanager
def conversation(network: Network) -> Iterator[Ask]:
    """One TCP connection from the near to the far side."""
    with program(network.start_far, "serve", network.far_host) as server:
        host, port = network.reach(int(line_of(server)))
        with program(network.start_near, "ask", host, port) as client:

            def ask(n_send: int, n_reply: int, count: int) -> list[int]:
                if client.stdin is None:
                    raise RuntimeError("the program's input is not piped")
                client.stdin.write(f"{n_send} {n_reply} {count}\n")
                client.stdin.flush()
                return [int(ns) for ns in json.loads(line_of(client))]

            yield ask

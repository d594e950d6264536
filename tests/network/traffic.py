"""What the tests send across an emulated network: a server and a client that measures, as programs of their own.

Usage: python -m network.traffic serve HOST
       python -m network.traffic ask HOST PORT
       python -m network.traffic count HOST
       python -m network.traffic flood HOST PORT COUNT SIZE INTERVAL_S
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time


def serve(host: str) -> None:
    """Answers, on TCP: 8 bytes that say how many follow and how many are wanted, those, then as many back."""
    with socket.create_server((host, 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection, connection.makefile("rb") as incoming:
                while head := incoming.read(8):
                    incoming.read(int.from_bytes(head[:4], "big"))
                    connection.sendall(bytes(int.from_bytes(head[4:], "big")))


def ask(host: str, port: int) -> None:
    """On one connection: for every line SEND_BYTES REPLY_BYTES COUNT, the ns of so many exchanges as a JSON list."""
    with socket.create_connection((host, port)) as connection, connection.makefile("rb") as incoming:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for line in sys.stdin:
            n_send, n_reply, n_times = map(int, line.split())
            message = n_send.to_bytes(4, "big") + n_reply.to_bytes(4, "big") + bytes(n_send)
            times = []
            for _ in range(n_times):
                start = time.perf_counter_ns()
                connection.sendall(message)
                incoming.read(n_reply)
                times.append(time.perf_counter_ns() - start)
            print(json.dumps(times), flush=True)


def count(host: str) -> None:
    """Counts UDP packets until one says "end"; prints how many came, and the seconds from the first to the last."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving:
        receiving.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiving.bind((host, 0))
        print(receiving.getsockname()[1], flush=True)
        times = []
        while receiving.recv(2048) != b"end":
            times.append(time.perf_counter())
        print(json.dumps([len(times), times[-1] - times[0]]), flush=True)


def flood(host: str, port: int, count: int, size: int, interval_s: float) -> None:
    """Sends UDP packets, one per interval, a second later some that say "end"."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        due = time.perf_counter()
        for _ in range(count):
            while time.perf_counter() < due:
                time.sleep(0)
            sending.sendto(bytes(size), (host, port))
            # After an interruption some follow at once. All that were missed would be too many for a device's queue.
            due = max(due + interval_s, time.perf_counter() - 100 * interval_s)
        time.sleep(1)
        for _ in range(20):  # any of them may be lost
            sending.sendto(b"end", (host, port))
            time.sleep(0.05)


def hurry() -> None:
    """What is measured is the link, so a busy machine lets this process go first; without root it may not."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)


if __name__ == "__main__":
    hurry()
    what, address, *numbers = sys.argv[1:]
    if what == "serve":
        serve(address)
    elif what == "ask":
        ask(address, int(numbers[0]))
    elif what == "count":
        count(address)
    else:
        flood(address, *map(int, numbers[:3]), float(numbers[3]))

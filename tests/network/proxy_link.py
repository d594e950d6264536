"""The process of `network.emulator.ProxyNetwork`: TCP connections forwarded through a shaper, where there is no root.

Bytes take the trace's time, but there are no packets: nothing is lost, and TCP's own behaviour on a slow or lossy link
(slow start, retransmission) does not show. Reads commands from standard input, one JSON object per line, and ends with
it: a trace, which begins at once, or ``{"forward": PORT}``, answered with the port to connect to instead.

Usage: python -m network.proxy_link QUEUE_BYTES
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time

from network.shaper import Shaper
from network.traces import constant, from_json

HOST = "127.0.0.1"
_CHUNK_BYTES = 4096


class Way:
    """One direction of the link, shared by all its connections.

    Args:
        queue_bytes: after so many waiting bytes, senders have to wait.
        start_s: on the clock of `time.monotonic`.
    """

    def __init__(self, queue_bytes: int, start_s: float) -> None:
        self.shaper = Shaper(constant(1e12, 0.0), start_s, 1 << 60, 0)
        self._queue_bytes = queue_bytes
        self._writers: list[asyncio.StreamWriter] = []
        self._changed = asyncio.Event()

    def play(self, trace_json: str) -> None:
        """Another trace from now on."""
        self.shaper.play(from_json(trace_json), time.monotonic())
        self._changed.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes what is read to the writer, later; then ends it."""
        self._writers.append(writer)
        number = len(self._writers) - 1
        data = b"first"
        while data:
            while self.shaper.waiting_bytes > self._queue_bytes:
                await asyncio.sleep(0.002)
            try:
                data = await reader.read(_CHUNK_BYTES)
            except ConnectionError:
                data = b""
            self.shaper.push(number.to_bytes(4, "big") + data, time.monotonic())
            self._changed.set()

    async def deliver(self) -> None:
        """Writes what has come out, for ever. The end of a connection is delivered in its turn."""
        while True:
            for packet in self.shaper.ready(time.monotonic()):
                writer = self._writers[int.from_bytes(packet[:4], "big")]
                if len(packet) > 4:
                    writer.write(packet[4:])
                else:
                    writer.close()
            self._changed.clear()
            next_s = self.shaper.next_s
            wait_s = None if next_s is None else max(next_s - time.monotonic(), 0.0)
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except asyncio.TimeoutError:
                continue


async def main(queue_bytes: int) -> None:
    """Answers commands until standard input ends."""
    start_s = time.monotonic()
    up, down = Way(queue_bytes, start_s), Way(queue_bytes, start_s)
    tasks = {asyncio.create_task(way.deliver()) for way in (up, down)}

    async def connect(target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, target)
        except OSError:
            writer.transport.abort()
            return
        tasks.add(asyncio.create_task(up.carry(reader, far_writer)))
        tasks.add(asyncio.create_task(down.carry(far_reader, writer)))

    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ready", flush=True)
    while line := await commands.readline():
        command = json.loads(line)
        if "forward" in command:
            target = int(command["forward"])
            server = await asyncio.start_server(lambda r, w, to=target: connect(to, r, w), HOST, 0)
            print(server.sockets[0].getsockname()[1], flush=True)
        else:
            for way in (up, down):
                way.play(line.decode())
            print("playing", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):  # a link is not slower when its machine is busy; without root it may be
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    asyncio.run(main(int(sys.argv[1])))

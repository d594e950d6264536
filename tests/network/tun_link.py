"""The process of `network.emulator.TunNetwork`: two network namespaces, and every packet between them through a shaper.

The kernel's own emulator (netem) is not in every kernel; a TUN device is. Reads from standard input one JSON trace per
line, which begins when it is read, and ends with it, so that the namespaces go when whoever started it has died.

Usage: python -m network.tun_link QUEUE_BYTES
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from network.shaper import Shaper
from network.traces import constant, from_json

NEAR_ADDRESS, FAR_ADDRESS = "10.98.0.1", "10.98.0.2"
NAMESPACES = Path("/run/netns")
_NAME = re.compile(r"split([0-9]+)[nf]")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MTU = 1500
_BATCH = 32


def names(pid: int) -> tuple[str, str]:
    """Of the namespaces, and of the devices in them, that a process makes."""
    return f"split{pid}n", f"split{pid}f"


def ip(*words: str) -> None:
    """Runs iproute2.

    Raises:
        RuntimeError: with what it says.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def remove_leftovers() -> None:
    """Deletes the namespaces of processes that are no more."""
    for path in NAMESPACES.glob("split*") if NAMESPACES.is_dir() else ():
        found = _NAME.fullmatch(path.name)
        if found and not Path("/proc", found.group(1)).exists():
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True, check=False)


def open_device(name: str, address: str) -> int:
    """A namespace and in it a TUN device of the same name, up; its descriptor stays with this process.

    Raises:
        OSError: the kernel gives no TUN device.
        RuntimeError: iproute2 refuses.
    """
    ip("netns", "add", name)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    ip("link", "set", name, "netns", name)
    ip("-n", name, "link", "set", "lo", "up")
    ip("-n", name, "link", "set", name, "addrgenmode", "none")
    ip("-n", name, "addr", "add", f"{address}/30", "dev", name)
    ip("-n", name, "link", "set", name, "mtu", str(_MTU), "up")
    return device


def forward(devices: tuple[int, int], queue_bytes: int) -> None:
    """Carries packets both ways until standard input ends. Until the first trace the link is instant."""
    start_s = time.monotonic()
    instant = constant(1e12, 0.0)
    near, far = devices
    ways = {near: Shaper(instant, start_s, queue_bytes, 1), far: Shaper(instant, start_s, queue_bytes, 2)}
    other, stdin = {near: far, far: near}, sys.stdin.fileno()
    while True:
        due = [way.next_s for way in ways.values() if way.next_s is not None]
        wait_s = max(min(due) - time.monotonic(), 0.0) if due else None
        readable, _, _ = select.select([near, far, stdin], [], [], wait_s)
        for device in readable:
            if device != stdin:
                _take(device, ways[device])
                continue
            line = sys.stdin.readline()
            if not line:
                return
            trace, now_s = from_json(line), time.monotonic()
            for way in ways.values():
                way.play(trace, now_s)
            print("playing", flush=True)
        for device, way in ways.items():
            for packet in way.ready(time.monotonic()):
                _write(other[device], packet)


def _take(device: int, way: Shaper) -> None:
    for _ in range(_BATCH):
        try:
            packet = os.read(device, _MTU)
        except BlockingIOError:
            return
        way.push(packet, time.monotonic())


def _write(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except BlockingIOError:
        return  # the device's own queue is full: the packet is lost, as on any full link


def main(queue_bytes: int) -> None:
    """Makes the link, says "ready", and takes it away at the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for whoever started this, and ends standard input
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    os.setpriority(os.PRIO_PROCESS, 0, -15)  # a link is not slower when its machine is busy
    remove_leftovers()
    near, far = names(os.getpid())
    try:
        devices = open_device(near, NEAR_ADDRESS), open_device(far, FAR_ADDRESS)
        print("ready", flush=True)
        forward(devices, queue_bytes)
    except (OSError, RuntimeError) as error:
        print(error, flush=True)
        sys.exit(1)
    finally:
        for name in (near, far):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))

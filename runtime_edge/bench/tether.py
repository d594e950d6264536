"""A run that must not outlive who started it: it ends when its standard input does, as with a connection that broke."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Iterator


@contextlib.contextmanager
def tethered() -> Iterator[None]:
    """Interrupts this process (SIGINT) when standard input ends inside of the block."""
    ended = threading.Event()

    def wait() -> None:
        while os.read(0, 1 << 12):
            pass
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, name="tether", daemon=True).start()
    try:
        yield
    finally:
        ended.set()

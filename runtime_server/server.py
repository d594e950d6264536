"""Binds the port, loads the bundles, serves until a signal."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn

from runtime_server.app import App
from runtime_server.models import load_models
from splitboard.contract.errors import UserError

BACKLOG = 128
KEEP_ALIVE_S = 75
SHUTDOWN_S = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    bundle_folders: Sequence[Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int = 1,
    workers: int = 1,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves the server halves of bundles until SIGINT or SIGTERM, then finishes what is running and returns.

    Args:
        bundle_folders: at least one bundle; their names must differ.
        host: address to listen on, loopback unless the user says otherwise.
        port: 0 lets the system choose.
        threads: that ONNX Runtime may use inside one request.
        workers: requests that may run at the same time.
        on_ready: called once with the URL, after connections are accepted.

    Raises:
        UserError: the port is taken, the address is not ours, or a bundle is broken.
    """
    for name, value in (("threads", threads), ("workers", workers)):
        if value < 1:
            raise UserError(f'{name} is "{value}"', ["give at least 1"])
    listener = listen(host, port)
    with listener, ThreadPoolExecutor(workers, thread_name_prefix="compute") as pool:
        app = App(load_models(bundle_folders, threads), pool)
        config = uvicorn.Config(
            app,
            http="httptools",
            loop="uvloop",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        _Server(config, lambda: on_ready(_url(listener)) if on_ready else None).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Bound here and not by the HTTP library, which would end the process itself when the port is taken.

    Raises:
        UserError: the port is taken or forbidden, or the address is not ours.
    """
    if not 0 <= port <= 65535:
        raise UserError(f'port "{port}" does not exist', ["give a port from 1 to 65535, or 0 for a free one"])
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f'host "{host}" is not an address', ["--host 127.0.0.1"]) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            tries = ["--port 0 takes a free port", "stop the other program on that port"]
            raise UserError(f'port "{port}" is in use', tries) from error
        if error.errno == errno.EACCES:
            raise UserError(f'port "{port}" is not allowed for this user', ["--port 8000"]) from error
        raise UserError(f'cannot listen on "{host}": {error.strerror}', ["--host 127.0.0.1"]) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Reports when connections are accepted, and returns after a signal where uvicorn would raise it again."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

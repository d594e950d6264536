"""A bench on a station: held by a lease, deployed, run there, its records fetched."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from boards.bench.request import BenchRequest, Places, bench_argv
from boards.deploy.board import python_of
from boards.deploy.deploy import Deployed, Progress, deploy
from boards.detect import is_virtual
from boards.emulated.shell import EmulatedShell
from boards.lease import MINUTES, lease
from boards.shell.shell import Completed, ConnectionLost, Shell
from boards.stations import Station
from splitboard.contract.bundle import Bundle
from splitboard.contract.errors import (
    EXIT_GATE_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_PASS,
    EXIT_USER_ERROR,
    GateFailed,
    Inconclusive,
    SplitboardError,
    UserError,
)
from splitboard.contract.record import RunRecord, read_records
from splitboard.contract.samples import Samples, save_samples

_ROUTE_S = 3.0
_INTERRUPTED = 130
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TRY_ROUTE = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])).close()"


def bench_on(
    shell: Shell,
    station: Station,
    bundle_folder: Path,
    bundle: Bundle,
    request: BenchRequest,
    samples: Samples,
    wheelhouse: Path | None,
    say: Callable[[str], None],
    progress: Progress,
) -> list[RunRecord]:
    """Measures on a board.

    Args:
        shell: of the board.
        station: the board.
        bundle_folder: what is measured; it is deployed, where it is not there yet.
        bundle: its manifest.
        request: what to measure; its ``data`` and ``out`` are not looked at.
        samples: the images; the board needs no library for image files.
        wheelhouse: see `boards.deploy.deploy.deploy`.
        say: told what the board's own bench says while it runs.
        progress: of the deploy.

    Returns:
        The board's records.

    Raises:
        UserError: somebody else holds the board, it cannot be deployed to, or its bench refuses.
        Inconclusive: its bench says so.
        ConnectionLost: the board is gone. Its bench ends by itself and puts the clocks back.
    """
    with lease(shell, station.root, f"splitboard bench, {getpass.getuser()}", MINUTES, python=python_of(station)):
        there = deploy(bundle_folder, bundle, shell, station, wheelhouse=wheelhouse, progress=progress)
        with _run_folder(shell, station) as folder, _server(shell, there, request.server, say) as url:
            places = _put(shell, folder, request, samples, there, url)
            argv = [there.python, there.pyz, *bench_argv(_metered(request, station), places, bundle.board)]
            argv += [
                "--end-with-stdin",
                "--progress-lines",
                *(["--emulated"] if isinstance(shell, EmulatedShell) or is_virtual(shell) else []),
            ]
            done = shell.follow(argv, say)
            _check(done, station)
            return _fetched(shell, PurePosixPath(places.out))


def _metered(request: BenchRequest, station: Station) -> BenchRequest:
    """The station's own meter, where none is asked for by name."""
    energy = request.energy
    if energy is None or energy.meter is not None or station.meter is None:
        return request
    return dataclasses.replace(request, energy=dataclasses.replace(energy, meter=station.meter))


@contextlib.contextmanager
def _run_folder(shell: Shell, station: Station) -> Iterator[PurePosixPath]:
    """A folder on the board for one run, which goes with it."""
    folder = PurePosixPath(station.root, "runs", secrets.token_hex(8))
    try:
        yield folder
    finally:
        with contextlib.suppress(ConnectionLost):  # what is left is small, and the next deploy is not in its way
            shell.run(["rm", "-rf", "--", str(folder)])


def _put(
    shell: Shell, folder: PurePosixPath, request: BenchRequest, samples: Samples, there: Deployed, url: str | None
) -> Places:
    """Puts what a run reads onto the board; says where."""
    data = folder / "images.npz"
    with tempfile.TemporaryDirectory() as temporary:
        packed = Path(temporary) / "images.npz"
        save_samples(packed, samples.images, samples.labels)
        shell.put(packed, data)
    files: dict[str, str | None] = {}
    for name, file in (("token", request.token_file), ("ca.pem", request.ca)):
        files[name] = None if file is None else str(folder / name)
        if file is not None:
            shell.put(file, folder / name)
    return Places(there.bundle, str(data), str(folder / "runs.jsonl"), url, files["token"], files["ca.pem"])


@contextlib.contextmanager
def _server(shell: Shell, there: Deployed, url: str | None, say: Callable[[str], None]) -> Iterator[str | None]:
    """The server's address as the board reaches it: its own, else through the connection that the shell has."""
    if url is None:
        yield None
        return
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if host not in _LOOPBACK and _has_route(shell, there, host, port):
        yield url
        return
    if parts.scheme == "https":
        raise UserError(
            f'station "{shell.name}" does not reach "{url}", and a certificate for another name is not to be trusted',
            ["give an address that the board reaches", "http:// through the connection of ssh, which is encrypted"],
        )
    _check_server(url, host, port)
    with shell.reach(host, port) as there_port:
        if host not in _LOOPBACK:
            say(f'no route from the board to "{url}": through ssh, whose own time is in the link\'s')
        yield f"http://127.0.0.1:{there_port}"


def _check_server(url: str, host: str, port: int) -> None:
    """Refuses a server that this machine does not reach either, by the name that the user knows it by."""
    try:
        socket.create_connection((host, port), _ROUTE_S).close()
    except OSError as error:
        raise UserError(
            f'no server at "{url}": {error.strerror or error}',
            ["splitboard serve BUNDLE", "without --server one is started"],
        ) from error


def _has_route(shell: Shell, there: Deployed, host: str, port: int) -> bool:
    done = shell.run([there.python, "-c", _TRY_ROUTE, host, str(port), str(_ROUTE_S)])
    return done.returncode == 0


def _check(done: Completed, station: Station) -> None:
    """Says again, as our own error, what the board's bench said.

    Raises:
        SplitboardError: it did not end well.
    """
    if done.returncode == EXIT_PASS:
        return
    lines = done.stderr.strip().splitlines()
    tries = [line.strip().removeprefix("Try: ") for line in lines if line.strip().startswith("Try: ")]
    said = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "")
    if done.returncode == _INTERRUPTED:
        raise UserError(f'the bench on station "{station.name}" was interrupted there', ["run the same command again"])
    message = f'bench on station "{station.name}": {said.removeprefix("error: ") or f"exit code {done.returncode}"}'
    kinds = {EXIT_GATE_FAILED: GateFailed, EXIT_INCONCLUSIVE: Inconclusive, EXIT_USER_ERROR: UserError}
    kind = kinds.get(done.returncode)
    if kind is None:
        raise SplitboardError(f"{message}\n{done.stderr}")
    raise kind(message, tries)


def _fetched(shell: Shell, out: PurePosixPath) -> list[RunRecord]:
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "runs.jsonl"
        shell.get(out, target)
        return read_records(target)

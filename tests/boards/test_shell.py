"""Shells: one contract on this machine, through a real sshd and through asyncssh's server; and the way in."""

from __future__ import annotations

import contextlib
import getpass
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from network.fault_proxy import CutError, fault_proxy
from sshd import Desk, asyncssh_server, free_port, real_sshd, write_keys

from boards.shell.connect import connect
from boards.shell.local import LocalShell
from boards.shell.recorded import RecordedShell
from boards.shell.shell import Completed, ConnectionLost, Shell
from boards.stations import Station
from splitboard.contract.errors import UserError

AWKWARD = ["a b", "it's", '"', "$HOME", "`id`", "*", "\\", "", ";", "ä\n"]
LARGE_BYTES = 3 << 20


@pytest.fixture(scope="module")
def openssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with real_sshd(tmp_path_factory.mktemp("sshd")) as found:
        yield found


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with asyncssh_server(tmp_path_factory.mktemp("asyncssh")) as found:
        yield found


@pytest.fixture(scope="module", params=["local", "openssh", "in_process"])
def shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    if request.param == "local":
        yield LocalShell()
    else:
        with connect(request.getfixturevalue(request.param).station) as made:
            yield made


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(LARGE_BYTES))
    return path


# What all of them do


def test_a_program_runs_with_its_arguments_as_they_are(shell: Shell) -> None:
    done = shell.run([sys.executable, "-c", "import sys; print(ascii(sys.argv[1:]))", *AWKWARD])
    assert (done.returncode, done.stdout, done.stderr) == (0, ascii(AWKWARD) + "\n", "")


def test_output_exit_code_and_input(shell: Shell) -> None:
    code = "import sys; data = sys.stdin.buffer.read(); sys.stderr.write('oh\\n'); print(len(data)); sys.exit(7)"
    done = shell.run([sys.executable, "-c", code], stdin=bytes(200_000))
    assert (done.returncode, done.stdout, done.stderr) == (7, "200000\n", "oh\n")


def test_much_output_arrives_whole(shell: Shell) -> None:
    code = "import sys; sys.stdout.write('x' * 3_000_000); sys.stderr.write('y' * 3_000_000)"
    done = shell.run([sys.executable, "-c", code])
    assert (done.stdout, done.stderr) == ("x" * 3_000_000, "y" * 3_000_000)


def test_a_signal_is_a_negative_code(shell: Shell) -> None:
    assert shell.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).returncode in (-9, 128 + 9)


def test_a_program_that_is_not_there(shell: Shell) -> None:
    assert shell.run(["no-such-program"]).returncode == 127


def test_a_program_that_takes_too_long_is_stopped(shell: Shell, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(20)"
    with pytest.raises(UserError, match=r"took longer than 1\.5 s") as error:
        shell.run([sys.executable, "-c", code], timeout_s=1.5)
    assert not isinstance(error.value, ConnectionLost)
    assert shell.run(["true"]).returncode == 0
    # OpenSSH signals no programs of root's, asyncssh's server none at all.
    if isinstance(shell, LocalShell) or (request.node.callspec.params["shell"] == "openssh" and os.geteuid() != 0):
        wait_for(lambda: not Path("/proc", pid.read_text()).exists())


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_complaints_arrive_line_by_line_while_it_runs(shell: Shell, tmp_path: Path) -> None:
    """The program goes on only when the line it wrote was answered."""
    code = """import pathlib, sys, time
for i in range(3):
    print('line', i, file=sys.stderr, flush=True)
    end = time.monotonic() + 20
    while not pathlib.Path(sys.argv[1], str(i)).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
print('all')
"""
    lines: list[str] = []

    def on_line(line: str) -> None:
        if line.startswith("line"):  # the account's start files may say something too
            (tmp_path / str(len(lines))).touch()
            lines.append(line)

    done = shell.follow([sys.executable, "-c", code, str(tmp_path)], on_line)
    assert (done.returncode, done.stdout, lines) == (0, "all\n", ["line 0", "line 1", "line 2"])


def test_what_the_listener_raises_ends_the_program(shell: Shell, tmp_path: Path) -> None:
    def on_line(line: str) -> None:
        if line == "now":
            raise RuntimeError(line)

    code = "import sys, time; print('now', file=sys.stderr, flush=True); time.sleep(20)"
    with pytest.raises(RuntimeError, match="now"):
        shell.follow([sys.executable, "-c", code], on_line)
    assert shell.run(["true"]).returncode == 0


def test_a_file_goes_there_and_back(shell: Shell, tmp_path: Path, large: Path) -> None:
    there, calls = PurePosixPath(tmp_path, "new folder", "it's"), list[tuple[int, int]]()
    shell.put(large, there, lambda done, total: calls.append((done, total)))
    assert Path(there).read_bytes() == large.read_bytes()
    assert calls[-1] == (LARGE_BYTES, LARGE_BYTES)
    shell.get(there, tmp_path / "back" / "again")
    assert (tmp_path / "back" / "again").read_bytes() == large.read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_an_empty_file_and_one_in_the_place_of_another(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "there").write_text("old")
    shell.put(tmp_path / "empty", PurePosixPath(tmp_path, "there"))
    assert (tmp_path / "there").read_bytes() == b""


def test_a_beginning_of_another_file_does_no_harm(shell: Shell, tmp_path: Path, large: Path) -> None:
    for name in ("there.part", "back.part"):
        (tmp_path / name).write_bytes(b"something else")
    shell.put(large, PurePosixPath(tmp_path, "there"))
    shell.get(PurePosixPath(tmp_path, "there"), tmp_path / "back")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "back").read_bytes() == large.read_bytes()


def test_a_file_that_is_not_there(shell: Shell, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f'"{shell.name}" has no file "{tmp_path}/none"'):
        shell.get(PurePosixPath(tmp_path, "none"), tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_no_permission(shell: Shell, large: Path) -> None:
    with pytest.raises(UserError, match="does not let its user read or write") as error:
        shell.put(large, PurePosixPath("/sys/kernel/large"))  # not even root makes files there
    assert "nothing is done as root" in error.value.tries[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_no_space(shell: Shell, large: Path, small_disk: Path) -> None:
    with pytest.raises(UserError, match=f'has no space for "{small_disk}/large"'):
        shell.put(large, PurePosixPath(small_disk, "large"))
    assert not (small_disk / "large").exists()


@contextlib.contextmanager
def greeter() -> Iterator[int]:
    """A server on this machine's loopback that says hello once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"hello")
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 10):  # what is left unread would break the connection, not end it
                        pass

        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])


_ASK = "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).recv(9).decode())"


def test_the_board_reaches_this_machines_server(shell: Shell) -> None:
    with greeter() as port, shell.reach("127.0.0.1", port) as there:
        assert shell.run([sys.executable, "-c", _ASK, str(there)]).stdout == "hello\n"
        assert isinstance(shell, LocalShell) == (there == port)
    if there != port:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", there), 5)


# The network


def test_a_broken_transfer_is_taken_up(openssh: Desk, tmp_path: Path, large: Path) -> None:
    target = PurePosixPath(tmp_path, "there")
    sent = 0

    def count_and_cut(data: bytes) -> bytes:
        nonlocal sent
        sent += len(data)
        if sent > LARGE_BYTES // 2:
            raise CutError
        return data

    with fault_proxy(openssh.station.port) as proxy:
        station = openssh.behind(int(proxy.url.rsplit(":", 1)[1]))
        proxy.up = count_and_cut
        with connect(station) as shell, pytest.raises(ConnectionLost, match='connection to station "desk" is lost'):
            shell.put(large, target)
        arrived = Path(f"{target}.part").stat().st_size
        assert 0 < arrived < LARGE_BYTES
        assert not Path(target).exists()

        sent, again = 0, [0]

        def count(data: bytes) -> bytes:
            again[0] += len(data)
            return data

        proxy.up = count
        with connect(station) as shell:
            shell.put(large, target)
    assert Path(target).read_bytes() == large.read_bytes()
    rest = LARGE_BYTES - arrived
    assert rest <= again[0] < rest + LARGE_BYTES // 10


def test_a_broken_fetch_is_taken_up(openssh: Desk, tmp_path: Path, large: Path) -> None:
    received = [0]

    def count_and_cut(data: bytes) -> bytes:
        received[0] += len(data)
        if received[0] > LARGE_BYTES // 2:
            raise CutError
        return data

    def count(data: bytes) -> bytes:
        received[0] += len(data)
        return data

    target = tmp_path / "here"
    with fault_proxy(openssh.station.port) as proxy:
        station = openssh.behind(int(proxy.url.rsplit(":", 1)[1]))
        proxy.down = count_and_cut
        with connect(station) as shell, pytest.raises(ConnectionLost):
            shell.get(PurePosixPath(large), target)
        arrived = (tmp_path / "here.part").stat().st_size
        assert arrived > 0
        assert not target.exists()
        received[0], proxy.down = 0, count
        with connect(station) as shell:
            shell.get(PurePosixPath(large), target)
    assert target.read_bytes() == large.read_bytes()
    assert received[0] < LARGE_BYTES - arrived + LARGE_BYTES // 10


@pytest.mark.parametrize("act", ["run", "follow"])
def test_a_connection_that_breaks_while_a_program_runs(openssh: Desk, act: str) -> None:
    with fault_proxy(openssh.station.port) as proxy:
        station = openssh.behind(int(proxy.url.rsplit(":", 1)[1]))
        with connect(station) as shell:
            threading.Timer(0.5, proxy.close).start()
            with pytest.raises(ConnectionLost):
                _sleep(shell, act)
            with pytest.raises(ConnectionLost):
                shell.run(["true"])


def _sleep(shell: Shell, act: str) -> None:
    if act == "run":
        shell.run(["sleep", "20"])
    else:
        shell.follow(["sleep", "20"], lambda line: None)


def test_a_board_that_goes_silent_is_noticed(openssh: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that loses power: no packet says that the connection has ended."""
    monkeypatch.setattr("boards.shell.login._KEEPALIVE_S", 0.3)
    silent = threading.Event()

    def swallow(data: bytes) -> bytes:
        return b"" if silent.is_set() else data

    with fault_proxy(openssh.station.port) as proxy:
        proxy.down = swallow
        with connect(openssh.behind(int(proxy.url.rsplit(":", 1)[1]))) as shell:
            silent.set()
            with pytest.raises(ConnectionLost):
                shell.run(["sleep", "20"])


def test_a_server_that_forbids_forwarding(tmp_path: Path) -> None:
    with (
        real_sshd(tmp_path, "AllowTcpForwarding no") as found,
        connect(found.station) as shell,
        pytest.raises(UserError, match="does not let ssh forward") as error,
        shell.reach("127.0.0.1", 8000),
    ):
        pass
    assert "AllowTcpForwarding yes" in error.value.tries[0]


# The way in


def refused(station: Station, **more: bool) -> UserError:
    with pytest.raises(UserError) as error, connect(station, **more):
        pass
    assert not isinstance(error.value, ConnectionLost)
    assert error.value.tries
    return error.value


def fingerprint(desk: Desk) -> str:
    """As OpenSSH tells it."""
    said = subprocess.run(["ssh-keygen", "-lf", str(desk.folder / "host_key.pub")], capture_output=True, text=True)
    return said.stdout.split()[1]


def test_first_contact_is_refused_with_the_fingerprint(in_process: Desk, tmp_path: Path) -> None:
    error = refused(replace(in_process.station, known_hosts=str(tmp_path / "new" / "known_hosts")))
    assert error.message == f'the host key of station "desk" is not known: "{fingerprint(in_process)}"'
    assert any("--accept-host-key" in line for line in error.tries)
    assert not (tmp_path / "new").exists()


def test_first_contact_may_be_accepted_once(in_process: Desk, tmp_path: Path) -> None:
    known = tmp_path / "new" / "known_hosts"
    station = replace(in_process.station, known_hosts=str(known))
    with connect(station, accept_host_key=True):
        pass
    assert known.read_text() == (in_process.folder / "known_hosts").read_text()
    with connect(station) as shell:
        assert shell.run(["true"]).returncode == 0
    with connect(station, accept_host_key=True):
        pass
    assert len(known.read_text().splitlines()) == 1


def test_openssh_accepts_what_was_written_down(openssh: Desk, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("# mine\nother.example ssh-ed25519 AAAA\n")
    station = replace(openssh.station, known_hosts=str(known))
    with connect(station, accept_host_key=True):
        pass
    options = ["-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
    done = subprocess.run(
        [
            "ssh",
            "-F",
            "none",
            *options,
            "-i",
            str(station.key),
            "-p",
            str(station.port),
            f"{station.user}@127.0.0.1",
            "echo in",
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "in\n", done.stderr
    assert known.read_text().startswith("# mine\nother.example")


@pytest.mark.parametrize(("answer", "goes_in"), [("yes", True), ("no", False), ("", False)])
def test_a_person_at_a_terminal_is_asked(in_process: Desk, tmp_path: Path, answer: str, goes_in: bool) -> None:
    code = """import sys
from boards.shell.connect import connect
from boards.stations import Station
from splitboard.contract.errors import UserError
try:
    with connect(Station("desk", sys.argv[1], "127.0.0.1", int(sys.argv[2]), key=sys.argv[3], known_hosts=sys.argv[4])):
        print("went in")
except UserError as error:
    print(error)
"""
    ours, theirs = pty.openpty()
    station = in_process.station
    arguments = [station.user, str(station.port), str(station.key), str(tmp_path / "known")]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        said = b""
        while b"yes or no: " not in said:
            said += os.read(ours, 4096)
        os.write(ours, f"{answer}\n".encode())
        with contextlib.suppress(OSError):  # EIO, when the other side has closed it
            while more := os.read(ours, 4096):
                said += more
    os.close(ours)
    assert fingerprint(in_process) in said.decode()
    assert ("went in" in said.decode()) == goes_in
    assert (tmp_path / "known").exists() == goes_in


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
def test_a_changed_host_key_is_always_refused(in_process: Desk, tmp_path: Path, accept: bool, kind: str) -> None:
    import asyncssh

    other = asyncssh.generate_private_key(kind).export_public_key().decode()
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{in_process.station.port} {other}")
    error = refused(replace(in_process.station, known_hosts=str(known)), accept_host_key=accept)
    assert error.message.startswith('station "desk" shows another host key than the one in')
    assert fingerprint(in_process) in error.message
    assert f'-R "[127.0.0.1]:{in_process.station.port}"' in error.tries[1]
    assert known.read_text() == f"[127.0.0.1]:{in_process.station.port} {other}"


def test_a_key_that_is_not_let_in(in_process: Desk, tmp_path: Path) -> None:
    write_keys(tmp_path)
    error = refused(replace(in_process.station, key=str(tmp_path / "user_key")))
    assert error.message == f'station "desk" lets "{getpass.getuser()}" not in with the key "{tmp_path}/user_key"'
    assert "ssh-copy-id" in error.tries[0]


def test_keys_that_cannot_be_used(in_process: Desk, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "locked")], check=True)
    for name, said in {"none": "there is no key", "text": "cannot use the key", "locked": "cannot use the key"}.items():
        error = refused(replace(in_process.station, key=str(tmp_path / name)))
        assert error.message.startswith(f'{said} "{tmp_path / name}"')


def test_nobody_there(in_process: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused(in_process.behind(port := free_port()))
    assert error.message == f'station "desk" is there and has no ssh at "127.0.0.1:{port}"'
    error = refused(replace(in_process.station, host="no-such-host.invalid"))
    assert error.message == 'there is no machine called "no-such-host.invalid"'
    assert error.tries[0].startswith("its address: splitboard boards stations, ")
    monkeypatch.setattr("boards.shell.login.CONNECT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        error = refused(in_process.behind(mute.getsockname()[1]))
    assert error.message.startswith('station "desk" does not answer at "127.0.0.1:')


def test_something_else_that_listens(in_process: Desk) -> None:
    """Says hello once and hangs up, then takes connections and says nothing: the first is what the user is told."""
    with greeter() as port:
        error = refused(in_process.behind(port))
    assert error.message.startswith(f'station "desk" broke off the login at "127.0.0.1:{port}"')


# The fake


def test_a_recording_is_replayed() -> None:
    once = Completed(("vcgencmd", "get_throttled"), 0, "throttled=0x0\n", "")
    later = Completed(("vcgencmd", "get_throttled"), 0, "throttled=0x50005\n", "low\nhot\n")
    shell = RecordedShell("pi", [once, later], {PurePosixPath("/etc/os-release"): b"ID=debian"})
    assert [shell.run(["vcgencmd", "get_throttled"]) for _ in range(3)] == [once, later, later]
    lines: list[str] = []
    shell.follow(["vcgencmd", "get_throttled"], lines.append)
    assert lines == ["low", "hot"]
    with pytest.raises(UserError, match='nothing was recorded of "vcgencmd measure_volts"'):
        shell.run(["vcgencmd", "measure_volts"])
    assert shell.ran == [("vcgencmd", "get_throttled")] * 4


def test_a_recording_holds_files(tmp_path: Path) -> None:
    shell = RecordedShell("pi", [], {PurePosixPath("/etc/os-release"): b"ID=debian"})
    shell.get(PurePosixPath("/etc/os-release"), tmp_path / "os-release")
    shell.put(tmp_path / "os-release", PurePosixPath("/copy"))
    assert shell.files[PurePosixPath("/copy")] == b"ID=debian"
    with pytest.raises(UserError, match='no file "/none"'):
        shell.get(PurePosixPath("/none"), tmp_path / "none")

"""The lease: one run at a time, whoever else wants the board, and an end by itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from interpreters import find_interpreter
from network.fault_proxy import fault_proxy
from sshd import Desk, asyncssh_server

from boards.lease import Holder, Lease, break_lease
from boards.lease import lease as lease_with
from boards.shell.connect import connect
from boards.shell.local import LocalShell
from boards.shell.shell import Shell
from splitboard.contract.errors import UserError

lease = partial(lease_with, python=sys.executable)  # what python3 leads to may be slow

LONG, SHORT = 10.0, 1.5 / 60
"""Minutes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with asyncssh_server(tmp_path_factory.mktemp("asyncssh")) as found:
        yield found


def refused(shell: Shell, root: Path) -> UserError:
    with pytest.raises(UserError) as error, lease(shell, str(root), "another", LONG):
        pass
    return error.value


def test_a_board_that_is_held_is_refused_with_the_holder(tmp_path: Path) -> None:
    shell = LocalShell("pi")
    with lease(shell, str(tmp_path), "bench of mine", LONG) as held:
        error = refused(shell, tmp_path)
        held.check()
    before = f'station "pi" is in use by "bench of mine" (process {os.getpid()} on {socket.gethostname()}) until '
    assert error.message.startswith(before)
    until = time.mktime(time.strptime(error.message[len(before) :], "%Y-%m-%d %H:%M:%S UTC")) - time.timezone
    assert until == pytest.approx(time.time() + 60 * LONG, abs=30)
    assert error.exit_code == 3
    assert error.tries
    with lease(shell, str(tmp_path), "next", LONG):
        pass
    assert not (tmp_path / "lease.json").exists()


def test_it_is_given_back_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), lease(LocalShell(), str(tmp_path), "mine", LONG):
        raise RuntimeError
    with lease(LocalShell(), str(tmp_path), "next", LONG):
        pass


def test_it_can_be_taken_away_from_a_run_that_is_gone(tmp_path: Path) -> None:
    shell, asked = LocalShell("pi"), []
    break_it = partial(break_lease, shell, str(tmp_path), python=sys.executable)

    def agree(holder: Holder, left_s: float) -> bool:
        asked.append((holder.owner, holder.pid, left_s > 60 * LONG - 30))
        return len(asked) > 1

    assert break_it(agree) is None
    with lease(shell, str(tmp_path), "bench of mine", LONG) as held:
        assert break_it(agree) is None  # it was not agreed
        refused(shell, tmp_path)
        was = break_it(agree)
        assert was is not None
        assert was.owner == "bench of mine"
        with lease(shell, str(tmp_path), "next", LONG), pytest.raises(UserError, match='in use by "next"'):
            held.take()
    assert asked == [("bench of mine", os.getpid(), True)] * 2


_CONTEND = """import pathlib, sys, time
from boards.lease import lease
from boards.shell.local import LocalShell
from splitboard.contract.errors import UserError
root, name, rounds = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
while not (root / "go").exists():
    time.sleep(0.001)
won = lost = 0
while won < rounds:
    try:
        with lease(LocalShell(), str(root / "board"), name, 1, python=sys.executable):
            with open(root / "inside", "x"):  # fails if somebody else is inside
                time.sleep(0.02)
            (root / "inside").unlink()
            won += 1
    except UserError:
        lost += 1
print(won, lost)
"""


def test_two_runs_never_share_a_board(tmp_path: Path) -> None:
    contenders = [
        subprocess.Popen([sys.executable, "-c", _CONTEND, str(tmp_path), name, "4"], stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    (tmp_path / "go").touch()
    said = [contender.communicate(timeout=60)[0].split() for contender in contenders]
    assert [contender.returncode for contender in contenders] == [0, 0]
    assert [int(won) for won, _ in said] == [4, 4]
    assert sum(int(lost) for _, lost in said) > 0, "they never met"


_DIE = """import os, sys
from boards.lease import lease
from boards.shell.local import LocalShell
with lease(LocalShell(), sys.argv[1], "dead", float(sys.argv[2]), python=sys.executable):
    os._exit(9)
"""


def test_a_run_that_died_on_another_machine_holds_the_board_until_the_lease_ends(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _DIE, str(tmp_path), str(4 / 60)], check=False)
    path = tmp_path / "lease.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "holder": {**said["holder"], "place": "another kernel"}}))
    assert '"dead"' in refused(LocalShell(), tmp_path).message
    end = time.monotonic() + 20
    while True:
        try:
            with lease(LocalShell(), str(tmp_path), "next", LONG):
                return
        except UserError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_run_that_died_on_this_machine_holds_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _DIE, str(tmp_path), str(LONG)], check=False)
    assert (tmp_path / "lease.json").exists()
    with lease(LocalShell(), str(tmp_path), "next", LONG):
        assert '"next"' in refused(LocalShell(), tmp_path).message


def test_it_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    with lease(LocalShell(), str(tmp_path), "mine", 3 / 60) as held:
        first = json.loads((tmp_path / "lease.json").read_text())["expires_s"]
        end = time.monotonic() + 20
        while time.clock_gettime(time.CLOCK_BOOTTIME) < first + 0.5:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert '"mine"' in refused(LocalShell(), tmp_path).message
        held.check()


def test_a_restart_of_the_board_ends_it(tmp_path: Path) -> None:
    """Its boot id is another then, and its clock begins anew."""
    with lease(LocalShell(), str(tmp_path), "mine", LONG):
        path = tmp_path / "lease.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "boot_id": "another"}))
        with lease(LocalShell(), str(tmp_path), "next", LONG):
            pass


def test_power_was_lost_while_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("")
    with lease(LocalShell(), str(tmp_path), "next", LONG):
        pass


def check_again_and_again(held: Lease) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        held.check()
        time.sleep(0.05)


def test_whoever_lost_it_learns_so(tmp_path: Path) -> None:
    with lease(LocalShell(), str(tmp_path), "slow", SHORT) as held:
        path = tmp_path / "lease.json"
        path.write_text(path.read_text().replace(json.loads(path.read_text())["token"], "of somebody else"))
        path.write_text(path.read_text().replace('"slow"', '"quick"').replace('"expires_s": ', '"expires_s": 9'))
        with pytest.raises(UserError, match='in use by "quick"'):
            check_again_and_again(held)
    assert path.exists(), "the other's lease was given back"


def test_through_a_connection_that_breaks(server: Desk, tmp_path: Path) -> None:
    with fault_proxy(server.station.port) as proxy:
        station = server.behind(int(proxy.url.rsplit(":", 1)[1]))
        with connect(station) as shell, lease(shell, str(tmp_path), "mine", LONG):
            proxy.close()
    assert '"mine"' in refused(LocalShell(), tmp_path).message


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    error = refused(LocalShell("pi"), Path("/sys/kernel/board"))
    assert error.message.startswith('station "pi" cannot write "/sys/kernel/board"')


def test_no_python(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match='has no working "no-python"'),
        lease_with(LocalShell(), str(tmp_path), "m", 1, python="no-python"),
    ):
        pass


def test_the_oldest_python(tmp_path: Path) -> None:
    python = find_interpreter("3.8")
    if python is None:
        pytest.skip("no Python 3.8 on this machine")
    with lease_with(LocalShell(), str(tmp_path), "mine", LONG, python=str(python)):
        assert '"mine"' in refused(LocalShell(), tmp_path).message

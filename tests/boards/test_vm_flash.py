"""A flashed card, booted: its first boot makes a board of it, and a power cut does not undo that."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flashed_machine import RELEASE, FlashedBoard, raspberry_image
from serving import running_server
from sshd import write_keys
from virtual_machine import missing_programs

from boards.deploy.board import BoardFacts
from boards.deploy.wheels import default_cache, fetch_wheels, needed
from boards.emulated.userland import PYTHONS
from boards.flash.payload import SELFCHECK
from boards.kinds import load_kind
from boards.shell.connect import connect
from boards.shell.shell import Shell
from boards.stations import Station
from calib.gate.deployed import deployed_outputs
from splitboard.cli.main import run
from splitboard.contract.bundle import bundle_sha256, load_bundle, write_manifest
from splitboard.contract.errors import UserError
from splitboard.contract.record import FLOAT_REFERENCE, read_records
from splitboard.contract.samples import load_samples
from tests.boards import images

KIND, HOSTNAME, USER = "rpi4", "rpi4-vm", "splitboard"
SPARE_MIB = 64
CHECKED_S = 600.0
COMMAND_S = 120.0
N = 3

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(bool(missing_programs()), reason=f"needs, from apt: {', '.join(missing_programs())}"),
    pytest.mark.skipif(bool(images.missing_tools()), reason=f"not installed: {', '.join(images.missing_tools())}"),
    pytest.mark.skipif(os.getuid() != 0, reason="needs root: a card is a loop device, its files belong to root"),
]


@pytest.fixture(scope="module", autouse=True)
def asked_for(pytestconfig: pytest.Config) -> None:
    """These take minutes and are no part of a plain run."""
    if "vm" not in pytestconfig.getoption("markexpr"):
        pytest.skip("boots virtual machines: pytest -m vm")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network's, for this kind of board."""
    target = tmp_path_factory.mktemp("bundle") / "mine.bundle"
    shutil.copytree(tiny_bundle, target)
    write_manifest(target, dataclasses.replace(load_bundle(target), board=KIND))
    return target


@pytest.fixture(scope="module")
def wheelhouse() -> Path:
    """Wheels for the image's Python, as a user would have fetched them."""
    kind = load_kind(KIND)
    system = next(one for one in kind.systems if one.python == PYTHONS[RELEASE])
    version, glibc = (tuple(map(int, text.split("."))) for text in (system.python, system.glibc))
    bare = {"numpy": None, "ai_edge_litert.interpreter": None, "tflite_runtime.interpreter": None}
    facts = BoardFacts("", "python3", version, kind.machine, glibc, bare, 0)
    return fetch_wheels(needed(kind, facts, KIND), facts, None, default_cache())[0].parent


@pytest.fixture(scope="module")
def board(bundle: Path, wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> FlashedBoard:
    """A card that ``splitboard flash`` wrote, and a machine for it; never switched on yet."""
    folder = tmp_path_factory.mktemp("card")
    write_keys(folder)
    image, card = raspberry_image(), folder / "card.img"
    with open(card, "wb") as file:
        file.truncate(image.stat().st_size + SPARE_MIB * images.MIB)
    with images.loop_device(card) as device:
        argv = ["flash", KIND, "--image", str(image), "--device", str(device), "--bundle", str(bundle)]
        argv += ["--ssh-key", str(folder / "user_key.pub"), "--wheelhouse", str(wheelhouse)]
        assert run([*argv, "--hostname", HOSTNAME, "--yes"]) == 0
    return FlashedBoard(card, folder / "user_key", USER)


@pytest.fixture(scope="module")
def started(board: FlashedBoard) -> Iterator[Station]:
    """The board after its first boot."""
    with board.on() as station:
        yield station


def stations_file(folder: Path, station: Station) -> Path:
    path = folder / "stations.toml"
    lines = [f"[{station.name}]", f'address = "{station.user}@{station.host}:{station.port}"']
    lines += [f'{name} = "{getattr(station, name)}"' for name in ("kind", "key", "known_hosts")]
    path.write_text("\n".join(lines) + "\n")
    return path


def asked(shell: Shell, *argv: str) -> str:
    done = shell.run(argv, timeout_s=COMMAND_S)
    assert done.returncode == 0, done
    return done.stdout.strip()


def state(shell: Shell) -> str:
    return shell.run(
        ["systemctl", "--user", "show", "-P", "ActiveState", SELFCHECK], timeout_s=COMMAND_S
    ).stdout.strip()


def self_checked(station: Station) -> dict[str, Any]:
    """What the service left when it had ended in this boot.

    The one login may break off: while it unpacks, an emulated board is too busy to answer for seconds.
    """
    end = time.monotonic() + CHECKED_S
    while time.monotonic() < end:
        with contextlib.suppress(UserError), connect(station) as shell:
            while (found := state(shell)) in ("inactive", "activating") and time.monotonic() < end:
                time.sleep(2)
            assert found == "active", shell.run(["cat", "splitboard/selfcheck.log"])
            return dict(json.loads(asked(shell, "cat", "splitboard/selfcheck.json")))
        time.sleep(2)
    pytest.fail("the self-check did not end")


def test_the_first_boot_makes_a_board(
    board: FlashedBoard,
    started: Station,
    bundle: Path,
    wheelhouse: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    checked = self_checked(started)
    assert checked["passed"] is True
    assert set(checked["error"]) == {task.name for task in load_bundle(bundle).tasks}
    with connect(started) as shell:
        instance = asked(shell, "cat", "/var/lib/cloud/data/instance-id")
        assert f"ds=nocloud;i={instance}" in board.cmdline
        assert instance.startswith("splitboard-")
        cloud = json.loads(asked(shell, "cloud-init", "status", "--format", "json"))
        assert (cloud["status"], cloud["errors"], cloud["recoverable_errors"]) == ("done", [], {})
        assert asked(shell, "systemctl", "--failed", "--plain", "--no-legend") == ""
        assert asked(shell, "hostname") == HOSTNAME
        assert asked(shell, "sudo", "-n", "id", "-u") == "0"
        assert {"video", "i2c"} <= set(asked(shell, "id", "-nG").split())
        assert asked(shell, "sha256sum", "splitboard/current/bundle/manifest.json").split()[0] == bundle_sha256(bundle)
        end = time.monotonic() + CHECKED_S
        while shell.run(["test", "-e", "/usr/local/lib/splitboard/payload.tar"]).returncode == 0:
            assert time.monotonic() < end, "the archive is still there"
            time.sleep(2)
    argv = ["deploy", str(bundle), started.name, "--stations", str(stations_file(tmp_path, started))]
    capfd.readouterr()
    assert run([*argv, "--wheelhouse", str(wheelhouse), "--dry-run", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["send_files"] == 0  # it is just as a deploy leaves it
    assert len(plan["wheels"]) == len(list(wheelhouse.iterdir()))


def test_another_host_key_is_refused(started: Station, tmp_path: Path) -> None:
    write_keys(tmp_path)
    other = tmp_path / "known_hosts"
    other.write_text(f"[127.0.0.1]:{started.port} {(tmp_path / 'host_key.pub').read_text()}")
    with (
        pytest.raises(UserError, match="host key"),
        connect(dataclasses.replace(started, known_hosts=str(other))),
    ):
        pass


def test_bench_against_the_server_here(
    started: Station, bundle: Path, wheelhouse: Path, tiny_samples: Path, tmp_path: Path
) -> None:
    self_checked(started)
    loaded = load_bundle(bundle)
    split = next(one for one in loaded.splits if one.edge is not None and one.server is not None)
    out = tmp_path / "runs.jsonl"
    with running_server(bundle) as server:
        argv = ["bench", str(bundle), "--data", str(tiny_samples), "--board", started.name, "--server", server.url]
        argv += ["--stations", str(stations_file(tmp_path, started)), "--wheelhouse", str(wheelhouse), "-o", str(out)]
        assert run([*argv, "--split", split.id, "--limit", str(N), "--warmup", "0"]) == 0
    reference, record = read_records(out)
    assert (reference.split, record.split, record.board) == (FLOAT_REFERENCE, split.id, KIND)
    assert record.emulated
    assert (record.before.machine, record.before.python[:4]) == ("aarch64", PYTHONS[RELEASE])
    assert len(record.total_ns) == N
    for task, rows in record.outputs.items():
        tolerance = loaded.golden_tolerance[task]
        np.testing.assert_allclose(rows, expected(bundle, split.id, tiny_samples)[task], rtol=0, atol=tolerance)


def expected(bundle: Path, split: str, data: Path) -> dict[str, Any]:
    """The same split run here."""
    loaded, images_here = load_bundle(bundle), load_samples(data, 1).images[:N]
    return deployed_outputs(bundle, loaded, loaded.splits, images_here, lambda what, done, total: None)[split]


def test_after_a_power_cut_it_is_the_same_board(board: FlashedBoard, started: Station) -> None:
    """The last one here: the machine is switched on anew."""
    first = self_checked(started)
    with connect(started) as shell:
        release = asked(shell, "readlink", "splitboard/current")
        asked(shell, "sync")
    board.cut()
    with board.on() as station:  # only its first host key is taken
        assert self_checked(station) == first
        with connect(station) as shell:
            assert asked(shell, "readlink", "splitboard/current") == release
            assert f"ds=nocloud;i={asked(shell, 'cat', '/var/lib/cloud/data/instance-id')}" in board.cmdline

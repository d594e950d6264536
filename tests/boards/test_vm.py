"""A whole machine as a station: Debian's own Arm kernel, sshd, and a power cord."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path, PurePosixPath

import pytest
from serving import running_server
from virtual_machine import HOST, Machine, missing_programs

from boards.deploy.deploy import deploy
from boards.shell.connect import connect
from boards.shell.shell import ConnectionLost, Shell
from splitboard.contract.bundle import load_bundle, write_manifest
from splitboard.contract.record import read_records

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(bool(missing_programs()), reason=f"needs, from apt: {', '.join(missing_programs())}"),
    pytest.mark.skipif(os.getuid() != 0, reason="needs root: the disk's files belong to it"),
]
RUN_S = 300.0


@pytest.fixture(scope="module", autouse=True)
def asked_for(pytestconfig: pytest.Config) -> None:
    """These take minutes and are no part of a plain run."""
    if "vm" not in pytestconfig.getoption("markexpr"):
        pytest.skip("boots virtual machines: pytest -m vm")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture
def old(tiny_bundle: Path, tmp_path: Path) -> Path:
    return named(tiny_bundle, tmp_path, "old")


@pytest.fixture
def new(tiny_bundle: Path, tmp_path: Path) -> Path:
    return named(tiny_bundle, tmp_path, "new")


def named(source: Path, folder: Path, name: str) -> Path:
    """The bundle for this board, and with a name that tells it from others."""
    shutil.copytree(source, folder / name)
    write_manifest(folder / name, dataclasses.replace(load_bundle(source), name=name, board="rpi4"))
    return folder / name


def current(shell: Shell) -> str:
    """The name of the bundle that is current."""
    return str(json.loads(shell.run(["cat", "splitboard/current/bundle/manifest.json"]).stdout)["name"])


def assert_runs(shell: Shell) -> None:
    """What is current passes its self-check."""
    argv = ["splitboard/current/splitboard-edge", "selfcheck", "--bundle", "splitboard/current/bundle"]
    done = shell.run(argv, timeout_s=RUN_S)
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["passed"]


def test_deploy_and_bench_against_the_server_here(
    machine: Machine, old: Path, tmp_path: Path, tiny_samples: Path
) -> None:
    bundle = load_bundle(old)
    split = next(one for one in bundle.splits if one.edge is not None and one.server is not None)
    with machine.on() as station, connect(station) as shell, running_server(old) as server:
        made = deploy(old, bundle, shell, station)
        assert current(shell) == "old"
        assert_runs(shell)
        shell.put(tiny_samples, PurePosixPath("data.npz"))
        argv = [made.python, made.pyz, "bench", "--bundle", made.bundle, "--data", "data.npz", "--limit", "3"]
        more = ["--emulated", "--splits", split.id, "--server", f"http://{HOST}:{server.port}", "--timeout", "60"]
        done = shell.run([*argv, "--warmup", "0", *more, "--out", "runs.jsonl"], timeout_s=RUN_S)
        assert done.returncode == 0, done
        shell.get(PurePosixPath("runs.jsonl"), tmp_path / "runs.jsonl")
    (record,) = read_records(tmp_path / "runs.jsonl")
    assert (record.emulated, record.split, len(record.total_ns)) == (True, split.id, 3)
    assert record.before.machine == "aarch64"
    assert record.before.kernel.endswith("-arm64")


@pytest.mark.parametrize("step", ["send", "selfcheck"])
def test_a_power_cut_in_the_middle_of_a_deploy_leaves_the_old_bundle_running(
    machine: Machine, old: Path, new: Path, step: str
) -> None:
    def cut_at(reached: str, done: int, total: int) -> None:
        if reached == step:
            machine.cut()

    with machine.on() as station, connect(station) as shell:
        deploy(old, load_bundle(old), shell, station)
        with pytest.raises(ConnectionLost):
            deploy(new, load_bundle(new), shell, station, progress=cut_at)
    with machine.on() as station, connect(station) as shell:
        assert current(shell) == "old"
        assert_runs(shell)
        deploy(new, load_bundle(new), shell, station)  # which runs it before it is current
        assert current(shell) == "new"

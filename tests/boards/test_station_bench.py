"""A bench on a station, through a real sshd: the user's flags, the records, and what happens when it breaks."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from network.fault_proxy import CutError, fault_proxy
from sshd import Desk, real_sshd
from sysfs.traces import BURSTS, RAMPS, STEPS, Points, exact_j

from boards.bench.request import BenchRequest, Energy, Places, Steady, bench_argv
from boards.kinds import this_machine
from boards.lease import lease
from boards.shell.connect import connect
from boards.stations import Station
from calib.gate.deployed import deployed_outputs
from runtime_edge.__main__ import _parser
from splitboard.cli.bench import Boards, bench_boards
from splitboard.cli.main import run
from splitboard.contract.bundle import load_bundle
from splitboard.contract.errors import SplitboardError
from splitboard.contract.record import FLOAT_REFERENCE, read_records
from splitboard.contract.samples import load_samples

N = 4


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with real_sshd(tmp_path_factory.mktemp("sshd")) as found:
        yield found


@pytest.fixture
def station(desk: Desk, tmp_path: Path) -> Station:
    """This machine as a board whose user has installed what it needs."""
    return replace(
        desk.station, name="desk", kind=this_machine().name, python=sys.executable, root=str(tmp_path / "board")
    )


def stations_file(folder: Path, *stations: Station) -> Path:
    path = folder / "stations.toml"
    with open(path, "w") as file:
        for one in stations:
            file.write(f'[{one.name}]\naddress = "{one.user}@{one.host}:{one.port}"\n')
            names = ("kind", "key", "root", "known_hosts", "meter", "python")
            file.writelines(f'{name} = "{value}"\n' for name in names if (value := getattr(one, name)) is not None)
    return path


def running_bench(root: str) -> tuple[int, list[str]] | None:
    """Process and arguments of the edge runtime's bench that runs below this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode().split("\0")[:-1]
            if len(words) > 2 and words[1].startswith(root) and words[1].endswith(".pyz") and words[2] == "bench":
                return int(process.name), words[2:]
    return None


def wait_for_bench(root: str, seconds: float = 120) -> tuple[int, list[str]]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = running_bench(root)
        if found is not None:
            return found
        time.sleep(0.02)
    pytest.fail("no bench was started")


def test_records_of_a_station(
    tiny_bundle: Path,
    tiny_samples: Path,
    tmp_path: Path,
    station: Station,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "runs.jsonl"
    argv = ["bench", str(tiny_bundle), "--data", str(tiny_samples), "--board", "desk", "-o", str(out), "--json"]
    argv += ["--stations", str(stations_file(tmp_path, station)), "--limit", str(N), "--warmup", "1", "--threads", "2"]
    with ThreadPoolExecutor(1) as watching:
        seen = watching.submit(wait_for_bench, station.root)
        assert run([*argv, "--splits", "all", "--coding", "zstd"]) == 0
        _, arguments = seen.result()
    said = json.loads(capsys.readouterr().out)
    records = {record.split: record for record in read_records(out)}
    bundle = load_bundle(tiny_bundle)
    assert list(records) == [FLOAT_REFERENCE, *(split.id for split in bundle.splits)]
    assert {one["id"] for one in said["splits"]} == {split.id for split in bundle.splits}

    images = load_samples(tiny_samples, 1).images[:N]
    expected = deployed_outputs(tiny_bundle, bundle, bundle.splits, images, lambda what, done, total: None)
    for split in bundle.splits:
        assert len(records[split.id].total_ns) == N
        assert not records[split.id].emulated
        for task, rows in records[split.id].outputs.items():
            np.testing.assert_array_equal(np.asarray(rows, np.float32), expected[split.id][task])

    options = _parser().parse_args(arguments)
    assert (options.warmup, options.threads, options.coding, options.splits) == (1, 2, "zstd", "all")
    assert str(options.bundle).startswith(station.root)
    assert options.end_with_stdin
    assert not list(Path(station.root, "runs").iterdir())  # the run's folder has gone with it


def test_every_flag_of_the_user_is_one_of_the_boards() -> None:
    steady = Steady("performance", "MAXN", sudo=True, start_temperature_c=50.0, cool_down_s=60.0)
    energy = Energy(required=True, meter="ina226@1-0x40", cross_check="csv:/m", n_windows=7, window_s=12.5)
    request = BenchRequest(Path("d"), "http://h:1", ["s01", "s02"], Path("o"), 3, 2, 9, energy, "zstd", steady=steady)
    places = Places("/b", "/d", "/o", "http://127.0.0.1:5", "/t", "/c")
    options = vars(_parser().parse_args(bench_argv(request, places, "rpi5")))
    expected = {
        "bundle": Path("/b"),
        "data": Path("/d"),
        "out": Path("/o"),
        "server": "http://127.0.0.1:5",
        "token_file": Path("/t"),
        "ca": Path("/c"),
        "splits": "s01,s02",
        "board": "rpi5",
        "warmup": 3,
        "threads": 2,
        "limit": 9,
        "coding": "zstd",
        "energy": True,
        "require_energy": True,
        "meter": "ina226@1-0x40",
        "cross_check": "csv:/m",
        "windows": 7,
        "window_s": 12.5,
        "governor": "performance",
        "power_mode": "MAXN",
        "sudo": True,
        "start_temperature": 50.0,
        "cool_down": 60.0,
    }
    assert {name: options[name] for name in expected} == expected


def test_two_stations_at_once(tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, station: Station) -> None:
    others = [replace(station, name=name, root=str(tmp_path / name)) for name in ("pi1", "pi2")]
    request = BenchRequest(tiny_samples, None, ["s09"], tmp_path / "runs.jsonl", 0, limit=N)
    boards = Boards(("pi1", "pi2"), stations_file(tmp_path, *others))
    found = bench_boards(tiny_bundle, load_bundle(tiny_bundle), request, boards)
    assert sorted(path.name for path in tmp_path.glob("runs.*")) == ["runs.pi1.jsonl", "runs.pi2.jsonl"]
    for one in found.values():
        assert not isinstance(one, SplitboardError)
        file, _ = one
        assert [record.split for record in read_records(file)] == [FLOAT_REFERENCE, "s09"]


def test_one_of_two_that_fails_does_not_take_the_other_with_it(
    tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, station: Station, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [replace(station, name="pi1"), replace(station, name="pi2", key=str(tmp_path / "no-key"))]
    argv = ["bench", str(tiny_bundle), "--data", str(tiny_samples), "--board", "pi2,pi1", "--split", "s09"]
    argv += ["--stations", str(stations_file(tmp_path, *others)), "-o", str(tmp_path / "runs.jsonl"), "--limit", "2"]
    assert run(argv) == 3
    said = capsys.readouterr()
    assert "no-key" in said.err
    assert f"Records: {tmp_path / 'runs.pi1.jsonl'}" in said.out
    assert not (tmp_path / "runs.pi2.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_is_ended_gives_the_board_back(
    tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, station: Station, number: signal.Signals
) -> None:
    argv = [sys.executable, "-m", "splitboard.cli.main", "bench", str(tiny_bundle), "--data", str(tiny_samples)]
    argv += ["--board", "desk", "--split", "s03", "--warmup", "10000000", "-o", str(tmp_path / "runs.jsonl")]
    argv += ["--stations", str(stations_file(tmp_path, station))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        process, _ = wait_for_bench(station.root)
        running.send_signal(number)
        said, _ = running.communicate(timeout=60)  # the pipe ends: the server that it had started is gone too
    assert running.returncode == 130, said
    assert not Path(station.root, "lease.json").exists()
    assert not list(Path(station.root, "runs").iterdir())
    end = time.monotonic() + 60
    while Path(f"/proc/{process}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()


def test_labels_that_no_class_has_are_refused_first(
    tiny_bundle: Path, tmp_path: Path, station: Station, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.zeros((2, 40, 40, 1), np.uint8)
    np.savez(tmp_path / "bad.npz", images=images, **{"labels.shape": np.array([0, 99])})
    argv = ["bench", str(tiny_bundle), "--data", str(tmp_path / "bad.npz"), "--board", "desk"]
    argv += ["--stations", str(stations_file(tmp_path, station)), "-o", str(tmp_path / "runs.jsonl")]
    assert run(argv) == 3
    assert 'has the label "99" for task "shape"' in capsys.readouterr().err
    assert not Path(station.root).exists()


def test_a_server_that_is_not_there_is_named_as_the_user_named_it(
    tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, station: Station, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", str(tiny_bundle), "--data", str(tiny_samples), "--board", "desk", "--server", "http://127.0.0.1:9"]
    argv += ["--stations", str(stations_file(tmp_path, station)), "-o", str(tmp_path / "runs.jsonl"), "--limit", "2"]
    assert run(argv) == 3
    assert 'no server at "http://127.0.0.1:9"' in capsys.readouterr().err


def test_a_board_in_use_is_refused(
    tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, station: Station, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", str(tiny_bundle), "--data", str(tiny_samples), "--board", "desk", "--split", "s09"]
    argv += ["--stations", str(stations_file(tmp_path, station)), "-o", str(tmp_path / "runs.jsonl"), "--limit", "2"]
    with connect(station) as shell, lease(shell, station.root, "somebody else", 5):
        assert run(argv) == 3
    assert 'station "desk" is in use by "somebody else"' in capsys.readouterr().err
    assert not (tmp_path / "runs.jsonl").exists()
    assert run(argv) == 0


def test_without_a_meter_required_energy_is_inconclusive(
    tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, station: Station, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", str(tiny_bundle), "--data", str(tiny_samples), "--board", "desk", "--split", "s09"]
    argv += ["--stations", str(stations_file(tmp_path, station)), "-o", str(tmp_path / "runs.jsonl"), "--limit", "2"]
    assert run([*argv, "--require-energy", "--meter", "none"]) == 2
    said = capsys.readouterr().err
    assert 'bench on station "desk": energy is required and there is none' in said


def test_a_bench_does_not_outlive_its_connection(
    tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, desk: Desk, station: Station
) -> None:
    said: list[int] = []
    with fault_proxy(station.port) as proxy:
        port = int(proxy.url.rpartition(":")[2])
        behind = replace(station, port=port, known_hosts=desk.behind(port).known_hosts)
        argv = ["bench", str(tiny_bundle), "--data", str(tiny_samples), "--board", "desk", "--split", "s09"]
        argv += ["--stations", str(stations_file(tmp_path, behind)), "-o", str(tmp_path / "runs.jsonl")]
        running = threading.Thread(target=lambda: said.append(run([*argv, "--warmup", "10000000"])))
        running.start()
        process, _ = wait_for_bench(station.root)

        def cut(data: bytes) -> bytes:
            raise CutError

        proxy.up = proxy.down = cut
        running.join(120)
    assert said == [3]
    assert not (tmp_path / "runs.jsonl").exists()
    end = time.monotonic() + 60
    while Path(f"/proc/{process}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()


def test_the_gate_judges_the_boards_own_outputs(
    tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, station: Station, capsys: pytest.CaptureFixture[str]
) -> None:
    """The board is this machine here, so it must come to what this machine comes to by itself."""
    evaluation = tmp_path / "test.npz"
    found = load_samples(tiny_samples, 1)
    images = np.ascontiguousarray(found.images[:, ::-1])  # other images than calibrated the bundle
    np.savez(evaluation, images=images, **{f"labels.{task}": values for task, values in found.labels.items()})
    argv = ["check", str(tiny_bundle), "--data", str(evaluation), "--json"]
    here = run(argv), [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    there_argv = [*argv, "--board", "desk", "--stations", str(stations_file(tmp_path, station))]
    there = run(there_argv), [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert there == here


def one_after_the_other(*traces: Points) -> Points:
    joined: Points = []
    for points in traces:
        start = joined[-1][0] if joined else 0.0
        joined += [(start + at, watts) for at, watts in points]
    return joined


@pytest.mark.slow
def test_energy_of_a_known_load_reaches_the_report(
    tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, station: Station, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps, ramps and bursts; the sensor is simulated at a real one's rate and steps, all behind it is a board's."""
    points = one_after_the_other(STEPS, RAMPS, BURSTS)
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,watts\n" + "".join(f"{at},{watts}\n" for at, watts in points))
    metered = replace(station, meter=f"simulated:{trace}")
    out = tmp_path / "runs.jsonl"
    argv = ["bench", str(tiny_bundle), "--data", str(tiny_samples), "--board", "desk", "-o", str(out), "--json"]
    argv += ["--stations", str(stations_file(tmp_path, metered)), "--limit", "3", "--warmup", "1", "--require-energy"]
    assert run(argv) == 0
    said = {split["id"]: split for split in json.loads(capsys.readouterr().out)["splits"]}
    records = [record for record in read_records(out) if record.split != FLOAT_REFERENCE]
    assert [record.split for record in records] == [split.id for split in load_bundle(tiny_bundle).splits]
    for record in records:
        assert len(record.windows) == 5
        for window in record.windows:
            assert window.energy_j is not None
            assert window.error_j is not None
            assert abs(window.energy_j - exact_j(points, window)) <= window.error_j
        # The medians: this machine, unlike a board that is measured, is somebody else's too.
        per_inference = sorted(exact_j(points, window) / window.n_samples for window in record.windows)
        assert said[record.split]["energy_j"] == pytest.approx(per_inference[2], rel=0.01)
        assert "simulated" in said[record.split]["energy_source"]

"""The edge runtime and an INT8 bundle on real Arm Debians: processor emulated, everything else what a board has."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from serving import running_server

from boards.deploy.deploy import deploy, rollback
from boards.emulated import userland
from boards.emulated.shell import EmulatedShell, emulated_shell
from boards.emulated.userland import prepare
from boards.kinds import load_kind
from boards.stations import Station
from boards.zipapp import NAME, build_zipapp
from splitboard.cli.main import run
from splitboard.contract.bundle import load_bundle, write_manifest
from splitboard.contract.errors import UserError
from splitboard.contract.record import FLOAT_REFERENCE, read_records
from splitboard.contract.samples import load_samples

pytestmark = pytest.mark.slow
needs_tools = pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="needs mmdebstrap, from apt")
ROWS = (
    ("rpi3", "bookworm", "tflite-runtime"),
    ("rpi4", "bookworm", "ai-edge-litert"),
    ("rpi5", "trixie", "ai-edge-litert"),
)
N_IMAGES = 3
_TRY_BINFMT = ["sh", "-c", "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc"]
START_S = 120.0
"""A Python with numpy and an interpreter, on a machine that does other things as well."""


@dataclass(frozen=True)
class Board:
    """An emulated board with the runtime, a bundle and images in its home."""

    shell: EmulatedShell
    kind: str
    release: str
    runtime: str

    def edge(self, *arguments: str, returncode: int = 0) -> str:
        done = self.shell.run(["python3", NAME, *arguments], timeout_s=START_S)
        assert done.returncode == returncode, done
        return done.stdout


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    """Emulation takes a user namespace with a table of binary formats of its own, Linux 6.7."""
    tried = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *_TRY_BINFMT], capture_output=True, text=True
    )
    if tried.returncode != 0:
        pytest.skip(f"no namespaces for emulation here: {tried.stderr.strip()}")


@pytest.fixture(scope="module", params=ROWS, ids="-".join)
def board(
    request: pytest.FixtureRequest, tiny_bundle: Path, tiny_samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Board:
    kind, release, runtime = request.param
    folder = tmp_path_factory.mktemp(kind)
    shell = EmulatedShell(f"emulated:{kind}", prepare(kind, release, runtime), folder / "board")
    with tarfile.open(folder / "files.tar", "w") as archive:
        archive.add(tiny_bundle, "bundle")
        archive.add(tiny_samples, "data.npz")
        archive.add(build_zipapp(folder), NAME)
    shell.put(folder / "files.tar", PurePosixPath("files.tar"))
    assert shell.run(["tar", "-xf", "files.tar"]).returncode == 0
    return Board(shell, kind, release, runtime)


@needs_tools
def test_the_processor_and_the_system_are_the_boards(board: Board) -> None:
    said = board.shell.run(["sh", "-c", "uname -m; cat /etc/debian_version; cat /proc/cpuinfo; id -u"]).stdout.split(
        "\n"
    )
    assert said[0] == "aarch64"
    assert said[1].split(".")[0] == {"bookworm": "12", "trixie": "13"}[board.release]
    (features,) = {line.partition(":")[2] for line in said if line.startswith("Features")}
    # The dot product of 8-bit integers came with Armv8.2: Cortex-A76 has it, A53 and A72 do not.
    assert ("asimddp" in features.split()) == (board.kind == "rpi5")
    assert {"asimddp", "asimdhp"} & set(features.split()) == {"asimddp", "asimdhp"} & set(load_kind(board.kind).isa)
    assert said[-2] != "0"


@needs_tools
def test_it_checks_itself(board: Board) -> None:
    found = json.loads(board.edge("selfcheck", "--bundle", "bundle"))
    assert found["passed"]
    # Two machines' INT8 kernels differ in how they round, so some error is there and it is small.
    assert all(0 < found["error"][task] <= tolerance for task, tolerance in found["tolerance"].items())


@needs_tools
def test_the_server_here_answers_what_the_board_began(board: Board, tiny_bundle: Path, tiny_samples: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    from references import references

    bundle = load_bundle(tiny_bundle)
    images = load_samples(tiny_samples, 1).images[:N_IMAGES]
    wanted = references(tiny_bundle, bundle, images)
    split = next(split for split in bundle.splits if split.edge is not None and split.server is not None)
    with running_server(tiny_bundle) as server, board.shell.reach("127.0.0.1", server.port) as port:
        argv = ["run", "--bundle", "bundle", "--data", "data.npz", "--split", split.id, "--limit", str(N_IMAGES)]
        board.edge(*argv, "--server", f"http://127.0.0.1:{port}", "--timeout", "60", "--out", "answers.jsonl")
    start, *answers, _ = map(json.loads, board.shell.run(["cat", "answers.jsonl"]).stdout.splitlines())
    assert start["environment"]["runtime"].split()[0] == board.runtime
    assert len(answers) == N_IMAGES
    for number, answered in enumerate(answers):
        for task, answer in answered["outputs"].items():
            assert answer["by"] == "server"
            scores = np.exp(wanted.server[split.id][task][number])
            # The older interpreter rounds a few values otherwise, which makes 4e-6; images differ by 1e-3 and more.
            np.testing.assert_allclose(answer["scores"], scores / scores.sum(), atol=2e-5)


@needs_tools
@pytest.mark.parametrize("board", ROWS[-1:], ids="-".join, indirect=True)
def test_records_of_a_bench_say_that_it_was_emulated(board: Board, tiny_bundle: Path, tmp_path: Path) -> None:
    local = load_bundle(tiny_bundle).splits[-1]
    argv = ["bench", "--bundle", "bundle", "--data", "data.npz", "--limit", "2", "--warmup", "0", "--splits", local.id]
    board.edge(*argv, "--board", board.kind, "--emulated", "--out", "runs.jsonl")
    board.shell.get(PurePosixPath("runs.jsonl"), tmp_path / "runs.jsonl")
    (record,) = read_records(tmp_path / "runs.jsonl")
    assert record.emulated
    assert record.before.machine == "aarch64"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> EmulatedShell:
    """Before anything was installed on it."""
    return EmulatedShell("emulated:rpi5", prepare("rpi5"), tmp_path_factory.mktemp("bare") / "board")


@needs_tools
def test_a_program_may_not_change_the_system_and_keeps_its_files(bare: EmulatedShell) -> None:
    assert bare.run(["touch", "/usr/bin/other"]).returncode != 0
    assert bare.run(["mount", "-t", "tmpfs", "none", "/tmp"]).returncode != 0
    for place in ("/home/board", "/tmp"):
        assert bare.run(["sh", "-c", f"echo kept > {place}/file"]).returncode == 0
        assert bare.run(["cat", f"{place}/file"]).stdout == "kept\n"


@needs_tools
def test_what_a_program_starts_is_emulated_too(bare: EmulatedShell) -> None:
    program = "import subprocess; print(subprocess.run(['uname', '-m'], capture_output=True, text=True).stdout)"
    assert bare.run(["sh", "-c", f'python3 -c "{program}"']).stdout.split() == ["aarch64"]
    assert "aarch64" not in {path.name for path in Path("/proc/sys/fs/binfmt_misc").iterdir()}


@needs_tools
def test_programs_answer_as_over_ssh(bare: EmulatedShell) -> None:
    assert bare.run(["cat"], stdin=b"given").stdout == "given"
    assert bare.run(["no-such-program"]).returncode == 127
    assert bare.run(["sh", "-c", "exit 7"]).returncode == 7
    heard: list[str] = []
    done = bare.follow(["sh", "-c", "echo one >&2; echo out; echo two >&2"], heard.append)
    assert (heard, done.stdout, done.stderr) == (["one", "two"], "out\n", "one\ntwo\n")
    with pytest.raises(UserError, match="took longer than 1 s"):
        bare.run(["sleep", "1000"], timeout_s=1)


@needs_tools
def test_files_are_put_where_the_boards_links_lead(bare: EmulatedShell, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"whole")
    bare.run(["sh", "-c", "mkdir -p releases/1; ln -sfn /home/board/releases/1 current"])
    bare.put(tmp_path / "file", PurePosixPath("/home/board/current/deep/file"))
    assert bare.run(["cat", "releases/1/deep/file"]).stdout == "whole"
    bare.get(PurePosixPath("current/deep/file"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"whole"
    with pytest.raises(UserError, match=r'has no file ".*nowhere"'):
        bare.get(PurePosixPath("current/nowhere"), tmp_path / "back")
    with pytest.raises(UserError, match='does not let its user read or write "/etc/file"'):
        bare.put(tmp_path / "file", PurePosixPath("/etc/file"))


@needs_tools
def test_a_bundle_is_deployed(tiny_bundle: Path, tmp_path: Path) -> None:
    shell = EmulatedShell("emulated:rpi5", prepare("rpi5", "trixie", "ai-edge-litert"), tmp_path / "board")
    station = Station("emulated:rpi5", "board", "localhost", kind="rpi5", root="splitboard")
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    bundle = dataclasses.replace(load_bundle(folder), board="rpi5")
    write_manifest(folder, bundle)
    deployed = deploy(folder, bundle, shell, station)
    assert deployed.previous is None
    with pytest.raises(UserError, match=f'has no release before "{deployed.release}"'):
        rollback(shell, station)
    done = shell.run(["splitboard/current/splitboard-edge", "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(shell.run(["cat", f"{deployed.bundle}/manifest.json"]).stdout)["board"] == "rpi5"


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        (("rpi55",), 'unknown board "rpi55"'),
        (("jetson-orin-nano",), '"jetson-orin-nano" cannot be emulated: its engine is tensorrt'),
        (("linux-arm64",), '"linux-arm64" cannot be emulated: .* its processor "any"'),
        (("rpi5", "bullseye"), 'no Debian release is called "bullseye"'),
        (("rpi5", "trixie", "onnxruntime"), 'no runtime is called "onnxruntime"'),
        (("rpi5", "trixie", "tflite-runtime"), 'tflite-runtime has no wheel for the Python 3.13 of "trixie"'),
    ],
)
def test_what_cannot_be_emulated_is_refused(asked: tuple[str, ...], refused: str) -> None:
    with pytest.raises(UserError, match=refused) as error:
        prepare(*asked)
    assert error.value.tries


def test_without_mmdebstrap_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match='an emulated board needs "mmdebstrap"') as error:
        emulated_shell("emulated:rpi5")
    assert error.value.tries == ("sudo apt-get install mmdebstrap",)


@needs_tools
def test_a_fetch_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="could not fetch Debian trixie"):
        prepare("rpi5")
    assert not [path for path in userland.cache_folder().iterdir() if path.is_dir()]


@needs_tools
def test_bench_and_check_take_an_emulated_board_for_a_station(
    tiny_bundle: Path,
    tiny_samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a bare Debian on: wheels, deploy, the board's own bench against a server here, and the gate."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    write_manifest(folder, dataclasses.replace(load_bundle(folder), board="rpi5"))
    out = tmp_path / "runs.jsonl"
    board = ["--board", "emulated:rpi5", "--json"]
    argv = ["bench", str(folder), "--data", str(tiny_samples), "--limit", "2", "--warmup", "0", "-o", str(out), *board]
    assert run(argv) == 0
    said = json.loads(capsys.readouterr().out)
    splits = {split.id for split in load_bundle(folder).splits}
    records = [record for record in read_records(out) if record.split != FLOAT_REFERENCE]
    assert {record.split for record in records} == splits
    assert all(record.emulated and record.before.machine == "aarch64" for record in records)
    assert all(one["total_ms_p50"] is None for one in said["splits"])

    found = load_samples(tiny_samples, 1)
    images = np.ascontiguousarray(found.images[:40, ::-1])  # other images than calibrated the bundle
    labels = {f"labels.{task}": values[:40] for task, values in found.labels.items()}
    np.savez(tmp_path / "test.npz", images=images, **labels)
    argv = ["check", str(folder), "--data", str(tmp_path / "test.npz"), "--json"]
    judged = []
    for where in ([], board[:2]):
        assert run([*argv, *where]) in (0, 1, 2)
        judged.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    here, there = judged
    assert there[-1]["n"] == 40
    assert len(there) == len(here) == 2 * (len(splits) - 1) + 1
    for ours, theirs in zip(here[:-1], there[:-1], strict=True):
        assert (theirs["split"], theirs["task"], theirs["reference"]) == (
            ours["split"],
            ours["task"],
            ours["reference"],
        )
        assert theirs["deployed"] == pytest.approx(ours["deployed"], abs=0.05)  # other kernels: two images of forty

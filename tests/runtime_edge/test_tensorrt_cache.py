"""Engines are built once, and again whenever what they depend on is another."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import engine_header, fake_tensorrt
from trt_bundles import edge_model, rewritten, write_bundle

from runtime_edge.tensorrt.cache import EngineCache, EngineKey
from runtime_edge.tensorrt.library import checked_library
from runtime_edge.tensorrt.options import BuildOptions, default_cache
from runtime_edge.tensorrt.prepare import Workshop, automatic_workspace, l4t_release
from runtime_edge.tensorrt.progress import BuildLine
from splitboard.contract.bundle import Bundle
from splitboard.contract.errors import UserError

MIB = 1 << 20


class Board:
    """A bundle, a cache, and what the board tells of itself."""

    def __init__(self, folder: Path) -> None:
        self.bundle = write_bundle(folder / "bundle")
        self.folder, self.root = folder / "bundle", folder / "root"
        self.cache = folder / "cache"
        (self.root / "etc").mkdir(parents=True)
        (self.root / "proc").mkdir()
        self.release("R36 (release), REVISION: 4.3")
        self.memory(8192)

    def release(self, text: str) -> None:
        (self.root / "etc/nv_tegra_release").write_text(f"# {text}, GCID: 38968081, BOARD: generic, EABI: aarch64\n")

    def memory(self, mib: float) -> None:
        (self.root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {int(mib * 1024)} kB\n")

    def get(
        self,
        capsys: pytest.CaptureFixture[str],
        version: str = "10.3.0",
        capability: tuple[int, int] = (8, 7),
        bundle: Bundle | None = None,
        **options: Any,
    ) -> tuple[bytes, bool]:
        """The engine of ``s02``, and whether it was built for it."""
        library = checked_library(fake_tensorrt(version, dla_cores=2))
        building = BuildOptions(self.cache, **options)
        workshop = Workshop(library, capability, self.folder, bundle or self.bundle, building, self.root)
        plan = workshop.engine(self.bundle.split("s02"), "1 of 1").plan
        return plan, "built s02 (1 of 1)" in capsys.readouterr().err


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def engines(board: Board) -> list[Path]:
    return sorted(board.cache.rglob("*.engine"))


def test_an_engine_is_built_once(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    first, built = board.get(capsys)
    assert built
    again, built_again = board.get(capsys)
    assert (again, built_again) == (first, False)
    board.memory(4096)  # what is free now is no reason to build it again
    assert not board.get(capsys)[1]
    (facts,) = board.cache.rglob("*.json")
    found = json.loads(facts.read_text())
    assert found["sha256"] == hashlib.sha256(first).hexdigest()
    assert found["workspace_bytes"] == 4096 * MIB
    assert found["key"]["workspace"] == "auto"
    assert (found["key"]["l4t"], found["key"]["compute_capability"]) == ("36.4.3", "8.7")
    assert (board.cache / "tensorrt10.3.0-sm8.7-l4t36.4.3").is_dir()


def test_whatever_it_depends_on_builds_another(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    board.get(capsys)
    for change in (
        {"version": "10.16.2"},
        {"capability": (7, 2)},
        {"workspace_bytes": 512 * MIB},
        {"bundle": dataclasses.replace(board.bundle, quantisation=precision(board.bundle, "fp16"))},
    ):
        assert board.get(capsys, **change)[1], change
        assert not board.get(capsys, **change)[1], change
    board.release("R36 (release), REVISION: 4.4")
    assert board.get(capsys)[1]
    for file in ("onnx", "bin"):  # the graph, then its weights
        path = sorted(board.folder.glob(f"edge/s02*.{file}"))[0]
        data = bytearray(path.read_bytes())
        if file == "onnx":
            data = bytearray(changed_graph())
        else:
            data[-1] ^= 1
        path.write_bytes(bytes(data))
        board.bundle = rewritten(board.folder, board.bundle)
        assert board.get(capsys)[1], file
    assert not board.get(capsys)[1]


def precision(bundle: Bundle, name: str) -> Any:
    return dataclasses.replace(bundle.quantisation, precision=name)


def changed_graph() -> bytes:
    model = edge_model("s02", "int8")
    model.graph.name = "another"
    data: bytes = model.SerializeToString()
    return data


def test_dla_is_another_engine(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    fp16 = dataclasses.replace(board.bundle, quantisation=precision(board.bundle, "fp16"))
    board.get(capsys, bundle=fp16)
    _, built = board.get(capsys, bundle=fp16, dla=0)
    assert built
    facts = [json.loads(path.read_text()) for path in board.cache.rglob("*.json")]
    (dla,) = [one for one in facts if one["key"]["dla"] == 0]
    # What the fake's core cannot: all but Conv, Relu, MaxPool and Add.
    assert {"x/quantize", "head", "node_of_pool"} <= set(dla["off_dla"])
    assert not {"first", "relu", "second"} & set(dla["off_dla"])


@pytest.mark.parametrize("what", ["byte", "short", "facts", "no facts", "other facts"])
def test_an_engine_that_is_not_what_was_built_is_built_again(
    board: Board, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    good, _ = board.get(capsys)
    (plan,), (facts,) = engines(board), list(board.cache.rglob("*.json"))
    if what == "byte":
        plan.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    elif what == "short":
        plan.write_bytes(good[:-1])
    elif what == "facts":
        facts.write_text(facts.read_text()[:-9])
    elif what == "no facts":
        facts.unlink()
    else:
        facts.write_text(facts.read_text().replace('"10.3.0"', '"10.2.0"'))
    assert board.get(capsys) == (good, True)
    assert board.get(capsys) == (good, False)


def test_the_timing_cache_grows_and_keeps_its_engines(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    board.get(capsys)
    before = timing(board)
    _, built = board.get(capsys, workspace_bytes=256 * MIB)  # the fake's cache does not grow: the same graph
    assert built
    model = changed_graph()
    path = next(board.folder.glob("edge/s02*.onnx"))
    old = path.read_bytes()
    path.write_bytes(model)
    changed = rewritten(board.folder, board.bundle)
    assert board.get(capsys, bundle=changed)[1]
    grown = timing(board)
    assert grown.startswith(before)
    assert len(grown) > len(before)
    path.write_bytes(old)
    assert not board.get(capsys, bundle=rewritten(board.folder, board.bundle))[1]


def timing(board: Board) -> bytes:
    return next(board.cache.rglob("timing.cache")).read_bytes()[128:]


@pytest.mark.parametrize("what", ["gone", "damaged"])
def test_another_timing_cache_builds_again(board: Board, capsys: pytest.CaptureFixture[str], what: str) -> None:
    board.get(capsys)
    (file,) = board.cache.rglob("timing.cache")
    (key,) = board.cache.rglob("*.json")
    if what == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b"x")
    assert board.get(capsys)[1]
    assert not board.get(capsys)[1]
    assert key.exists()


def test_every_field_names_another_file() -> None:
    key = EngineKey("a", ("b",), "10.3.0", "8.7", "36.4.3", "int8", None, "auto", "c")
    other = EngineKey("A", ("B",), "10.3.1", "8.8", "36.4.4", "fp16", 0, "1", "C")
    digests = {key.digest}
    for field in dataclasses.fields(EngineKey):
        digests.add(dataclasses.replace(key, **{field.name: getattr(other, field.name)}).digest)
    assert len(digests) == 1 + len(dataclasses.fields(EngineKey))
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for digest in digests)


def test_a_cache_that_cannot_be_written(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    board.cache.write_text("a file")
    with pytest.raises(UserError, match="cannot write") as caught:
        board.get(capsys)
    assert caught.value.tries == ("--engine-cache DIR",)


def test_no_part_of_a_file_stays_behind(
    board: Board, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        board.get(capsys)
    monkeypatch.undo()
    assert [path for path in board.cache.rglob("*") if path.is_file()] == []


def test_the_usual_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "splitboard/engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache/splitboard/engines"


@pytest.mark.parametrize(
    ("line", "release"),
    [
        (
            "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 2023",
            "35.4.1",
        ),
        (
            "# R32 (release), REVISION: 7.4, GCID: 33514132, BOARD: t210ref, EABI: aarch64, DATE: Fri Jun  9 2023",
            "32.7.4",
        ),
        ("something else", "none"),
    ],
)
def test_jetson_linux(tmp_path: Path, line: str, release: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(line + "\n")
    assert l4t_release(tmp_path) == release
    assert l4t_release(tmp_path / "elsewhere") == "none"


def test_the_workspace_is_between_a_quarter_and_a_half_of_what_is_free(board: Board) -> None:
    for mib in (*range(128, 1024, 7), *np.geomspace(1024, 131072, 200).tolist()):
        board.memory(mib)
        taken = automatic_workspace(board.root)
        assert mib / 4 * MIB < taken + 1024 <= mib / 2 * MIB + 1024
        assert bin(taken).count("1") == 1
    board.memory(100)
    with pytest.raises(UserError, match='"100" MiB of memory are free'):
        automatic_workspace(board.root)


def test_an_engine_says_how_it_was_built(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    plan, _ = board.get(capsys, workspace_bytes=300 * MIB, clocks=("performance", "MAXN"))
    assert engine_header(plan)["workspace"] == 300 * MIB
    (facts,) = board.cache.rglob("*.json")
    assert json.loads(facts.read_text())["clocks"] == ["performance", "MAXN"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_on_a_terminal() -> None:
    to = Terminal()
    with BuildLine("s07 (2 of 9) int8", to) as line:
        line.start("Building Engine", 4)
        line.start("Timing", 100)
        line.step("Timing", 50)
        line.step("Building Engine", 3)
        assert re.fullmatch(r"building s07 \(2 of 9\) int8: \d+ s, Building Engine 75 %", line.text)
        line.finish("Timing")
        line.finish("Building Engine")
        assert line.text.endswith(" s")
    assert to.getvalue().endswith("\r\x1b[Kbuilt s07 (2 of 9) int8 in 0 s\n")


def test_the_lines_elsewhere() -> None:
    to = io.StringIO()
    with pytest.raises(ValueError, match="broken"), BuildLine("s07", to):
        raise ValueError("broken")
    assert to.getvalue() == "building s07: takes minutes\n"


def test_a_cache_of_another_schema(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, "device")
    key = EngineKey("a", (), "1", "8.7", "none", "int8", None, "auto", "none")
    assert cache.load(key) is None
    assert cache.timing() == ("none", b"")

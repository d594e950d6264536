"""Deploy: what lies on the board afterwards, and that it is as before when anything goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from interpreters import find_interpreter, succeed
from network.fault_proxy import CutError, fault_proxy
from packaging.tags import platform_tags as packaging_tags
from sshd import Desk, asyncssh_server, real_sshd

from boards.deploy.board import MODULES, ON_BOARD, BoardFacts, check_machine, check_space
from boards.deploy.deploy import Deployed, deploy, rollback
from boards.deploy.wheels import Environment, fetch_wheels, needed, platform_tags
from boards.kinds import load_kind, this_machine
from boards.lease import lease
from boards.shell.connect import connect
from boards.shell.local import LocalShell
from boards.shell.program import run_program
from boards.shell.shell import ConnectionLost, Shell
from boards.stations import Station
from splitboard.cli.main import run
from splitboard.contract.bundle import bundle_sha256, load_bundle
from splitboard.contract.errors import GateFailed, UserError

HERE = this_machine()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with asyncssh_server(tmp_path_factory.mktemp("asyncssh")) as found:
        yield found


@pytest.fixture(scope="module")
def shell(server: Desk) -> Iterator[Shell]:
    with connect(server.station) as made:
        yield made


@pytest.fixture
def station(server: Desk, tmp_path: Path) -> Station:
    """This machine: its interpreter has numpy and LiteRT, as a board where the user has installed them."""
    return replace(server.station, root=str(tmp_path / "board"), kind=HERE.name, python=sys.executable)


def put(bundle: Path, shell: Shell, station: Station, **more: Any) -> Deployed:
    return deploy(bundle, load_bundle(bundle), shell, station, **more)


def tree(folder: Path) -> dict[str, str]:
    """Hash by path of all files, target by path of all links."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def variant(bundle: Path, target: Path, old: str, new: str) -> Path:
    """A bundle whose manifest says something else."""
    shutil.copytree(bundle, target)
    manifest = target / "manifest.json"
    text, n = re.subn(old, new, manifest.read_text(), count=1)
    assert n == 1
    manifest.write_text(text)
    return target


def another(bundle: Path, target: Path, note: str = "another") -> Path:
    """A bundle that differs from the first in its manifest alone."""
    return variant(bundle, target, r'"notes": \[', f'"notes": ["{note}"' + (", " if _notes(bundle) else ""))


def _notes(bundle: Path) -> list[str]:
    found: list[str] = json.loads((bundle / "manifest.json").read_text())["notes"]
    return found


def impossible(bundle: Path, target: Path) -> Path:
    """A bundle whose self-check fails: no error is as small as its tolerance."""
    return variant(bundle, target, r'("golden_tolerance": \{\s*"shape": )[\d.e-]+', r"\g<1>1e-30")


# What is there afterwards


def test_everything_is_there_and_runs(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Through OpenSSH, with the board's own checksums."""
    with real_sshd(tmp_path_factory.mktemp("sshd")) as found:
        station = replace(found.station, kind=HERE.name, python=sys.executable)
        with connect(station) as shell:
            seen: list[tuple[str, int, int]] = []
            made = put(tiny_bundle, shell, station, progress=lambda *step: seen.append(step))
            assert made.station == "desk"
            assert made.previous is None
            assert made.bundle_sha256 == bundle_sha256(tiny_bundle)
            assert tree(Path(made.bundle).resolve()) == tree(tiny_bundle)
            check = shell.run([made.python, made.pyz, "selfcheck", "--bundle", made.bundle])
            assert json.loads(check.stdout)["passed"] is True
            current = found.root / "current"
            started = shell.run([str(current / "splitboard-edge"), "selfcheck", "--bundle", str(current / "bundle")])
            assert started.returncode == 0, started.stderr
    assert current.readlink() == Path("releases", made.release)
    assert [step for step, done, total in seen if done == total] == ["send", "install", "selfcheck"]
    assert made.sent_files == len({*tree(tiny_bundle).values()}) + 1
    for blob in (found.root / "blobs").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def test_a_second_time_nothing_is_sent(tiny_bundle: Path, shell: Shell, station: Station) -> None:
    first = put(tiny_bundle, shell, station)
    before = tree(Path(station.root))
    again = put(tiny_bundle, shell, station)
    assert again == replace(first, sent_files=0, sent_bytes=0)
    assert tree(Path(station.root)) == before


def test_only_what_differs_is_sent_and_rollback_goes_back_and_forth(
    tiny_bundle: Path, shell: Shell, station: Station, tmp_path: Path
) -> None:
    first = put(tiny_bundle, shell, station)
    other = another(tiny_bundle, tmp_path / "other")
    second = put(other, shell, station)
    assert (second.sent_files, second.sent_bytes) == (1, (other / "manifest.json").stat().st_size)
    assert second.previous == first.release
    board = Path(station.root)
    assert tree((board / "current" / "bundle").resolve()) == tree(other)
    back = rollback(shell, station)
    assert (back.release, back.previous, back.bundle) == (first.release, second.release, first.bundle)
    assert tree((board / "current" / "bundle").resolve()) == tree(tiny_bundle)
    assert rollback(shell, station).release == second.release
    assert tree((board / "current" / "bundle").resolve()) == tree(other)


def test_there_is_nothing_to_go_back_to(tiny_bundle: Path, shell: Shell, station: Station) -> None:
    with pytest.raises(UserError, match='station "desk" has no release'):
        rollback(shell, station)
    made = put(tiny_bundle, shell, station)
    with pytest.raises(UserError, match=f'has no release before "{made.release}"'):
        rollback(shell, station)


def test_old_releases_go_and_take_their_files_along(
    tiny_bundle: Path, shell: Shell, station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boards.deploy.deploy.KEPT_RELEASES", 1)  # and the one before, for a rollback
    bundles = [another(tiny_bundle, tmp_path / str(i), f"number {i}") for i in range(3)]
    made = [put(bundle, shell, station).release for bundle in bundles]
    board = Path(station.root)
    assert sorted(path.name for path in (board / "releases").iterdir()) == made[1:]
    kept = {bundle_sha256(bundle) for bundle in bundles[1:]}
    assert {path.name for path in (board / "bundles").iterdir()} == kept
    manifests = {bundle_sha256(bundle) for bundle in bundles}
    assert {path.name for path in (board / "blobs").iterdir()} & manifests == kept


def test_what_was_damaged_on_the_board_is_mended(tiny_bundle: Path, shell: Shell, station: Station) -> None:
    made = put(tiny_bundle, shell, station)
    edge = next(Path(made.bundle, "edge").iterdir())
    edge.chmod(0o644)
    with open(edge, "r+b") as file:
        file.write(b"rubbish")
    assert tree(Path(made.bundle).resolve()) != tree(tiny_bundle)
    again = put(tiny_bundle, shell, station)
    assert again.sent_files == 1
    assert tree(Path(again.bundle).resolve()) == tree(tiny_bundle)


# What goes wrong


@pytest.mark.parametrize("had_one", [True, False], ids=["after another", "the first"])
def test_a_failed_self_check_keeps_the_old_release(
    tiny_bundle: Path, shell: Shell, station: Station, tmp_path: Path, had_one: bool
) -> None:
    if had_one:
        put(tiny_bundle, shell, station)
    before = tree(Path(station.root))
    with pytest.raises(GateFailed, match=r'self-check on station "desk" is off: .*shape .* \(at most 1e-30\)') as error:
        put(impossible(tiny_bundle, tmp_path / "impossible"), shell, station)
    assert error.value.exit_code == 1
    assert tree(Path(station.root)) == before


def test_a_bundle_that_does_not_run_there_keeps_the_old_release(
    tiny_bundle: Path, shell: Shell, station: Station, tmp_path: Path
) -> None:
    put(tiny_bundle, shell, station)
    before = tree(Path(station.root))
    broken = variant(tiny_bundle, tmp_path / "broken", r'("golden_tolerance": \{\s*)"shape"', r'\g<1>"shpe"')
    with pytest.raises(UserError, match='does not run: the bundle has no golden tolerance for task "shape"'):
        put(broken, shell, station)
    assert tree(Path(station.root)) == before


@pytest.mark.slow
def test_a_connection_that_breaks_in_the_middle(
    tiny_bundle: Path, server: Desk, station: Station, tmp_path: Path
) -> None:
    other, sent = another(tiny_bundle, tmp_path / "other"), [0]
    board = Path(station.root)

    def cut(data: bytes) -> bytes:
        sent[0] += len(data)
        if sent[0] > 100_000:
            raise CutError
        return data

    def count(data: bytes) -> bytes:
        sent[0] += len(data)
        return data

    with fault_proxy(server.station.port) as proxy:
        proxied = server.behind(int(proxy.url.rsplit(":", 1)[1]))
        proxied = replace(station, port=proxied.port, known_hosts=proxied.known_hosts)
        proxy.up = cut
        with connect(proxied) as shell, pytest.raises(ConnectionLost):
            put(other, shell, proxied)
        assert not (board / "current").exists()
        there = sum(path.stat().st_size for path in (board / "blobs").iterdir())
        assert there > 0
        sent[0], proxy.up = 0, count
        with connect(proxied) as shell:
            made = put(other, shell, proxied)
    assert tree(Path(made.bundle).resolve()) == tree(other)
    everything = sum(path.stat().st_size for path in (board / "blobs").iterdir())
    assert made.sent_bytes < everything


def refused(bundle: Path, shell: Shell, station: Station) -> UserError:
    """Why it is, after a look at the board's root: nothing has changed there."""
    before = tree(Path(station.root))
    with pytest.raises(UserError) as error:
        put(bundle, shell, station)
    assert tree(Path(station.root)) == before
    assert error.value.exit_code == 3
    assert error.value.tries
    return error.value


def test_a_bundle_for_another_kind(tiny_bundle: Path, shell: Shell, station: Station, tmp_path: Path) -> None:
    error = refused(tiny_bundle, shell, replace(station, kind="rpi4"))
    assert error.message == f'"{tiny_bundle}" is for "{HERE.name}", station "desk" is of the kind "rpi4"'
    for_pi = variant(tiny_bundle, tmp_path / "pi", f'"board": "{HERE.name}"', '"board": "rpi5"')
    assert refused(for_pi, shell, replace(station, kind=None)).message.endswith(f'is of the kind "{HERE.name}"')


def test_an_interpreter_for_another_processor() -> None:
    facts = BoardFacts("/r", "/usr/bin/python3", (3, 11), "armv7l", (2, 36), {"numpy": None}, 1)
    station = Station("pi", "pi", "host")
    check_machine(load_kind("rpi4"), facts, station)  # tflite-runtime has wheels for it
    check_machine(load_kind("rpi4"), replace(facts, machine="aarch64"), station)
    with pytest.raises(UserError, match='station "pi" is built for "x86_64", rpi4 is aarch64'):
        check_machine(load_kind("rpi4"), replace(facts, machine="x86_64"), station)
    with pytest.raises(UserError, match='is built for "armv7l"'):
        check_machine(load_kind("jetson-orin-nano"), facts, station)


def test_no_python_and_an_old_one(tiny_bundle: Path, shell: Shell, station: Station, tmp_path: Path) -> None:
    error = refused(tiny_bundle, shell, replace(station, python="/no/python3"))
    assert error.message == 'station "desk" has no working "/no/python3"'
    old = tmp_path / "python3.6"
    old.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 3 6\n')  # as JetPack 4 has it; it cannot compile our programs
    old.chmod(0o755)
    error = refused(tiny_bundle, shell, replace(station, python=str(old)))
    assert error.message.startswith('station "desk" has Python "3.6"')


def test_no_permission(tiny_bundle: Path, station: Station, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() == 0:  # whom modes do not keep out
        made = subprocess.run(["chattr", "+i", str(locked)], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"no folder can be kept from root here: {made.stderr.strip()}")
    try:
        error = refused(tiny_bundle, LocalShell("desk"), replace(station, root=str(locked / "board")))
    finally:
        if os.geteuid() == 0:
            succeed("chattr", "-i", locked)
    assert re.match(r'station "desk" does not let its user read or write ".*/locked/board/', error.message)


def test_no_space(tiny_bundle: Path, shell: Shell, station: Station, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "small")]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    try:
        error = refused(tiny_bundle, shell, replace(station, root=str(tmp_path / "small" / "board")))
    finally:
        succeed("umount", tmp_path / "small")
    assert re.search(r"has 1\.0 MB free under .*, 1\d\.\d MB are needed", error.message)


def test_space_is_enough_to_the_byte() -> None:
    facts = BoardFacts("/r", "python3", (3, 11), "aarch64", (2, 36), {}, 1000)
    check_space(Station("pi", "pi", "host"), facts, 900, 100)
    with pytest.raises(UserError):
        check_space(Station("pi", "pi", "host"), facts, 901, 100)


# The interpreter's environment


def facts_of(version: tuple[int, int], machine: str, **modules: str | None) -> BoardFacts:
    known = {"numpy": modules.get("numpy"), **{MODULES[name]: None for name in MODULES}}
    for name, found in modules.items():
        known[MODULES.get(name.replace("_", "-"), name)] = found
    return BoardFacts("/r", "python3", version, machine, (2, 36), known, 1)


ORIN = facts_of((3, 10), "aarch64", numpy="1.21.5", tensorrt="10.3.0")


@pytest.mark.parametrize(
    ("kind", "facts", "requirements", "runtime"),
    [
        ("rpi5", facts_of((3, 11), "aarch64"), ("numpy", "ai-edge-litert"), "ai-edge-litert"),
        ("rpi5", facts_of((3, 11), "aarch64", numpy="1.24.2"), ("numpy", "ai-edge-litert"), "ai-edge-litert"),
        ("rpi5", facts_of((3, 11), "aarch64", numpy="1.24.2", ai_edge_litert="x"), (), "ai-edge-litert"),
        ("rpi5", facts_of((3, 11), "aarch64", numpy="1.24.2", tflite_runtime="x"), (), "tflite-runtime"),
        # tflite-runtime dies with numpy 2
        (
            "rpi5",
            facts_of((3, 11), "aarch64", numpy="2.2.0", tflite_runtime="x"),
            ("numpy", "ai-edge-litert"),
            "ai-edge-litert",
        ),
        ("rpi4", facts_of((3, 11), "armv7l", numpy="1.24.2"), ("tflite-runtime==2.14.0",), "tflite-runtime"),
        # TensorRT is JetPack's; of CUDA there is a binding, or a wheel of one for JetPack 6 and 7.
        (
            "jetson-orin-nano",
            replace(ORIN, modules={**ORIN.modules, "pycuda.driver": "2024.1"}),
            (),
            "tensorrt",
        ),
        ("jetson-orin-nano", ORIN, ("cuda-bindings==12.*", "cuda-pathfinder"), "tensorrt"),
        (
            "jetson-thor",
            replace(ORIN, version=(3, 12)),
            ("cuda-bindings==13.*", "cuda-pathfinder"),
            "tensorrt",
        ),
    ],
)
def test_what_is_installed(kind: str, facts: BoardFacts, requirements: tuple[str, ...], runtime: str) -> None:
    found = needed(load_kind(kind), facts, "pi")
    assert (found.requirements, found.runtime) == (requirements, runtime)


def test_what_no_wheel_brings() -> None:
    with pytest.raises(UserError, match='station "pi" has no TensorRT'):
        needed(load_kind("jetson-orin-nano"), facts_of((3, 10), "aarch64", numpy="1.21.5"), "pi")
    with pytest.raises(UserError, match=r'no binding of CUDA, and for Python "3\.8" there is no wheel'):
        needed(load_kind("jetson-orin-nano"), replace(ORIN, version=(3, 8)), "pi")
    for numpy in (None, "2.2.0"):
        with pytest.raises(UserError, match=f'32-bit system with numpy "{numpy or "none"}"'):
            needed(load_kind("rpi4"), facts_of((3, 11), "armv7l", numpy=numpy), "pi")


def test_tags_are_those_of_the_packaging_library() -> None:
    glibc = tuple(int(part) for part in os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))  # type: ignore[union-attr]
    assert set(platform_tags(HERE.machine, glibc)) == set(packaging_tags())


def test_wheels_are_chosen_for_the_board_and_kept(tmp_path: Path) -> None:
    facts = facts_of((3, 13), "aarch64")
    environment = Environment(("markupsafe==3.0.2",), False, (), "")
    cache = tmp_path / "cache"
    fetched = _fetched(environment, facts, None, cache)
    (name,) = [path.name for path in fetched]
    assert re.fullmatch(r"MarkupSafe-3\.0\.2-cp313-cp313-manylinux.*aarch64\.whl", name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.executable", "/no/python")  # it is not asked again
        assert fetch_wheels(environment, facts, None, cache) == fetched
    (house,) = fetch_wheels(environment, facts, fetched[0].parent, tmp_path / "unused")
    assert house == fetched[0]
    for other in (facts_of((3, 12), "aarch64"), facts_of((3, 13), "x86_64")):
        with pytest.raises(UserError, match=r'no wheels of "markupsafe==3\.0\.2" for Python 3\.1'):
            fetch_wheels(environment, other, fetched[0].parent, tmp_path / "unused")
    assert not (tmp_path / "unused").exists()


def _fetched(environment: Environment, facts: BoardFacts, wheelhouse: Path | None, cache: Path) -> tuple[Path, ...]:
    try:
        return fetch_wheels(environment, facts, wheelhouse, cache)
    except UserError as error:
        pytest.skip(f"pip has no way to packages: {error.message}")


def test_no_wheelhouse_and_no_glibc(tmp_path: Path) -> None:
    environment = Environment(("numpy",), False, ("numpy",), "")
    with pytest.raises(UserError, match="no wheels in the folder"):
        fetch_wheels(environment, facts_of((3, 11), "aarch64"), tmp_path / "none", tmp_path / "cache")
    with pytest.raises(UserError, match="not linked with glibc"):
        fetch_wheels(environment, replace(facts_of((3, 11), "aarch64"), glibc=None), None, tmp_path / "cache")


@pytest.mark.slow
def test_a_bare_board_gets_an_environment_from_wheels(
    tiny_bundle: Path, shell: Shell, station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter without a single package, and the wheels that its users would get."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    station = replace(station, python=str(python))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    version = (sys.version_info.major, sys.version_info.minor)
    facts = replace(
        facts_of(version, HERE.machine), glibc=tuple(map(int, os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")))
    )  # type: ignore[union-attr]
    cache = tmp_path / "cache" / "splitboard" / "wheels"
    wheels = _fetched(needed(HERE, facts, "desk"), facts, None, cache)
    made = put(tiny_bundle, shell, station)
    assert made.python.startswith(f"{station.root}/environments/")
    assert made.sent_files == len({*tree(tiny_bundle).values()}) + 1 + len(wheels)
    check = shell.run([made.python, made.pyz, "selfcheck", "--bundle", made.bundle])
    assert json.loads(check.stdout)["passed"] is True
    listed = shell.run([made.python, "-c", "from importlib import metadata; print(metadata.version('ai-edge-litert'))"])
    assert any(f"-{listed.stdout.strip()}-" in path.name for path in wheels)
    again = put(another(tiny_bundle, tmp_path / "other"), shell, station, wheelhouse=wheels[0].parent)
    assert (again.python, again.sent_files) == (made.python, 1)
    assert shell.run([str(python), "-c", "import numpy"]).returncode == 1


def test_wheels_that_do_not_load_are_refused(tiny_bundle: Path, shell: Shell, station: Station, tmp_path: Path) -> None:
    """Wheels whose names fit and whose content does not, as of a mislabelled build."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    house = tmp_path / "house"
    house.mkdir()
    for name in ("numpy", "ai_edge_litert"):
        _empty_wheel(house, name)
    with pytest.raises(UserError, match='cannot load "numpy" from the wheels: ModuleNotFoundError'):
        put(tiny_bundle, shell, replace(station, python=str(tmp_path / "bare" / "bin" / "python")), wheelhouse=house)
    assert tree(Path(station.root)) == {}


def _empty_wheel(house: Path, name: str) -> None:
    import zipfile

    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(house / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_the_boards_half_runs_on_the_oldest_python(tiny_bundle: Path, tmp_path: Path) -> None:
    python = find_interpreter("3.8")
    if python is None:
        pytest.skip("no Python 3.8 on this machine")
    local, root = LocalShell(), {"root": str(tmp_path / "board")}

    def ask(verb: str, **request: Any) -> Any:
        return run_program(local, str(python), ON_BOARD, verb, {**root, **request})

    found = ask("probe", modules=["numpy", "json"])
    assert (found["version"], found["machine"]) == ([3, 8], HERE.machine)
    assert found["modules"]["json"] is not None
    files = tree(tiny_bundle)
    pyz = tmp_path / "any"
    pyz.write_text("any")
    digest = hashlib.sha256(b"any").hexdigest()
    assert set(ask("missing", wanted=[digest, *files.values()])) == {digest, *files.values()}
    (tmp_path / "board" / "blobs").mkdir(parents=True)
    shutil.copy(pyz, tmp_path / "board" / "blobs" / digest)
    for name, sha256 in files.items():
        shutil.copy(tiny_bundle / name, tmp_path / "board" / "blobs" / sha256)
    assert ask("missing", wanted=[digest, *files.values()]) == []
    sha256 = bundle_sha256(tiny_bundle)
    request = {"bundle_sha256": sha256, "files": files, "pyz_sha256": digest, "system_packages": True}
    made = ask("install", **request, wheels={}, modules=[])
    assert tree(Path(made["bundle"]).resolve()) == tree(tiny_bundle)
    assert ask("switch", release=made["release"], keep=3) is None
    assert (tmp_path / "board" / "current" / "release.json").is_file()


# The command


def stations_file(folder: Path, station: Station) -> Path:
    path = folder / "stations.toml"
    keys = ("kind", "key", "root", "known_hosts", "python")
    lines = [f'{key} = "{value}"' for key in keys if (value := getattr(station, key)) is not None]
    path.write_text(f'[desk]\naddress = "{station.user}@{station.host}:{station.port}"\n' + "\n".join(lines))
    return path


def command(*arguments: str | Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = run(["deploy", *map(str, arguments)])
    said = capfd.readouterr()
    return code, said.out, said.err


def test_the_command_deploys_shows_and_goes_back(
    tiny_bundle: Path, station: Station, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    desk = ["--stations", stations_file(tmp_path, station)]
    code, out, _ = command(tiny_bundle, "desk", "--dry-run", "--json", *desk, capfd=capfd)
    planned = json.loads(out)
    assert (code, planned["send_files"], planned["wheels"]) == (0, planned["files"], [])
    assert not Path(station.root).exists()
    code, out, _ = command(tiny_bundle, "desk", "--json", *desk, capfd=capfd)
    first = json.loads(out)
    assert (code, first["sent_files"], first["sent_bytes"]) == (0, planned["send_files"], planned["send_bytes"])
    code, out, _ = command(another(tiny_bundle, tmp_path / "other"), "desk", *desk, capfd=capfd)
    assert code == 0
    assert f"before: {first['release']}" in out
    code, out, _ = command("--rollback", "desk", "--json", *desk, capfd=capfd)
    assert (code, json.loads(out)["release"]) == (0, first["release"])
    code, out, _ = command(tiny_bundle, "desk", "--dry-run", *desk, capfd=capfd)
    assert (code, out.splitlines()[0].startswith("Would send: 0 of")) == (0, True)
    assert not (Path(station.root) / "lease.json").exists()


def test_the_command_fails_with_the_documented_codes(
    tiny_bundle: Path, shell: Shell, station: Station, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    desk = ["--stations", stations_file(tmp_path, station)]
    bad = impossible(tiny_bundle, tmp_path / "impossible")
    rows: list[tuple[list[str | Path], int, str]] = [
        ([tiny_bundle, "dsk"], 3, '"dsk"'),
        ([tmp_path / "none", "desk"], 3, "none"),
        ([tiny_bundle], 3, "which station"),
        ([tiny_bundle, "desk", "--rollback"], 3, "--rollback takes no bundle"),
        (["--rollback", "desk"], 3, "has no release"),
        ([tiny_bundle, "desk", "--wheelhouse", tmp_path / "none"], 3, "no wheels in the folder"),
        ([bad, "desk"], 1, "self-check"),
    ]
    for arguments, expected, said in rows:
        code, out, err = command(*arguments, *desk, capfd=capfd)
        assert code == expected, err
        assert said in err
        assert code == 0 or (out == "" and err.startswith("error: "))
        assert code in (0, 1) or "\nTry: " in err
    with lease(shell, station.root, "bench of mine", 10, python=sys.executable):
        code, _, err = command(tiny_bundle, "desk", *desk, capfd=capfd)
    assert (code, 'in use by "bench of mine"' in err) == (3, True)

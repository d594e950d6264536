"""The project as a whole: its floors, what the board's half needs, what the wheel holds, and what the README says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from interpreters import succeed
from serving import REPOSITORY, running_server

from boards.zipapp import build_zipapp
from splitboard.cli.main import app

PACKAGES = ("splitboard", "export", "calib", "boards", "runtime_edge", "runtime_server")
MAX_WHEEL_BYTES = 10 * 2**20
"""The checkpoint takes up to 8 MB of it."""


@pytest.fixture(scope="session")
def files() -> list[str]:
    """What a commit of the working tree would hold."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listed = succeed("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [name for name in listed.split("\0") if name and (REPOSITORY / name).is_file()]


# The floors


def lint_imports(folder: Path) -> tuple[int, str]:
    command = [str(Path(sysconfig.get_path("scripts")) / "lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_floors_hold() -> None:
    code, said = lint_imports(REPOSITORY)
    assert code == 0, said
    assert "0 broken" in said


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("splitboard/contract/wire.py", "import runtime_edge.link.link"),
        ("runtime_edge/link/link.py", "import export.graph"),
        ("export/cut.py", "import calib.ranges"),
        ("calib/ranges.py", "import boards.kinds"),
        ("boards/kinds.py", "import splitboard.report.results"),
        ("splitboard/report/page.py", "import splitboard.cli.main"),
        ("runtime_edge/bench/measure.py", "import onnxruntime"),
        ("runtime_server/service.py", "import torch"),
    ],
)
def test_a_forbidden_import_would_be_found(tmp_path: Path, module: str, line: str) -> None:
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    with open(tmp_path / module, "a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    code, said = lint_imports(tmp_path)
    assert code == 1, said
    importer, imported = module.removesuffix(".py").replace("/", "."), line.removeprefix("import ").split(".")[0]
    assert re.search(rf"{re.escape(importer)} -> {imported}\b", " ".join(said.split())), said


# The board's half: numpy alone, from Python 3.8 on

EDGE_MODULES = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("runtime_edge", "splitboard/contract")
    for path in (REPOSITORY / folder).rglob("*.py")
)
_IMPORT_ALL = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
print(json.dumps({name: getattr(module, "__file__", None) for name, module in sys.modules.items()}))
"""


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed runtime."""
    return build_zipapp(tmp_path_factory.mktemp("runtime"))


def test_every_module_of_the_board_is_tested() -> None:
    assert {"runtime_edge.__main__", "runtime_edge.link.link", "splitboard.contract.wire"} <= set(EDGE_MODULES)


@pytest.mark.parametrize("packed", [False, True], ids=["sources", "packed"])
def test_the_board_needs_numpy_alone(bare_python: Path, runtime: Path, packed: bool) -> None:
    source = runtime if packed else REPOSITORY
    said = succeed(bare_python, "-I", "-c", _IMPORT_ALL, source, *EDGE_MODULES)
    loaded = json.loads(said)
    assert set(EDGE_MODULES) <= loaded.keys()
    assert all(str(loaded[name]).startswith(f"{source}{os.sep}") for name in EDGE_MODULES)
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & {"torch", "onnx", "onnxruntime", "pydantic", "typer", "rich"}
    assert not tops & {"export", "calib", "boards", "runtime_server"}
    outside = {name for name in loaded if name.startswith("splitboard.")} - set(EDGE_MODULES)
    assert not outside


def test_the_packed_runtime_starts_where_other_code_has_its_names(
    bare_python: Path, runtime: Path, tmp_path: Path
) -> None:
    for name in ("runtime_edge", "splitboard", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('imported {name} of the working directory')\n")
    for isolated in ([], ["-I"]):
        said = succeed(bare_python, *isolated, runtime, "--help", cwd=tmp_path)
        assert all(verb in said for verb in ("run", "bench", "doctor", "selfcheck"))


def test_remote_only_runs_on_numpy_alone(
    bare_python: Path, runtime: Path, tiny_bundle: Path, tiny_samples: Path, tmp_path: Path
) -> None:
    """The whole way on a board without an interpreter: bundle, images, preprocessing, wire, record."""
    out = tmp_path / "runs.jsonl"
    options: list[str | Path] = ["--bundle", tiny_bundle, "--data", tiny_samples, "--limit", "5", "--warmup", "1"]
    with running_server(tiny_bundle) as server:
        succeed(bare_python, runtime, "bench", *options, "--splits", "s00", "--server", server.url, "--out", out)
    (record,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert record["split"] == "s00"
    assert record["payload_bytes"] == 32 * 32
    assert [len(record["outputs"]["shape"]), len(record["outputs"]["colour"])] == [5, 5]
    version = succeed(bare_python, "-c", "import platform; print(platform.python_version())").strip()
    assert record["before"]["python"] == version


# The command line starts without what it does not need

HEAVY = ("torch", "onnx", "onnxruntime", "onnxsim", "litert_torch", "litert_quantizer", "ai_edge_litert", "safetensors")
VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
_HEAVY_AFTER = """
import sys
from splitboard.cli.main import run
code = run(sys.argv[2:])
print("loaded:", *sorted(set(sys.argv[1].split(",")) & {name.partition(".")[0] for name in sys.modules}))
sys.exit(code)
"""


def heavy_after(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-c", _HEAVY_AFTER, ",".join(HEAVY), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.rpartition("loaded:")[2].strip()


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in ("demo", "export", "serve"))])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert heavy_after(*arguments) == (0, "")


def test_what_is_loaded_would_be_seen() -> None:
    assert heavy_after("splits", "nope") == (3, "onnx onnxruntime")


# The wheel


@pytest.fixture(scope="session")
def wheel(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what a commit would hold, as `pip install .` builds it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    succeed(*pip, "--no-deps", "--no-build-isolation", "-w", target, ".", cwd=source)
    (made,) = target.glob("*.whl")
    return made


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path, files: list[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {info.filename: info.file_size for info in archive.infolist()}
    held = {name for name in inside if ".dist-info/" not in name}
    assert held == {name for name in files if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    assert {name.partition("/")[0] for name in held} == set(PACKAGES)
    for name in ("elpv.toml", "elpv_lite0.safetensors", "elpv_lite0.md"):
        assert inside[f"splitboard/zoo/{name}"] > 0, name
    assert [name for name in held if re.fullmatch(r"boards/kinds/.+\.toml", name)]
    assert [name for name in held if re.fullmatch(r"splitboard/report/.+\.j2", name)]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


_PACK = """
from pathlib import Path
from boards.zipapp import build_zipapp
print(build_zipapp.__code__.co_filename, build_zipapp(Path()))
"""


def test_the_wheel_installs_the_command(wheel: Path, tmp_path: Path) -> None:
    """From the wheel alone: the kinds of board and the runtime are found where they were installed."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "splitboard = splitboard.cli.main:main" in archive.read(entry_points).decode()
    (site / "host.pth").write_text(sysconfig.get_path("purelib") + "\n")  # the dependencies
    said = succeed(python, "-c", "from splitboard.cli.main import main; main()", "boards", cwd=tmp_path)
    assert "Raspberry Pi 5" in said
    assert succeed(python, "-c", _PACK, cwd=tmp_path).startswith(str(site))
    assert "selfcheck" in succeed(python, "-I", tmp_path / "splitboard-edge.pyz", "--help", cwd=tmp_path)


# The README and the other pages

_FENCED = re.compile(r"^```(console|sh|shell|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PREFIX = re.compile(r"^(\$ )?(\w+=\S* )*(\S*/bin/)?")
_LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)")
_OURS = ("make", "splitboard")


def commands(text: str, prompt: str = "") -> Iterator[list[str]]:
    """The words of every `make` and `splitboard` command in shell text; what follows no prompt is output."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s(?:\||&&|;)\s", line.strip()) if line.strip().startswith(prompt) else ():
            command = _PREFIX.sub("", part)
            if command.split(" ")[0] in _OURS:
                yield shlex.split(command, comments=True)


def check_command(words: list[str], targets: set[str]) -> None:
    """Parses a command as it would be when it is run, without running it."""
    if words[0] == "make":
        wanted = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
        assert wanted <= targets, words
        return
    group = typer.main.get_command(app)
    if words[1:] in ([], ["--help"]):
        return
    assert words[1] in VERBS, words
    if "--help" not in words:
        group.commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def test_the_commands_of_the_pages_exist(files: list[str], targets: set[str]) -> None:
    shown = []
    for page in (REPOSITORY / name for name in files if name.endswith(".md")):
        for language, block in _FENCED.findall(page.read_text(encoding="utf-8")):
            for words in commands(block, "$ " if language == "console" else ""):
                check_command(words, targets)
                shown.append((page.name, words[:2]))
    assert ("README.md", ["make", "demo"]) in shown
    assert ("README.md", ["make", "test"]) in shown
    assert any(name == "README.md" and words[0] == "splitboard" for name, words in shown)


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_the_help_exist(verb: str) -> None:
    helped = typer.main.get_command(app).commands[verb].help or ""  # type: ignore[attr-defined]
    for words in commands(helped):
        check_command(words, set())


@pytest.mark.parametrize(
    "line",
    [
        "VENV=/tmp/v make dmeo",
        "splitboard bnech b",
        "$ .venv/bin/splitboard boards --jsno",
        "splitboard build m --board rpi5 | less",
    ],
)
def test_a_wrong_command_would_be_found(line: str, targets: set[str]) -> None:
    (words,) = commands(line)
    with pytest.raises((AssertionError, typer.BadParameter.__bases__[0])):
        check_command(words, targets)


def test_the_links_of_the_pages_exist(files: list[str]) -> None:
    pages = [REPOSITORY / name for name in files if name.endswith(".md")]
    links = [(page, link) for page in pages for link in _LINK.findall(page.read_text(encoding="utf-8"))]
    committed = {REPOSITORY / name for name in files}
    committed |= {parent for path in committed for parent in path.parents}
    assert any(page.name == "README.md" for page, _ in links)
    for page, link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target in committed, f"{page.name} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page.name} links to {link}"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}

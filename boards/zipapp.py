"""The runtime as one file: ``splitboard-edge.pyz``, which a board runs with ``python3``."""

from __future__ import annotations

import zipfile
from pathlib import Path

import runtime_edge
import splitboard

NAME = "splitboard-edge.pyz"
BEGINNING = "#!/usr/bin/env python3\n"
"""Every such file begins so."""

_MAIN = "import sys\n\nfrom runtime_edge.__main__ import main\n\nsys.exit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_READ_ALL = 0o644 << 16


def build_zipapp(target: Path) -> Path:
    """Packs the edge runtime and the contract.

    The bytes depend on the sources alone: files are sorted, with a fixed time and mode. The standard library's
    ``zipapp`` writes the files' own times, so the archive is written here in its format.

    Args:
        target: the file to write, or a folder to write `NAME` into.

    Returns:
        The file.
    """
    path = target / NAME if target.is_dir() else target
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        file.write(BEGINNING.encode())
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in sorted(_sources().items()):
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = _READ_ALL
                archive.writestr(entry, text)
    beside.chmod(0o755)
    beside.replace(path)
    return path


def _sources() -> dict[str, bytes]:
    """Every module by its path in the archive."""
    edge, ground = _folder(runtime_edge.__file__), _folder(splitboard.__file__)
    found = {f"runtime_edge/{path.relative_to(edge).as_posix()}": path.read_bytes() for path in edge.rglob("*.py")}
    found |= {f"splitboard/contract/{path.name}": path.read_bytes() for path in (ground / "contract").glob("*.py")}
    return {**found, "splitboard/__init__.py": (ground / "__init__.py").read_bytes(), "__main__.py": _MAIN.encode()}


def _folder(init: str | None) -> Path:
    if init is None:
        raise RuntimeError("the runtime is not installed as files")
    return Path(init).parent

"""Other Pythons in environments of their own: what the board's half has to run on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from serving import REPOSITORY


def succeed(*command: str | Path, cwd: Path = REPOSITORY) -> str:
    """Standard output of a command; its errors where it fails."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def find_interpreter(version: str) -> Path | None:
    """A Python that starts and is of this version: on the path, or among pyenv's. A shim may be neither."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    on_path = shutil.which(f"python{version}")
    found = [Path(on_path)] if on_path else []
    for candidate in [*found, *sorted(pyenv.glob(f"{version}.*/bin/python"))]:
        asked = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None

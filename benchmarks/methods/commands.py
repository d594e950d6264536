"""The product's own command line, as a user types it; the methods are tried on the boards' path, not beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

SPLITBOARD = Path(sysconfig.get_path("scripts")) / "splitboard"
MODEL_JSON, MANIFEST = "model.json", "manifest.json"


def splitboard(*arguments: str | Path, cwd: Path | None = None, verdicts: tuple[int, ...] = (0,)) -> Any:
    """Runs a verb with ``--json`` and returns what it printed.

    Args:
        arguments: of the command line.
        cwd: folder that it runs in.
        verdicts: exit codes that are a result: 1 and 2 of a gate, for one.

    Raises:
        RuntimeError: it ended in another way; has what it said.
    """
    ended = subprocess.run(
        [SPLITBOARD, *map(str, arguments), "--json"],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if ended.returncode not in verdicts:
        raise RuntimeError(f"splitboard {' '.join(map(str, arguments))}: {ended.stderr.strip()}")
    lines = ended.stdout.splitlines()
    return json.loads(ended.stdout) if len(lines) < 2 or lines[0] == "{" else [json.loads(line) for line in lines]

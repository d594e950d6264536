"""Board and host prepare an image to the same bytes: the committed digests, in this and in other interpreters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import digests
import numpy as np
import pytest
from interpreters import succeed
from serving import REPOSITORY

EXPECTED = json.loads((Path(__file__).parent / "digests.json").read_text(encoding="utf-8"))
COMMAND = ["-I", digests.__file__, str(REPOSITORY)]


def test_here() -> None:
    assert digests.digests() == EXPECTED
    assert EXPECTED.keys() == digests.CASES.keys()


def test_with_other_pythons_and_numpys(bare_python: Path) -> None:
    assert json.loads(succeed(bare_python, *COMMAND)) == EXPECTED


def test_with_numpy_1(old_python: Path) -> None:
    assert succeed(old_python, "-c", "import numpy; print(numpy.__version__)").startswith("1.")
    assert json.loads(succeed(old_python, *COMMAND)) == EXPECTED


def test_with_other_matrix_kernels() -> None:
    """OpenBLAS picks its kernels by processor; these are for one without fused multiply-add."""
    environment = {**os.environ, "OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, *COMMAND], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == EXPECTED


@pytest.mark.parametrize("name", digests.CASES)
def test_the_pictures_are_worth_the_digest(name: str) -> None:
    (height, width), fields = digests.CASES[name]
    pixels = digests.picture(height, width, fields["source_channels"])
    assert pixels.shape == (1, height, width, fields["source_channels"])
    assert len(np.unique(pixels)) > 200

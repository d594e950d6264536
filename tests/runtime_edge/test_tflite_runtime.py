"""The older interpreter, for 32-bit Raspberry Pi OS: the same bundle passes its self-check there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from boards.zipapp import build_zipapp


def test_the_bundle_passes_its_self_check_in_tflite_runtime(
    old_python: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    runtime = build_zipapp(tmp_path / "splitboard-edge.pyz")
    argv = [str(old_python), "-I", str(runtime), "selfcheck", "--bundle", str(tiny_bundle)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["passed"]
    doctor = subprocess.run([str(old_python), "-I", str(runtime), "doctor"], capture_output=True, text=True, check=True)
    found = json.loads(doctor.stdout)
    assert found["environment"]["runtime"] == "tflite-runtime 2.14.0"
    assert found["problems"] == []


def test_numpy_2_is_refused_with_the_reason(old_python: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """With numpy 2 the interpreter dies in its constructor without saying why; we say it first."""
    site = tmp_path / "numpy2"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, "numpy>=2,<2.3"], check=True, capture_output=True)
    runtime = build_zipapp(tmp_path / "splitboard-edge.pyz")
    command = [str(old_python), str(runtime), "selfcheck", "--bundle", str(tiny_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(site)})
    assert done.returncode == 3
    assert done.stderr.startswith("error: tflite-runtime 2.14.0 does not work with numpy")
    assert 'Try: python3 -m pip install "numpy<2"' in done.stderr

"""The exporter's child for many requests in one process: torch takes seconds to start, and many models are to go.

Reads one request a line and answers each with its exit code. All but the start of the process is the child's own.
"""

import importlib.util
import io
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("child", Path(__file__).parents[2] / "export" / "child.py")
assert spec is not None
assert spec.loader is not None
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)

requests, answers = sys.stdin, sys.stdout
sys.stdout = sys.stderr  # whatever the libraries print is no answer
for request in iter(requests.readline, ""):
    sys.stdin = io.StringIO(request)
    print(child.main(), file=answers, flush=True)

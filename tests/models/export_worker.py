"""The exporter's child for many requests: torch takes seconds to start, so it starts once and every request has a fork.

A fork is a process of its own like the child that it stands for: what it imports, breaks or ends is gone with it.
Reads a line of JSON per request, the working directory and the request itself, and answers each with a line of JSON:
its exit code and what it wrote to standard error.
"""

import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch


def warm():
    """Exports next to nothing, after which all that an export imports and prepares is there for the forks."""
    torch.set_num_threads(1)  # a fork has no threads but its own
    warnings.simplefilter("ignore")
    program = torch.export.export(torch.nn.Conv2d(1, 1, 1), (torch.zeros(1, 1, 2, 2),))
    torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)


def start(folder, request):
    """Runs the child in a fork of this process; returns its exit code and its standard error."""
    with tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            code = 1  # as the interpreter's own where an exception ends it
            try:
                os.chdir(folder)
                os.dup2(errors.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                sys.stdin = io.StringIO(request)
                code = child.main()
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(BaseException):
                    sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        errors.seek(0)
        return code, errors.read().decode(errors="replace")


spec = importlib.util.spec_from_file_location("child", Path(__file__).parents[2] / "export" / "child.py")
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
warm()

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever the libraries print is no answer
for line in iter(sys.stdin.readline, ""):
    print(json.dumps(start(*json.loads(line))), file=answers, flush=True)

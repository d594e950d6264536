"""A real NVIDIA Triton from its wheel, without a GPU and without a container, for the tests marked triton.

It lives in an environment of its own (`.venv-triton` at the repository's root, or the one whose interpreter
``SPLITBOARD_TRITON_PYTHON`` names) with ``nvidia-pytriton`` (which contains Triton), ``onnxruntime`` and
``tritonclient[all]``. The wheel has the Python back end alone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from serving import free_ports

VARIABLE = "SPLITBOARD_TRITON_PYTHON"
START_S = 90
_ASK = """
import importlib.util, json, sys, sysconfig
print(json.dumps({
    "triton": importlib.util.find_spec("pytriton").submodule_search_locations[0] + "/tritonserver",
    "libraries": [sysconfig.get_path("platlib") + "/nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")],
    "version": "%d.%d" % sys.version_info[:2],
}))
"""


@dataclass(frozen=True)
class Triton:
    """A Triton that is ready.

    Attributes:
        url: of its HTTP front.
        grpc: ``host:port`` of its gRPC front.
        process: the server.
        log: what it wrote.
    """

    url: str
    grpc: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


def find_triton_python() -> Path | None:
    """The interpreter of Triton's environment, if there is one."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    environment = Path(__file__).parents[1] / ".venv-triton"
    # The stamp is there only when everything was installed.
    return environment / "bin" / "python" if (environment / ".installed").is_file() else None


def triton_python() -> Path:
    """The interpreter of Triton's environment; the test is skipped where there is none."""
    python = find_triton_python()
    if python is None:
        pytest.skip(f"no Triton here: make triton, or {VARIABLE}=/path/to/python of an environment that has it")
    return python


@contextlib.contextmanager
def running_triton(repository: Path, *options: str) -> Iterator[Triton]:
    """Starts Triton on loopback addresses and free ports; it is ended with the block.

    Args:
        repository: a model repository for the Python back end.
        options: more of tritonserver's.
    """
    python = triton_python()
    about = json.loads(subprocess.run([python, "-c", _ASK], capture_output=True, check=True).stdout)
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    with tempfile.TemporaryDirectory(prefix="triton") as temporary:
        folder = Path(temporary)
        backends = _backends(folder / "backends", Path(about["triton"]), about["version"])
        command = [
            f"{about['triton']}/bin/tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            "--allow-gpu-metrics=false",
            "--disable-auto-complete-config",
            *(f"--{front}-address=127.0.0.1" for front in ports),
            *(f"--{front}-port={port}" for front, port in ports.items()),
            *options,
        ]
        environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(about["libraries"])}
        environment["PATH"] = f"{python.parent}:{environment['PATH']}"  # the stub takes the first python3 as its own
        environment["OMP_NUM_THREADS"] = "1"
        log = folder / "log"
        with open(log, "wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            _wait(process, ports["http"], log)
            yield Triton(f"http://127.0.0.1:{ports['http']}", f"127.0.0.1:{ports['grpc']}", process, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _backends(folder: Path, triton: Path, version: str) -> Path:
    """The wheel's back ends, with the stub that fits the interpreter where the Python back end looks for it."""
    python = folder / "python"
    python.mkdir(parents=True)
    for file in [*(triton / "backends" / "python").iterdir(), triton / "python_backend_stubs" / version / _STUB]:
        (python / file.name).symlink_to(file)
    return folder


_STUB = "triton_python_backend_stub"


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/v2/health/ready")
            ready = connection.getresponse().status == 200
            connection.close()
            if ready:
                return
        time.sleep(0.1)
    raise RuntimeError(f"Triton did not start: {log.read_text(errors='replace')[-3000:]}")

"""Engines that this board has built, each good for exactly what it was built from.

An engine file is code that TensorRT runs unread, so one is given back only where its key is the one asked for and its
bytes have the hash that was noted when it was built. Whatever else lies there is built again.

``DIR/<device>/<key>.engine`` has its facts beside it in ``<key>.json``, which is written last: without it there is no
engine. ``<device>/timing.cache`` holds what kernels took here, so that the next build is faster.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

from runtime_edge.tensorrt.build import Built
from splitboard.contract.decode import read_json, to_json
from splitboard.contract.errors import UserError
from splitboard.contract.folder import write_whole

SCHEMA_VERSION = 1
_KEY_DIGITS = 32
_HASH_BYTES = 64
_NEW = "none"
"""Identity of a timing cache that is not there yet; no engine was built with it."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on; another value of any of these makes another engine.

    Attributes:
        onnx_sha256: of the graph.
        weights_sha256: of the files that hold the graph's weights.
        tensorrt: version.
        compute_capability: of the GPU, e.g. ``8.7``.
        l4t: release of Jetson Linux, which JetPack goes by; ``none`` on other machines.
        precision: of the bundle.
        dla: core, ``None`` for the GPU alone.
        workspace: in bytes as asked for, or ``auto``.
        timing: the timing cache it was built with. That one only grows, and what is in it does not change, so it goes
            by the hash that it had when it was new.
    """

    onnx_sha256: str
    weights_sha256: Tuple[str, ...]
    tensorrt: str
    compute_capability: str
    l4t: str
    precision: str
    dla: Optional[int]
    workspace: str
    timing: str

    @property
    def digest(self) -> str:
        """Names the engine's files."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()[:_KEY_DIGITS]


@dataclass(frozen=True)
class EngineFacts:
    """What is noted of an engine file.

    Attributes:
        schema_version: of this file.
        key: what it was built from.
        sha256: of its bytes.
        size_bytes: of it.
        workspace_bytes: that it was built with.
        seconds: that the build took.
        off_dla: layers that DLA could not take.
        clocks: governor and power mode that were held while it was built, empty where they were not.
    """

    schema_version: int
    key: EngineKey
    sha256: str
    size_bytes: int
    workspace_bytes: int
    seconds: float
    off_dla: Tuple[str, ...]
    clocks: Tuple[str, ...]


class Stored(NamedTuple):
    """An engine from the cache.

    Attributes:
        plan: its bytes, which are those that were built.
        facts: what is noted of it.
    """

    plan: bytes
    facts: EngineFacts


class Timing(NamedTuple):
    """A timing cache.

    Attributes:
        id: hash of its first bytes; ``none`` where there is no cache yet.
        data: what TensorRT reads.
    """

    id: str
    data: bytes


class EngineCache:
    """The engines of one device.

    Args:
        folder: of the cache.
        device: what the timing cache depends on, e.g. ``tensorrt10.3.0-sm8.7-l4t36.4.3``.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder = folder / device

    def timing(self) -> Timing:
        """The timing cache; a new one where there is none, or where its bytes are not those that were written."""
        try:
            raw = (self.folder / "timing.cache").read_bytes()
        except OSError:
            return Timing(_NEW, b"")
        first, sha256, data = raw[:_HASH_BYTES], raw[_HASH_BYTES : 2 * _HASH_BYTES], raw[2 * _HASH_BYTES :]
        whole = hashlib.sha256(data).hexdigest().encode() == sha256
        return Timing(first.decode("ascii", "replace"), data) if whole else Timing(_NEW, b"")

    def keep_timing(self, before: Timing, data: bytes) -> Timing:
        """Writes a timing cache that has grown.

        Args:
            before: what the build began with.
            data: what it ended with.

        Raises:
            UserError: it cannot be written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        grown = Timing(sha256 if before.id == _NEW else before.id, data)
        _write_bytes(self.folder / "timing.cache", grown.id.encode() + sha256.encode() + data)
        return grown

    def load(self, key: EngineKey) -> Optional[Stored]:
        """The engine of this key; ``None`` where there is none, or where its file is not what was built."""
        try:
            facts = read_json(EngineFacts, self._file(key, "json"))
            plan = self._file(key, "engine").read_bytes()
        except (UserError, OSError):
            return None
        if facts.schema_version != SCHEMA_VERSION or facts.key != key:
            return None
        return Stored(plan, facts) if hashlib.sha256(plan).hexdigest() == facts.sha256 else None

    def store(self, key: EngineKey, built: Built, workspace_bytes: int, clocks: Tuple[str, ...]) -> Stored:
        """Keeps an engine, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        facts = EngineFacts(
            schema_version=SCHEMA_VERSION,
            key=key,
            sha256=hashlib.sha256(built.plan).hexdigest(),
            size_bytes=len(built.plan),
            workspace_bytes=workspace_bytes,
            seconds=built.seconds,
            off_dla=built.off_dla,
            clocks=clocks,
        )
        with contextlib.suppress(OSError):
            self._file(key, "json").unlink()  # the old engine's facts must not stand beside the new one
        _write_bytes(self._file(key, "engine"), built.plan)
        write_whole(self._file(key, "json"), to_json(facts, indent=1) + "\n")
        return Stored(built.plan, facts)

    def _file(self, key: EngineKey, ending: str) -> Path:
        return self.folder / f"{key.digest}.{ending}"


def _write_bytes(target: Path, data: bytes) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise UserError(f'cannot write "{target}": {error.strerror}', ["--engine-cache DIR"]) from error

"""The engine of a split: from the cache, or built now."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Tuple

from runtime_edge.engines.memory import free_bytes
from runtime_edge.tensorrt.build import Wanted, build
from runtime_edge.tensorrt.cache import EngineCache, EngineKey, Stored, Timing
from runtime_edge.tensorrt.library import Library
from runtime_edge.tensorrt.options import BuildOptions
from runtime_edge.tensorrt.progress import BuildLine
from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.errors import UserError

WEIGHTS_FORMAT = "onnx-weights"
AUTO_WORKSPACE = "auto"
_LEAST_WORKSPACE_BYTES = 64 << 20
_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")


class Workshop:
    """Gives engines for one bundle on one device.

    Args:
        library: that builds them.
        compute_capability: of the GPU.
        folder: the bundle.
        bundle: its manifest.
        options: how and where.
        root: of the file system that ``/etc`` and ``/proc`` are in.
    """

    def __init__(
        self,
        library: Library,
        compute_capability: Tuple[int, int],
        folder: Path,
        bundle: Bundle,
        options: BuildOptions,
        root: Path = Path("/"),
    ) -> None:
        self._library, self._folder, self._bundle, self._options, self._root = library, folder, bundle, options, root
        self._capability = "{}.{}".format(*compute_capability)
        self._l4t = l4t_release(root)
        device = f"tensorrt{library.version}-sm{self._capability}-l4t{self._l4t}"
        self._cache = EngineCache(options.cache, device)

    def engine(self, split: Split, place: str) -> Stored:
        """The engine of a split.

        Args:
            split: with an edge half.
            place: of the split among those that are wanted, for the progress line, e.g. ``2 of 9``.

        Raises:
            UserError: it cannot be built or kept.
        """
        timing = self._cache.timing()
        found = self._cache.load(self._key(split, timing))
        return self._build(split, timing, place) if found is None else found

    def _build(self, split: Split, timing: Timing, place: str) -> Stored:
        given = self._options.workspace_bytes
        workspace_bytes = automatic_workspace(self._root) if given is None else given
        wanted = Wanted(self._bundle.precision, self._options.dla, workspace_bytes)
        with BuildLine(f"{split.id} ({place}) {self._bundle.precision}") as line:
            built = build(self._library, self._folder / str(split.edge), wanted, timing.data, line)
        grown = self._cache.keep_timing(timing, built.timing)
        return self._cache.store(self._key(split, grown), built, workspace_bytes, self._options.clocks)

    def _key(self, split: Split, timing: Timing) -> EngineKey:
        files = {artifact.path: artifact for artifact in self._bundle.artifacts}
        weights = sorted(one.sha256 for one in files.values() if one.format == WEIGHTS_FORMAT)
        given = self._options.workspace_bytes
        return EngineKey(
            onnx_sha256=files[str(split.edge)].sha256,
            weights_sha256=tuple(weights),
            tensorrt=self._library.version,
            compute_capability=self._capability,
            l4t=self._l4t,
            precision=self._bundle.precision,
            dla=self._options.dla,
            workspace=AUTO_WORKSPACE if given is None else str(given),
            timing=timing.id,
        )


def l4t_release(root: Path = Path("/")) -> str:
    """The release of Jetson Linux, e.g. ``36.4.3``; ``none`` on other machines.

    ``/etc/nv_tegra_release`` begins ``# R36 (release), REVISION: 4.3, GCID: ...``.
    """
    try:
        found = _RELEASE.match((root / "etc/nv_tegra_release").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return "none"
    return "none" if found is None else ".".join(found.groups())


def automatic_workspace(root: Path = Path("/")) -> int:
    """The power of two that is between a quarter and a half of the memory that is free.

    The GPU of a Jetson has no memory of its own: a builder that may take all of it is killed, with all else.

    Raises:
        UserError: there is too little.
    """
    free = free_bytes(root)
    if free < 2 * _LEAST_WORKSPACE_BYTES:
        raise UserError(
            f'"{free >> 20}" MiB of memory are free, which is too little to build an engine',
            ["end other programs, the desktop first: sudo systemctl isolate multi-user", "add swap", "--workspace MIB"],
        )
    return 1 << (free // 2).bit_length() - 1

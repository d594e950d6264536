"""Files on a FAT partition inside an image: mtools, which needs neither root nor a mount."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from boards.flash.tools import run_tool
from splitboard.contract.errors import UserError

_ENVIRONMENT = {"MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": "/dev/null", "MTOOLS_LOWER_CASE": "0"}
"""Sizes in images' headers do not please mtools' own check, and the user's drive letters are none of ours."""


@dataclass(frozen=True)
class Fat:
    """A FAT file system in an image.

    Attributes:
        image: the whole image.
        offset_bytes: where the partition begins.
    """

    image: Path
    offset_bytes: int

    def names(self, folder: str = "") -> tuple[str, ...]:
        """Of files and folders (with a slash at their end) at the top, or in a folder that is there."""
        listed = self._run("mdir", "-b", *self._at, f"::/{folder}").stdout.decode(errors="replace")
        return tuple(line.removeprefix(f"::/{folder}").lstrip("/") for line in listed.splitlines() if line)

    def read(self, path: str) -> bytes | None:
        """A file's content; ``None`` where there is no such file."""
        found = run_tool(["mtype", *self._at, f"::/{path}"], _ENVIRONMENT)
        return found.stdout if found.returncode == 0 else None

    def write(self, files: Mapping[str, bytes]) -> None:
        """Writes files at the top, in place of those that are there, and reads them back.

        Raises:
            UserError: they do not fit.
        """
        with tempfile.TemporaryDirectory(prefix="splitboard-fat-") as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            self._run("mcopy", "-o", *self._at, *(str(Path(folder) / name) for name in files), "::/")
        for name, content in files.items():
            if self.read(name) != content:
                raise UserError(
                    f'"{name}" did not fit on the boot partition of "{self.image.name}"',
                    ["use the image as downloaded"],
                )

    @property
    def _at(self) -> tuple[str, str]:
        return "-i", f"{self.image}@@{self.offset_bytes}"

    def _run(self, *argv: str) -> subprocess.CompletedProcess[bytes]:
        done = run_tool(argv, _ENVIRONMENT)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise UserError(
                f'the boot partition of "{self.image.name}" cannot be used: {said}', ["download the image again"]
            )
        return done

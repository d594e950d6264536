"""Files on an ext4 partition inside an image: debugfs, which needs neither root nor a mount.

debugfs exits with 0 whatever happened, and complains on stderr, where it also says its version. So what it complains is
read, and what it was to write is read back.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from boards.flash.tools import run_tool
from splitboard.contract.errors import SplitboardError, UserError

_BANNER = re.compile(r"debugfs \d+\.\d+.*")
_FOLDER_MODE = 0o040755
_FILE = 0o100000
_SPARE_BYTES = 8 << 20
"""Left free beside what is written: the system has to boot before it grows its partition."""


@dataclass(frozen=True)
class RootFile:
    """A file to be put on a root file system; it belongs to root.

    Attributes:
        path: absolute, on the board.
        source: its content.
        mode: permission bits.
    """

    path: PurePosixPath
    source: Path
    mode: int = 0o644


@dataclass(frozen=True)
class RootLink:
    """A symbolic link to be put on a root file system.

    Attributes:
        path: absolute, on the board.
        target: what it points to.
    """

    path: PurePosixPath
    target: str


@dataclass(frozen=True)
class Ext4:
    """An ext4 file system in an image.

    Attributes:
        image: the whole image; its path has no question mark, which debugfs takes for options.
        offset_bytes: where the partition begins.
    """

    image: Path
    offset_bytes: int

    def read(self, path: str) -> bytes | None:
        """A file's content; ``None`` where there is none. Links are not followed at the end of the path."""
        content, complaints = self._ask(f'cat "{path}"')
        return None if complaints else content

    def exists(self, path: str) -> bool:
        """Whether there is anything of that name."""
        return not self._ask(f'stat "{path}"')[1]

    def link(self, path: str) -> str | None:
        """What a short link points to; ``None`` where there is no link."""
        said = re.search(r'Fast link dest: "(.*)"', self._ask(f'stat "{path}"')[0].decode(errors="replace"))
        return said[1] if said else None

    def names(self, folder: str) -> tuple[str, ...]:
        """Of what is in a folder; empty where there is none."""
        listed = self._ask(f'ls -p "{folder}"')[0].decode(errors="replace")  # /inode/mode/uid/gid/name/size/
        rows = [line.split("/") for line in listed.splitlines() if line.startswith("/")]
        return tuple(row[5] for row in rows if len(row) > 5 and row[1] != "0" and row[5] not in (".", ".."))

    def check_writable(self, n_bytes: int) -> None:
        """Refuses a file system that cannot take this much.

        Raises:
            UserError: too little is free, or it was not unmounted cleanly: its journal would undo what is written.
        """
        said = self._ask("stats -h")[0].decode(errors="replace")
        if "needs_recovery" in said:
            raise UserError(
                f'the root partition of "{self.image.name}" was not unmounted cleanly', ["use the image as downloaded"]
            )
        free, size = (int(_field(said, name)) for name in ("Free blocks", "Block size"))
        if free * size < n_bytes + _SPARE_BYTES:
            raise UserError(
                f'{n_bytes >> 20} MiB do not fit on the root partition of "{self.image.name}": '
                f"{free * size >> 20} MiB are free",
                ["use a larger image of the system", "splitboard deploy, once the board is up"],
            )

    def write(self, files: Sequence[RootFile], links: Sequence[RootLink] = ()) -> None:
        """Writes files and links, with the folders above them, and reads them back.

        Raises:
            UserError: they do not fit.
        """
        self.check_writable(sum(file.source.stat().st_size for file in files))
        commands = [
            *self._folders([*(file.path for file in files), *(link.path for link in links)]),
            *(line for file in files for line in _put(file)),
            *(line for link in links for line in _put_link(link)),
        ]
        with tempfile.NamedTemporaryFile("w", suffix=".debugfs", encoding="utf-8") as script:
            script.write("\n".join([*commands, ""]))
            script.flush()
            done = run_tool(["debugfs", "-w", "-f", script.name, self._at])
        complaints = _complaints(done.stderr)
        for file in files:
            if hashlib.sha256(self.read(str(file.path)) or b"").digest() != _sha256(file.source):
                raise SplitboardError(f'"{file.path}" could not be written into the image: {"; ".join(complaints)}')
        for link in links:
            if self.link(str(link.path)) != link.target:
                raise SplitboardError(f'"{link.path}" could not be linked in the image: {"; ".join(complaints)}')

    def _folders(self, paths: Sequence[PurePosixPath]) -> list[str]:
        """Commands that make the folders which are not there."""
        above = {parent for path in paths for parent in path.parents if parent.parts[1:]}
        lines = []
        for folder in sorted(above):
            if not self.exists(str(folder)):
                lines += [f'cd "{folder.parent}"', f'mkdir "{folder.name}"', *_owned(folder, _FOLDER_MODE)]
        return lines

    @property
    def _at(self) -> str:
        return f"{self.image}?offset={self.offset_bytes}"

    def _ask(self, command: str) -> tuple[bytes, list[str]]:
        done = run_tool(["debugfs", "-R", command, self._at])
        return done.stdout, _complaints(done.stderr)


def _put(file: RootFile) -> list[str]:
    # `write` takes a name in the current folder: a path would become one name with slashes in it.
    return [
        f'cd "{file.path.parent}"',
        f'rm "{file.path.name}"',
        f'write "{file.source}" "{file.path.name}"',
        *_owned(file.path, _FILE | file.mode),
    ]


def _put_link(link: RootLink) -> list[str]:
    return [f'cd "{link.path.parent}"', f'rm "{link.path.name}"', f'symlink "{link.path.name}" "{link.target}"']


def _owned(path: PurePosixPath, mode: int) -> list[str]:
    fields = {"mode": f"0{mode:o}", "uid": "0", "gid": "0"}
    return [f'set_inode_field "{path}" {name} {value}' for name, value in fields.items()]


def _complaints(stderr: bytes) -> list[str]:
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines()]
    return [line for line in lines if line and not _BANNER.fullmatch(line)]


def _field(said: str, name: str) -> str:
    found = re.search(rf"^{name}:\s*(\d+)", said, re.MULTILINE)
    if found is None:
        raise SplitboardError(f'debugfs did not say "{name}"')
    return found[1]


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 22), b""):
            digest.update(chunk)
    return digest.digest()

"""What the board runs, as files of root on its root file system: the same for every image.

``/usr/local/lib/splitboard`` holds an archive with the bundle, the runtime and wheels, and two programs; a unit starts
the first one at every boot as long as the archive is there. It waits for the user (whom the image's own first boot
makes, at its own time), and has the second one unpack, as that user, what `boards.deploy.on_board` makes a release of:
the board is then just as a deploy leaves it, and the next deploy goes on from there. The archive is removed last, so a
power cut in the middle is made good at the next boot.

The self-check is a unit of the user, not of root; it runs at every boot (lingering), and leaves ``selfcheck.json``.
"""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from boards.deploy.board import MODULES, ON_BOARD, BoardFacts
from boards.deploy.wheels import default_cache, fetch_wheels, needed
from boards.flash.ext4 import RootFile, RootLink
from boards.zipapp import build_zipapp
from splitboard.contract.board import BoardKind
from splitboard.contract.bundle import bundle_sha256, file_sha256
from splitboard.contract.errors import UserError

FOLDER = PurePosixPath("/usr/local/lib/splitboard")
ROOT = "splitboard"
"""Under the user's home; the root that a station has unless it says otherwise."""
SELFCHECK = "splitboard-selfcheck.service"
FIRST_UID = "1000"
"""Whoever has it is the first user, on Debian and Ubuntu."""

_UNITS = PurePosixPath("/etc/systemd/system")
_SETUP = "splitboard-setup.service"


@dataclass(frozen=True)
class Payload:
    """Files and links for a root file system.

    Attributes:
        files: that belong to root.
        links: beside them.
    """

    files: tuple[RootFile, ...]
    links: tuple[RootLink, ...]

    @property
    def n_bytes(self) -> int:
        """Of all files."""
        return sum(file.source.stat().st_size for file in self.files)


@dataclass(frozen=True)
class Libraries:
    """What the runtime needs beside Python on the board.

    Attributes:
        wheels: that go along; none where the board's system brings it all, or nobody gave any.
        modules: that must load on the board afterwards.
        system_packages: whether the system's own packages stay visible.
    """

    wheels: tuple[Path, ...]
    modules: tuple[str, ...]
    system_packages: bool


NO_LIBRARIES = Libraries((), (), True)


def choose_wheels(wheelhouse: Path | None, kind: BoardKind, python: str | None) -> Libraries:
    """The wheels of a folder that fit the system on the image, as a deploy would choose them.

    Args:
        wheelhouse: folder of wheels; ``None`` for none.
        kind: of board.
        python: of the image, e.g. ``3.11``; ``None`` where it is not known.

    Raises:
        UserError: they do not fit, one is missing, or the kind takes none.
    """
    if wheelhouse is None:
        return NO_LIBRARIES
    if "ai-edge-litert" not in kind.runtime:
        raise UserError(
            f'"{wheelhouse}" is not needed: {kind.title} takes {kind.runtime[0]} and numpy from its own system',
            ["leave --wheelhouse out"],
        )
    system = next((one for one in kind.systems if one.python == python), None)
    if system is None or python is None:
        raise UserError(
            f'no wheels are known for Python "{python}" of this image', ["leave --wheelhouse out, and deploy later"]
        )
    version = tuple(int(part) for part in python.split("."))
    glibc = tuple(int(part) for part in system.glibc.split("."))
    bare = {"numpy": None, **dict.fromkeys(MODULES.values())}
    facts = BoardFacts(ROOT, "python3", version, kind.machine, glibc, bare, free_bytes=0)
    environment = needed(kind, facts, kind.name)
    wheels = fetch_wheels(environment, facts, wheelhouse, default_cache())
    return Libraries(wheels, environment.modules, environment.system_packages)


def build_payload(bundle: Path, libraries: Libraries, user: str, keys: Sequence[str], work: Path) -> Payload:
    """Writes the files of the payload into a folder.

    Args:
        bundle: a checked bundle folder.
        libraries: that the runtime needs there.
        user: whose home it goes to; `FIRST_UID` where the image asks for the name.
        keys: public keys that this user gets; empty where the image's first boot sees to it.
        work: an empty folder.

    Returns:
        Files in ``work`` and where they belong.
    """
    pyz = build_zipapp(work)
    sources = {path.relative_to(bundle).as_posix(): path for path in sorted(bundle.rglob("*")) if path.is_file()}
    files = {name: file_sha256(path) for name, path in sources.items()}
    packages = {wheel.name: file_sha256(wheel) for wheel in libraries.wheels}
    pyz_sha256 = file_sha256(pyz)
    blobs = {files[name]: path for name, path in sources.items()}
    blobs |= {packages[wheel.name]: wheel for wheel in libraries.wheels}
    blobs[pyz_sha256] = pyz
    _archive(work / "payload.tar", blobs)
    request = {
        "root": ROOT,
        "wanted": sorted(blobs),
        "files": files,
        "bundle_sha256": bundle_sha256(bundle),
        "pyz_sha256": pyz_sha256,
        "wheels": packages,
        "system_packages": libraries.system_packages,
        "modules": libraries.modules,
        "keep": 3,
    }
    texts = {
        "setup.sh": _SETUP_SH.format(account=shlex.quote(user), folder=FOLDER, selfcheck=SELFCHECK),
        "install.sh": _INSTALL_SH.format(folder=FOLDER, root=ROOT, selfcheck=SELFCHECK),
        "install.py": ON_BOARD.read_text(encoding="utf-8") + _INSTALL_PY.format(request=json.dumps(request)),
        SELFCHECK: _SELFCHECK.format(root=ROOT),
        "authorized_keys": "".join(f"{key}\n" for key in keys),
        _SETUP: _SETUP_UNIT.format(folder=FOLDER),
    }
    for name, text in texts.items():
        (work / name).write_text(text, encoding="utf-8")
    placed = [RootFile(FOLDER / name, work / name) for name in ("payload.tar", *texts) if name != _SETUP]
    return Payload(
        files=(*placed, RootFile(_UNITS / _SETUP, work / _SETUP)),
        links=(RootLink(_UNITS / "multi-user.target.wants" / _SETUP, f"../{_SETUP}"),),
    )


def payload_bytes(bundle: Path, libraries: Libraries) -> int:
    """About how much the payload takes, for the plan."""
    return sum(path.stat().st_size for path in [*bundle.rglob("*"), *libraries.wheels] if path.is_file())


def tar_payload(payload: Payload, target: Path) -> None:
    """The payload as an archive to be unpacked over a folder ``rootfs``: everything belongs to root."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for file in payload.files:
            _add(archive, str(file.path.relative_to("/")), file.source.read_bytes(), file.mode)
        for link in payload.links:
            entry = tarfile.TarInfo(str(link.path.relative_to("/")))
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, link.target, 0o777
            archive.addfile(entry)


def _archive(target: Path, blobs: dict[str, Path]) -> None:
    """A tar whose bytes depend on the blobs alone. They may be read by the user it is unpacked as."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for sha256, path in sorted(blobs.items()):
            _add(archive, f"blobs/{sha256}", path.read_bytes(), 0o444)


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


_SETUP_UNIT = """\
# Written by splitboard flash.
[Unit]
Description=splitboard: gives the bundle to its user (first boot)
ConditionPathExists={folder}/payload.tar
After=local-fs.target cloud-init.service cloud-init-network.service rpi-preseed.service

[Service]
ExecStart=/bin/sh {folder}/setup.sh

[Install]
WantedBy=multi-user.target
"""

_SETUP_SH = """\
#!/bin/sh
# Written by splitboard flash. Runs as root until the bundle is in its user's home.
set -eu
account={account}
folder={folder}
while :; do
    entry=$(getent passwd "$account") || entry=
    uid=$(echo "$entry" | cut -d: -f3)
    home=$(echo "$entry" | cut -d: -f6)
    if [ -n "$home" ] && [ "$(stat -c %u "$home" 2>/dev/null)" = "$uid" ]; then
        break
    fi
    sleep 2
done
name=$(echo "$entry" | cut -d: -f1)
as_user() {{
    runuser -u "$name" -- env HOME="$home" XDG_RUNTIME_DIR="/run/user/$uid" "$@"
}}
as_user sh "$folder/install.sh"
mkdir -p /var/lib/systemd/linger
: >"/var/lib/systemd/linger/$name"
sync
rm "$folder/payload.tar"
# Who has logged in already has a manager that does not know the unit yet.
{{
    loginctl enable-linger "$name" &&
        systemctl start "user@$uid.service" &&
        as_user systemctl --user daemon-reload &&
        as_user systemctl --user start --no-block {selfcheck}
}} || echo "the self-check begins with the next boot"
"""

_INSTALL_SH = """\
#!/bin/sh
# Written by splitboard flash. Runs as the user that the bundle belongs to.
set -eu
folder={folder}
cd "$HOME"
if [ -s "$folder/authorized_keys" ]; then
    mkdir -p .ssh
    chmod 700 .ssh
    touch .ssh/authorized_keys
    chmod 600 .ssh/authorized_keys
    while IFS= read -r key; do
        grep -qxF -- "$key" .ssh/authorized_keys || echo "$key" >>.ssh/authorized_keys
    done <"$folder/authorized_keys"
fi
mkdir -p {root}
tar -xf "$folder/payload.tar" -C {root}
python3 "$folder/install.py"
units=.config/systemd/user
mkdir -p "$units/default.target.wants"
cp "$folder/{selfcheck}" "$units/"
ln -sf "../{selfcheck}" "$units/default.target.wants/{selfcheck}"
"""

_INSTALL_PY = '''

def _first(request: Json) -> None:
    """Makes the release of the card the current one. Written by splitboard flash."""
    if missing(request):
        raise SystemExit("the archive on the card is damaged")
    made = install(request)
    switch(dict(request, release=made["release"]))


try:
    _first(json.loads({request!r}))
except Refused as error:
    raise SystemExit("this board " + str(error))
'''

_SELFCHECK = """\
# Written by splitboard flash.
[Unit]
Description=splitboard: checks the bundle with its golden inputs

[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory=%h/{root}
ExecStart=/bin/sh -c 'current/splitboard-edge selfcheck --bundle current/bundle >selfcheck.part 2>selfcheck.log; \\
status=$$?; mv selfcheck.part selfcheck.json; exit $$status'

[Install]
WantedBy=default.target
"""

"""Deploy: plan, send what is missing, check on the board, switch; and back."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from boards.deploy.board import (
    ON_BOARD,
    BoardFacts,
    check_kind,
    check_machine,
    check_space,
    probe,
    python_of,
    sizes,
)
from boards.deploy.on_board import BLOBS
from boards.deploy.wheels import Environment, default_cache, fetch_wheels, needed, unpacked_bytes
from boards.shell.program import run_program
from boards.shell.shell import Shell
from boards.stations import Station
from boards.zipapp import build_zipapp
from splitboard.contract.bundle import MANIFEST, Bundle, bundle_sha256, file_sha256
from splitboard.contract.errors import EXIT_PASS, GateFailed, UserError

KEPT_RELEASES = 3
SPARE_BYTES = 16 << 20
"""That stay free on the board's disk."""

_PROGRAM_TIMEOUT_S = 600.0
_SELF_CHECK_TIMEOUT_S = 3600.0
"""On a Jetson the first one builds the engine, which takes its small boards tens of minutes."""
"""A slow card writes a hundred megabytes of libraries in minutes."""

Progress = Callable[[str, int, int], None]
"""Called with a step, and how much of how much is done."""


@dataclass(frozen=True)
class Plan:
    """What a deploy would do.

    Attributes:
        station: its name.
        bundle: the bundle folder here.
        bundle_sha256: its identity.
        facts: the board.
        environment: what is needed beside.
        wheels: file by name of what the board has to install.
        files: file by sha256 of everything that has to be there.
        manifest: sha256 by path in the bundle.
        pyz_sha256: of the edge runtime.
    """

    station: Station
    bundle: Path
    bundle_sha256: str
    facts: BoardFacts
    environment: Environment
    wheels: dict[str, Path]
    files: dict[str, Path]
    manifest: dict[str, str]
    pyz_sha256: str


@dataclass(frozen=True)
class Deployed:
    """A release on a board. All paths are the board's own, absolute; they hold for as long as the release is kept.

    Attributes:
        station: its name.
        release: its name.
        previous: the release that ``--rollback`` leads to; ``None`` for the first.
        bundle_sha256: the bundle's identity.
        python: interpreter to start the runtime with: ``python pyz bench --bundle bundle``.
        pyz: the edge runtime.
        bundle: the bundle folder.
        sent_files: number of files that had to be sent.
        sent_bytes: of them in all.
    """

    station: str
    release: str
    previous: str | None
    bundle_sha256: str
    python: str
    pyz: str
    bundle: str
    sent_files: int
    sent_bytes: int


@dataclass(frozen=True)
class Outlook:
    """What a deploy would do, for people: ``splitboard deploy --dry-run``.

    Attributes:
        station: its name.
        root: folder on the board.
        bundle_sha256: the bundle's identity.
        runtime: that will run the edge files.
        wheels: names of what would be installed beside.
        files: number of files that have to be there.
        send_files: of them, those that would be sent.
        send_bytes: of these in all.
    """

    station: str
    root: str
    bundle_sha256: str
    runtime: str
    wheels: tuple[str, ...]
    files: int
    send_files: int
    send_bytes: int


@contextlib.contextmanager
def planned(
    bundle_folder: Path, bundle: Bundle, shell: Shell, station: Station, wheelhouse: Path | None = None
) -> Iterator[Plan]:
    """Looks at the board, refuses what cannot work there, and gathers what it needs. Nothing is written there.

    Args:
        bundle_folder: what is deployed.
        bundle: its manifest, loaded and so checked.
        shell: of the board.
        station: the board.
        wheelhouse: folder of wheels to take instead of fetching them.

    Yields:
        The plan; its files are there as long as the block lasts.

    Raises:
        UserError: a bundle for another kind, an interpreter that is missing, too old or for another processor, or no
            wheels that fit.
    """
    kind = check_kind(bundle_folder, bundle.board, shell, station)
    facts = probe(shell, station, kind.runtime)
    check_machine(kind, facts, station)
    environment = needed(kind, facts, station.name)
    wheels = fetch_wheels(environment, facts, wheelhouse, default_cache())
    with tempfile.TemporaryDirectory() as folder:
        pyz = build_zipapp(Path(folder))
        sha256 = bundle_sha256(bundle_folder)
        manifest = {MANIFEST: sha256} | {artifact.path: artifact.sha256 for artifact in bundle.artifacts}
        files = {digest: bundle_folder / path for path, digest in manifest.items()}
        files |= {file_sha256(path): path for path in (pyz, *wheels)}
        named = {path.name: path for path in wheels}
        yield Plan(station, bundle_folder, sha256, facts, environment, named, files, manifest, file_sha256(pyz))


def outlook(plan: Plan, shell: Shell) -> Outlook:
    """What a plan would do on the board as it is."""
    lacking = _missing(plan, shell)
    return Outlook(
        plan.station.name,
        plan.facts.root,
        plan.bundle_sha256,
        plan.environment.runtime,
        tuple(plan.wheels),
        len(plan.files),
        len(lacking),
        sizes(lacking),
    )


def deploy(
    bundle_folder: Path,
    bundle: Bundle,
    shell: Shell,
    station: Station,
    *,
    wheelhouse: Path | None = None,
    progress: Progress | None = None,
) -> Deployed:
    """Puts a bundle and the edge runtime onto a board and makes them current, whole or not at all.

    Only what the board does not have is sent; a transfer that broke is taken up by the next call. The new release
    checks itself with the golden inputs on the board before the one link is switched. Whoever calls holds the board's
    lease.

    Args:
        bundle_folder: what is deployed.
        bundle: its manifest, loaded and so checked.
        shell: of the board.
        station: the board.
        wheelhouse: folder of wheels to take instead of fetching them.
        progress: called with a step, and how much of how much is done.

    Raises:
        UserError: it cannot work there (see `planned`), or there is no space or permission, or the runtime does not
            start there. What was current still is.
        ConnectionLost: the connection broke. What was current still is.
        GateFailed: the self-check ran, and its outputs are too far off. What was current still is.
    """
    show: Progress = progress or (lambda *_: None)
    with planned(bundle_folder, bundle, shell, station, wheelhouse) as plan:
        lacking = _missing(plan, shell)
        sent_bytes = sizes(lacking)
        new_wheels = [path for path in plan.wheels.values() if path in lacking.values()]
        check_space(station, plan.facts, sent_bytes + unpacked_bytes(new_wheels), SPARE_BYTES)
        _send(plan, shell, lacking, sent_bytes, show)
        made = _checked_release(plan, shell, show)
    previous = _on_board(plan, shell, "switch", {"release": made["release"], "keep": KEPT_RELEASES})
    return _deployed(station, made, previous, len(lacking), sent_bytes)


def rollback(shell: Shell, station: Station) -> Deployed:
    """Makes the release before the current one current; once more leads back.

    Raises:
        UserError: there is none.
    """
    python = python_of(station)
    made = run_program(shell, python, ON_BOARD, "rollback", {"root": station.root})
    return _deployed(station, made, made["before"], 0, 0)


def _missing(plan: Plan, shell: Shell) -> dict[str, Path]:
    """Those files of a plan, by sha256, that the board does not have."""
    lacking = _on_board(plan, shell, "missing", {"wanted": sorted(plan.files)})
    return {digest: plan.files[digest] for digest in lacking}


def _on_board(plan: Plan, shell: Shell, verb: str, request: dict[str, Any]) -> Any:
    given = {"root": plan.facts.root, **request}
    return run_program(shell, plan.facts.python, ON_BOARD, verb, given, _PROGRAM_TIMEOUT_S)


def _request(plan: Plan) -> dict[str, Any]:
    return {
        "bundle_sha256": plan.bundle_sha256,
        "files": plan.manifest,
        "pyz_sha256": plan.pyz_sha256,
        "wheels": {name: file_sha256(path) for name, path in plan.wheels.items()},
        "system_packages": plan.environment.system_packages,
        "modules": list(plan.environment.modules),
    }


def _send(plan: Plan, shell: Shell, lacking: dict[str, Path], total_bytes: int, progress: Progress) -> None:
    sent_bytes = 0
    for digest, source in lacking.items():
        shell.put(
            source,
            PurePosixPath(plan.facts.root, BLOBS, digest),
            lambda done, _, before=sent_bytes: progress("send", before + done, total_bytes),  # type: ignore[misc]
        )
        sent_bytes += source.stat().st_size


def _checked_release(plan: Plan, shell: Shell, show: Progress) -> dict[str, Any]:
    """Makes a release of what was sent and has it check itself; one that does not pass is removed again."""
    new = None
    try:
        show("install", 0, 1)
        made: dict[str, Any] = _on_board(plan, shell, "install", _request(plan))
        new = made["release"] if made["is_new"] else None
        show("install", 1, 1)
        show("selfcheck", 0, 1)
        _self_check(shell, plan.station, made)
        show("selfcheck", 1, 1)
    except BaseException:
        with contextlib.suppress(UserError):  # a lost connection, say; the next deploy cleans up then
            _on_board(plan, shell, "discard", {"release": new, "keep": KEPT_RELEASES})
        raise
    return made


def _self_check(shell: Shell, station: Station, made: dict[str, Any]) -> None:
    """Runs the golden inputs on the board with the new release.

    Raises:
        GateFailed: they are too far off.
        UserError: the runtime did not start there.
    """
    argv = [made["python"], made["pyz"], "selfcheck", "--bundle", made["bundle"]]
    done = shell.run(argv, timeout_s=_SELF_CHECK_TIMEOUT_S)
    if done.returncode == EXIT_PASS:
        return
    said = done.stdout.splitlines()
    if said and said[-1].startswith("{"):
        found = json.loads(said[-1])
        off = ", ".join(
            f"{task} {error:.3g} (at most {found['tolerance'][task]:.3g})" for task, error in found["error"].items()
        )
        raise GateFailed(
            f'the self-check on station "{station.name}" is off: {off}; what was there before stays current',
            ["splitboard build again for this kind", "splitboard doctor the station"],
        )
    complained = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
    error = next((line for line in complained if line.startswith("error: ")), complained[-1])
    raise UserError(
        f'the self-check on station "{station.name}" does not run: {error.removeprefix("error: ")}; what was there '
        "before stays current",
        [line.removeprefix("Try: ") for line in complained if line.startswith("Try: ")] or ["splitboard doctor"],
    )


def _deployed(
    station: Station, made: dict[str, Any], previous: str | None, sent_files: int, sent_bytes: int
) -> Deployed:
    return Deployed(
        station=station.name,
        release=made["release"],
        previous=previous,
        bundle_sha256=made["bundle_sha256"],
        python=made["python"],
        pyz=made["pyz"],
        bundle=made["bundle"],
        sent_files=sent_files,
        sent_bytes=sent_bytes,
    )

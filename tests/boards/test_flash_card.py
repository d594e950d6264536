"""The whole way to a card: each form of image customised and read back, loop devices written, the first boot run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from boards.flash import card as flash_card
from boards.flash.card import customise, prepare
from boards.flash.device import Device, read_device
from boards.flash.identity import Identity, Wifi, derive_psk
from boards.flash.payload import NO_LIBRARIES, SELFCHECK, build_payload
from boards.flash.plan import Request
from boards.flash.write import CardUnusable, write_card
from boards.kinds import load_kind
from boards.stations import read_stations
from splitboard.cli.main import run
from splitboard.contract.errors import UserError
from tests.boards import images

pytestmark = pytest.mark.skipif(
    bool(images.missing_tools()), reason=f"not installed: {', '.join(images.missing_tools())}"
)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@desk"
WHO = Identity("ann", "rpi5-kitchen", (KEY,), Wifi("home", derive_psk("correct horse", "home"), "GB"))
CARD_MIB = 96
AT = "usr/local/lib/splitboard"


def quiet(what: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a bundle and a key."""
    folder = tmp_path_factory.mktemp("desk")
    for system in (images.BOOKWORM, images.TRIXIE, images.PRESEED, images.UBUNTU, images.ORIN_NANO, images.BULLSEYE):
        images.make_image(system, folder)
    images.write_bundle(folder / "mine.bundle", "rpi5")
    images.write_bundle(folder / "orin.bundle", "jetson-orin-nano")
    (folder / "id.pub").write_text(KEY + "\n")
    packed = lzma.compress((folder / "bookworm.img").read_bytes(), preset=0)
    (folder / "bookworm.img.xz").write_bytes(packed)
    (folder / "bookworm.img.xz.sha256").write_text(f"{hashlib.sha256(packed).hexdigest()}  bookworm.img.xz\n")
    (folder / "short.img.xz").write_bytes(packed[:-1000])
    return folder


def is_untouched(content: bytes) -> bool:
    return content.count(b"\xa5") == len(content)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A card of 96 MiB that held something else."""
    backing = tmp_path / "card"
    backing.write_bytes(b"\xa5" * (CARD_MIB * images.MIB))
    with images.loop_device(backing) as device:
        yield device


def request(desk: Path, system: images.System, kind: str, device: Path, bundle: str = "mine.bundle") -> Request:
    return Request(load_kind(kind), desk / f"{system.name}.img", device, desk / bundle, WHO, None, None)


def as_card(path: Path) -> Device:
    return Device(str(path), "loop", False, False, 1 << 37, (), "card")


@pytest.fixture
def customised(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Customises an image for a card that is not there, and hands back the copy."""
    monkeypatch.setattr(flash_card, "read_device", as_card)
    with contextlib.ExitStack() as stack:

        def make(system: images.System, kind: str, bundle: str = "mine.bundle") -> Path:
            asked = request(desk, system, kind, tmp_path / "nowhere", bundle)
            before = images.sha256(asked.image)
            image = customise(stack.enter_context(prepare(asked, quiet)), quiet)
            assert images.sha256(asked.image) == before
            images.check_file_systems(image, system, tmp_path)
            return image

        yield make


def check_payload(image: Path, system: images.System, bundle: Path, folder: Path) -> None:
    """The archive has the bundle's files by their hashes, and the unit is enabled."""
    archive = folder / "payload.tar"
    archive.write_bytes(images.read_root(image, system, f"/{AT}/payload.tar", folder))
    with tarfile.open(archive) as tar:
        blobs = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    assert all(name == f"blobs/{hashlib.sha256(content).hexdigest()}" for name, content in blobs.items())
    wanted = {f"blobs/{images.sha256(path)}" for path in bundle.rglob("*") if path.is_file()}
    assert wanted < set(blobs)
    assert sum(content.startswith(b"#!/usr/bin/env python3\nPK") for content in blobs.values()) == 1
    said = images.stat_root(image, system, "/etc/systemd/system/multi-user.target.wants/splitboard-setup.service")
    assert 'Fast link dest: "../splitboard-setup.service"' in said
    unit = images.stat_root(image, system, "/etc/systemd/system/splitboard-setup.service")
    assert "Mode:  0644" in unit
    assert "User:     0   Group:     0" in unit


def test_bookworm(customised: object, desk: Path, tmp_path: Path) -> None:
    image = customised(images.BOOKWORM, "rpi5")  # type: ignore[operator]
    cmdline = images.read_boot(image, "cmdline.txt", tmp_path).decode()
    assert cmdline.count("\n") == 1
    assert cmdline.startswith(images.STOCK_CMDLINE + " ")
    assert "systemd.run=/boot/firmware/firstrun.sh" in cmdline
    script = images.read_boot(image, "firstrun.sh", tmp_path).decode()
    assert f"'{KEY}'" in script
    assert "correct horse" not in script
    check_payload(image, images.BOOKWORM, desk / "mine.bundle", tmp_path)


@pytest.mark.parametrize("system", [images.TRIXIE, images.UBUNTU], ids=lambda system: system.name)
def test_cloud_init(system: images.System, customised: object, desk: Path, tmp_path: Path) -> None:
    instances = set()
    for _ in range(2):
        image = customised(system, "rpi5")  # type: ignore[operator]
        instance = json.loads(images.read_boot(image, "meta-data", tmp_path))["instance-id"]
        assert images.read_boot(image, "cmdline.txt", tmp_path).decode().split()[-1] == f"ds=nocloud;i={instance}"
        instances.add(instance)
    assert len(instances) == 2
    user_data = images.read_boot(image, "user-data", tmp_path).decode()
    assert json.loads(user_data.removeprefix("#cloud-config"))["users"][0]["ssh_authorized_keys"] == [KEY]
    assert "home" in json.loads(images.read_boot(image, "network-config", tmp_path))["wifis"]["wlan0"]["access-points"]
    assert "firstrun.sh" not in images.boot_names(image)
    check_payload(image, system, desk / "mine.bundle", tmp_path)


def test_preseed(customised: object, desk: Path, tmp_path: Path) -> None:
    image = customised(images.PRESEED, "rpi5")  # type: ignore[operator]
    assert b'ssid = "home"' in images.read_boot(image, "rpi-preseed.toml", tmp_path)
    assert images.read_boot(image, "cmdline.txt", tmp_path).decode() == images.STOCK_CMDLINE + "\n"
    check_payload(image, images.PRESEED, desk / "mine.bundle", tmp_path)


def test_a_jetson_gets_the_key_with_the_payload(customised: object, desk: Path, tmp_path: Path) -> None:
    image = customised(images.ORIN_NANO, "jetson-orin-nano", "orin.bundle")  # type: ignore[operator]
    assert images.read_root(image, images.ORIN_NANO, f"/{AT}/authorized_keys", tmp_path).decode() == KEY + "\n"
    assert b"account=1000\n" in images.read_root(image, images.ORIN_NANO, f"/{AT}/setup.sh", tmp_path)
    check_payload(image, images.ORIN_NANO, desk / "orin.bundle", tmp_path)


def flash(desk: Path, device: Path, *more: str, image: str = "bookworm.img", kind: str = "rpi5") -> list[str]:
    words = {
        "--image": desk / image,
        "--device": device,
        "--bundle": desk / "mine.bundle",
        "--ssh-key": desk / "id.pub",
    }
    return ["flash", kind, *(str(word) for pair in words.items() for word in pair), "--hostname", "rpi5-a", *more]


def test_a_card_is_written_whole_and_read_back(
    desk: Path, loop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(flash(desk, loop, "--yes", "--json", image="bookworm.img.xz")) == 0
    said = json.loads(capfd.readouterr().out)
    content = loop.read_bytes()
    size = (desk / "bookworm.img").stat().st_size
    assert said["written"]["n_bytes"] == size
    assert said["written"]["sha256"] == hashlib.sha256(content[:size]).hexdigest()
    assert is_untouched(content[size:])  # not a byte behind the image
    copy = tmp_path / "copy.img"
    copy.write_bytes(content[:size])
    images.check_file_systems(copy, images.BOOKWORM, tmp_path)
    assert b"imager_custom set_hostname rpi5-a" in images.read_boot(copy, "firstrun.sh", tmp_path)
    assert said["address"] == "splitboard@rpi5-a.local"
    assert said["plan"]["checked_against"] == str(desk / "bookworm.img.xz.sha256")
    stations = tmp_path / "stations.toml"
    stations.write_text(said["station"])
    station = read_stations(stations)["rpi5-a"]
    assert (station.user, station.host, station.kind) == ("splitboard", "rpi5-a.local", "rpi5")
    assert station.key == str(desk / "id")


def test_a_dry_run_writes_nothing(desk: Path, loop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(flash(desk, loop, "--dry-run")) == 0
    out = capfd.readouterr().out
    assert f"Card:       {loop}" in out
    assert "First boot: firstrun.sh" in out
    assert "the image is unchecked" in out
    assert is_untouched(loop.read_bytes())


def test_the_device_has_to_be_typed(
    desk: Path, loop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # The prompt reads the process's standard input.
    command = [sys.executable, "-m", "splitboard.cli.main", *flash(desk, loop)]
    wrong = subprocess.run(command, input="yes\n", capture_output=True, text=True)
    assert wrong.returncode == 3
    assert f'"yes" is not "{loop}": nothing was written' in wrong.stderr
    assert is_untouched(loop.read_bytes())
    right = subprocess.run(command, input=f"{loop}\n", capture_output=True, text=True)
    assert right.returncode == 0, right.stderr
    assert "read back" in right.stdout


def test_a_mounted_card_is_refused(desk: Path, loop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images.run("mkfs.ext4", "-q", "-F", str(loop))
    place = tmp_path / "mounted here"
    place.mkdir()
    images.run("mount", str(loop), str(place))
    try:
        (place / "thesis").write_text("years of work")
        assert run(flash(desk, loop, "--yes")) == 3
        assert f'"{loop}" is in use: it is mounted on {place}' in capfd.readouterr().err
        with pytest.raises(UserError, match="is in use"):  # also where nobody had looked
            write_card(desk / "bookworm.img", loop, quiet)
        assert (place / "thesis").read_text() == "years of work"
    finally:
        images.run("umount", str(place))


def test_the_root_disk_is_refused(desk: Path) -> None:
    said = json.loads(images.run("lsblk", "-J", "-o", "PATH,MOUNTPOINTS"))["blockdevices"]
    ours = [one["path"] for one in said if "/" in one["mountpoints"]]
    if not ours:
        pytest.skip("the root file system lies on no disk that lsblk lists")
    with (
        pytest.raises(UserError, match="is the disk of this machine"),
        prepare(request(desk, images.BOOKWORM, "rpi5", Path(ours[0])), quiet),
    ):
        pass


def test_a_small_card_is_refused(desk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(16 * images.MIB))
    with images.loop_device(small) as device:
        assert run(flash(desk, device, "--yes")) == 3
        assert "too small" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"image": "bullseye.img"}, "bcm2712-rpi-5-b"),
        ({"image": "orin-nano.img"}, "for a Jetson"),
        ({"kind": "rpi4"}, 'is for "rpi5", not for rpi4'),
        ({"kind": "jetson-thor"}, "does not boot from a card"),
        ({"image": "nope.img"}, "no image at"),
        ({"image": "short.img.xz"}, "cut short or damaged"),
    ],
)
def test_bad_input_ends_with_3_before_the_card_is_touched(
    words: dict[str, str], said: str, desk: Path, loop: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(flash(desk, loop, "--yes", **words)) == 3
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert said in err.splitlines()[0]
    assert "\nTry: " in err
    assert is_untouched(loop.read_bytes())


def test_a_wrong_hash_is_refused(desk: Path, loop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(flash(desk, loop, "--yes", "--sha256", "0" * 64)) == 3
    assert "--sha256 says" in capfd.readouterr().err


def test_a_missing_tool_is_named_with_its_package(
    desk: Path, loop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("boards.flash.tools._ADMINISTRATORS", ())
    for tool in ("lsblk", "debugfs"):
        (tmp_path / tool).symlink_to(shutil.which(tool, path=images.PATH) or tool)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(flash(desk, loop, "--yes")) == 3
    assert capfd.readouterr().err == 'error: "mdir" is not installed\nTry: sudo apt install mtools\n'


def test_a_card_that_forgets_is_found_out(desk: Path, tmp_path: Path) -> None:
    """A fake card: it takes all writes, and is shorter than it says. Here it is cut behind the writer's back."""
    card = tmp_path / "card"
    card.write_bytes(bytes(CARD_MIB * images.MIB))

    def forget(what: str, done: int, total: int) -> None:
        if what == "compare" and done == 5:
            with open(card, "r+b") as file:
                file.seek(42 * images.MIB)
                file.write(bytes(images.MIB))
                os.fsync(file.fileno())

    image = tmp_path / "image"
    image.write_bytes(os.urandom(64 * images.MIB))
    with pytest.raises(CardUnusable, match="does not hold what was written: it differs after byte 42991616"):
        write_card(image, card, forget)
    assert card.read_bytes()[: images.MIB] == bytes(images.MIB)


def test_an_interrupted_card_has_no_partitions(desk: Path, loop: Path, tmp_path: Path) -> None:
    """The real command, killed in the middle of writing: first by Ctrl-C, then without any notice."""
    big = tmp_path / "bookworm.img"
    shutil.copy(desk / "bookworm.img", big)
    with open(big, "r+b") as file:
        file.truncate(CARD_MIB * images.MIB)
        file.seek(90 * images.MIB)
        file.write(os.urandom(4 * images.MIB))
    program = (
        "import signal, sys, time\nfrom pathlib import Path\nfrom boards.flash.write import write_card\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def step(what, done, total):\n    print(what, done, flush=True)\n    time.sleep(0.2)\n"
        "write_card(Path(sys.argv[1]), Path(sys.argv[2]), step)\n"
    )
    for number in (signal.SIGINT, signal.SIGKILL):
        images.run("sfdisk", "-q", str(loop), stdin="label: dos\nstart=2048, type=83\n")
        writing = subprocess.Popen(
            [sys.executable, "-c", program, str(big), str(loop)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert writing.stdout is not None
        while not writing.stdout.readline().startswith("write 13"):
            time.sleep(0)
        writing.send_signal(number)
        writing.communicate()
        assert writing.returncode != 0
        assert loop.read_bytes()[: images.MIB] == bytes(images.MIB)
        assert subprocess.run(["sfdisk", "-J", str(loop)], capture_output=True).returncode != 0


def test_ctrl_c_says_that_the_card_is_not_usable(
    desk: Path, loop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def pressed(image: Path, device: Path, step: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("boards.flash.write.write_card", pressed)
    assert run(flash(desk, loop, "--yes")) == 130
    assert f"the card in {loop} is not usable until it is flashed again" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="a first boot is played in a root of its own, which takes root")
def test_the_first_boot_leaves_what_a_deploy_leaves(tiny_bundle: Path, tmp_path: Path) -> None:
    """The payload's own scripts, as root, in this machine's file system with a layer above that takes all writes."""
    layer, work, root, payload_at = (tmp_path / name for name in ("layer", "work", "root", "payload"))
    for folder in (layer, work, root, payload_at):
        folder.mkdir()
    tmp_path.chmod(0o755)
    payload = build_payload(tiny_bundle, NO_LIBRARIES, "ann", (KEY,), payload_at)
    for file in payload.files:
        target = layer / file.path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.source, target)
        target.chmod(file.mode)
    python = Path(sys.executable)
    # The board's user has to reach the interpreter of this test, here alone: the layer takes the changed modes.
    above = {*python.parents, *python.resolve().parents, *Path(np.__file__).parents} - {Path("/")}
    opened = " ".join(f"'{folder}'" for folder in sorted(above))
    script = tmp_path / "boot.sh"
    script.write_text(
        f"set -e\nmount -t overlay overlay -o lowerdir=/,upperdir={layer},workdir={work} {root}\n"
        f"mount --bind /proc {root}/proc\nmount --bind /dev {root}/dev\n"
        f"chroot {root} sh -e <<'E'\nuseradd -m -s /bin/sh -u 4242 ann\nchmod a+rx {opened}\n"
        f"PATH={python.parent}:$PATH sh /{AT}/setup.sh\n"
        f"runuser -u ann -- sh -c 'cd ~ann/splitboard && {{ current/splitboard-edge selfcheck --bundle current/bundle "
        f">selfcheck.json; }}'\nE\n"
    )
    played = subprocess.run(["unshare", "-m", "sh", str(script)], capture_output=True, text=True)
    if "mount: " in played.stderr:
        pytest.skip(f"no overlay can be mounted here: {played.stderr.strip()}")
    assert played.returncode == 0, played.stdout + played.stderr
    home = layer / "home/ann"
    board = home / "splitboard"
    release = (board / "current").readlink()
    bundle = board / release / "bundle"
    assert digests(bundle.resolve()) == digests(tiny_bundle)
    assert {path.stat().st_uid for path in board.rglob("*") if path.is_file()} == {4242}
    assert json.loads((board / "selfcheck.json").read_text())["passed"] is True
    assert (home / ".ssh/authorized_keys").read_text() == KEY + "\n"
    assert (home / ".ssh").stat().st_mode & 0o777 == 0o700
    units = home / ".config/systemd/user"
    assert (units / "default.target.wants" / SELFCHECK).readlink() == Path("..", SELFCHECK)
    assert (layer / "var/lib/systemd/linger/ann").read_bytes() == b""
    assert not (layer / AT / "payload.tar").is_file()


def digests(folder: Path) -> dict[Path, str]:
    return {path.relative_to(folder): images.sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_the_units_please_systemd(tmp_path: Path, desk: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("not installed: systemd-analyze")
    payload = build_payload(desk / "mine.bundle", NO_LIBRARIES, "ann", (), tmp_path)
    units = [file.source for file in payload.files if file.source.suffix == ".service"]
    assert len(units) == 2
    for unit in units:
        text = unit.read_text().replace(f"/{AT}/setup.sh", "/dev/null")
        unit.write_text(text)
        scope = "--user" if "selfcheck" in unit.name else "--system"
        said = subprocess.run(["systemd-analyze", scope, "verify", str(unit)], capture_output=True, text=True)
        assert unit.name not in said.stderr, said.stderr


def write_wheel(folder: Path, name: str) -> None:
    """A wheel with nothing in it but what pip asks for."""
    project, version, *_ = name.split("-")
    with zipfile.ZipFile(folder / name, "w") as archive:
        info = f"{project}-{version}.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {name.split('-', 2)[2][:-4]}\n")
        archive.writestr(f"{info}/RECORD", "")


def test_only_wheels_that_fit_the_image_go_along(
    desk: Path, loop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for tag in ("cp311-cp311-manylinux_2_28_x86_64", "cp313-cp313-manylinux_2_28_aarch64"):
        write_wheel(tmp_path, f"numpy-2.3.0-{tag}.whl")
    write_wheel(tmp_path, "ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_aarch64.whl")
    words = flash(desk, loop, "--dry-run", "--json", "--wheelhouse", str(tmp_path))
    assert run(words) == 3
    assert 'no wheels of "numpy ai-edge-litert" for Python 3.11 on aarch64 with glibc 2.36' in capfd.readouterr().err
    write_wheel(tmp_path, "numpy-2.3.0-cp311-cp311-manylinux_2_28_aarch64.whl")
    assert run(words) == 0
    assert json.loads(capfd.readouterr().out)["wheels"] == [
        "ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_aarch64.whl",
        "numpy-2.3.0-cp311-cp311-manylinux_2_28_aarch64.whl",
    ]


def test_a_loop_device_is_told_from_a_disk(loop: Path) -> None:
    device = read_device(loop)
    assert (device.kind, device.size_bytes, device.mounted) == ("loop", CARD_MIB * images.MIB, ())

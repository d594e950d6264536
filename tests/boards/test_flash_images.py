"""What is found in an image, against the tools that made it, and what is refused before anything is written."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from boards.flash.contents import FirstBootForm, look_inside
from boards.flash.ext4 import Ext4, RootFile
from boards.flash.partitions import read_partitions
from boards.flash.plan import check_contents
from boards.flash.source import check_source, is_packed, unpack
from boards.flash.targets import card_target
from boards.kinds import kind_names, load_kind
from splitboard.contract.errors import UserError
from tests.boards import images

pytestmark = pytest.mark.skipif(
    bool(images.missing_tools()), reason=f"not installed: {', '.join(images.missing_tools())}"
)


def quiet(what: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    return {system.name: images.make_image(system, folder) for system in images.ALL}


@pytest.mark.parametrize("system", [images.BOOKWORM, images.ORIN_NANO], ids=lambda system: system.name)
def test_partitions_are_those_of_sfdisk(system: images.System, made: dict[str, Path]) -> None:
    image = made[system.name]
    said = json.loads(images.run("sfdisk", "-J", str(image)))["partitiontable"]
    ours = read_partitions(image)
    assert [(one.start_bytes, one.size_bytes) for one in ours] == [
        (one["start"] * 512, one["size"] * 512) for one in said["partitions"]
    ]
    assert [one.kind for one in ours] == [one["type"].rjust(2, "0") for one in said["partitions"]]
    assert [one.name for one in ours] == [one.get("name", "") for one in said["partitions"]]


@pytest.mark.parametrize(
    ("system", "form", "python", "mount"),
    [
        (images.BOOKWORM, FirstBootForm.FIRSTRUN, "3.11", "/boot/firmware"),
        (images.TRIXIE_EARLY, FirstBootForm.FIRSTRUN, "3.13", "/boot/firmware"),
        (images.TRIXIE, FirstBootForm.CLOUD_INIT, "3.13", "/boot/firmware"),
        (images.PRESEED, FirstBootForm.PRESEED, "3.13", "/boot/firmware"),
        (images.UBUNTU, FirstBootForm.CLOUD_INIT, "3.12", "/boot/firmware"),
        (images.BULLSEYE, FirstBootForm.FIRSTRUN, "3.11", "/boot"),
        (images.ORIN_NANO, FirstBootForm.ASKS, "3.10", "/boot/firmware"),
    ],
    ids=lambda value: value.name if isinstance(value, images.System) else None,
)
def test_the_form_of_the_first_boot_is_found_inside(
    system: images.System, form: FirstBootForm, python: str, mount: str, made: dict[str, Path]
) -> None:
    before = images.sha256(made[system.name])
    contents = look_inside(made[system.name])
    assert (contents.form, contents.python, contents.boot_mount) == (form, python, mount)
    assert contents.system == system.release
    assert contents.machine == "aarch64"
    assert images.sha256(made[system.name]) == before


def test_a_jetson_says_its_release_and_the_tree_that_boots(made: dict[str, Path]) -> None:
    contents = look_inside(made["orin-nano"])
    assert contents.l4t == (36, "4.3")
    assert contents.device_trees == ("kernel_tegra234-p3768-0000+p3767-0005-nv",)
    assert contents.boot is None


@pytest.mark.parametrize(
    ("system", "kind", "said"),
    [
        (images.PI_32BIT, "rpi4", '"armv7l"'),
        (images.BULLSEYE, "rpi5", '"bcm2712-rpi-5-b"'),
        (images.BULLSEYE, "cm5", '"bcm2712-rpi-cm5"'),
        (images.ORIN_NANO, "rpi5", "for a Jetson, not for Raspberry Pi 5"),
        (images.BOOKWORM, "jetson-orin-nano", "for a Raspberry Pi"),
        (images.ORIN_NANO, "jetson-nano", '"tegra210"'),
        (images.ORIN_NANO, "jetson-xavier-nx", '"tegra194"'),
    ],
    ids=lambda value: value.name if isinstance(value, images.System) else str(value),
)
def test_an_image_of_another_board_is_refused(
    system: images.System, kind: str, said: str, made: dict[str, Path]
) -> None:
    board = load_kind(kind)
    with pytest.raises(UserError) as refused:
        check_contents(look_inside(made[system.name]), board, card_target(board), made[system.name])
    assert said in refused.value.message
    assert refused.value.tries


@pytest.mark.parametrize(
    ("system", "kind"),
    [
        *((images.BOOKWORM, kind) for kind in ("rpi-zero2w", "rpi3", "rpi4", "rpi5", "cm4", "cm5")),
        (images.BULLSEYE, "rpi4"),
        (images.UBUNTU, "rpi5"),
        (images.ORIN_NANO, "jetson-orin-nano"),
    ],
    ids=lambda value: value.name if isinstance(value, images.System) else str(value),
)
def test_an_image_of_the_board_passes(system: images.System, kind: str, made: dict[str, Path]) -> None:
    board = load_kind(kind)
    check_contents(look_inside(made[system.name]), board, card_target(board), made[system.name])


def test_a_release_that_the_board_does_not_take_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    image = tmp_path / "old.img"
    image.write_bytes(made["orin-nano"].read_bytes())
    (tmp_path / "release").write_text("# R34 (release), REVISION: 1.1, GCID: 1, BOARD: t186ref, EABI: aarch64\n")
    script = f"cd /etc\nrm nv_tegra_release\nwrite {tmp_path / 'release'} nv_tegra_release\n"
    images.run("debugfs", "-w", "-f", "/dev/stdin", f"{image}?offset={images.root_at(images.ORIN_NANO)}", stdin=script)
    board = load_kind("jetson-orin-nano")
    with pytest.raises(UserError, match=r'Jetson Linux "34\.1\.1"'):
        check_contents(look_inside(image), board, card_target(board), image)


@pytest.mark.parametrize(
    ("system", "said"), [(images.PC, "no image for a Raspberry Pi or a Jetson"), (images.DUMB, "no first boot")]
)
def test_a_system_that_cannot_be_told_is_refused(system: images.System, said: str, made: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=said):
        look_inside(made[system.name])


def test_what_is_no_image_is_refused(tmp_path: Path, made: dict[str, Path]) -> None:
    text = tmp_path / "notes.img"
    text.write_text("years of work\n" * 100)
    with pytest.raises(UserError, match="no partition table"):
        look_inside(text)
    short = tmp_path / "short.img"
    short.write_bytes(made["bookworm"].read_bytes()[: 60 * images.MIB])
    with pytest.raises(UserError, match="cut short"):
        look_inside(short)
    empty = tmp_path / "empty.img"
    with open(empty, "wb") as file:
        file.truncate(20 * images.MIB)
    images.run("sfdisk", "-q", str(empty), stdin="label: dos\nstart=2048, size=2048, type=83\n")
    with pytest.raises(UserError, match="holds no system"):
        look_inside(empty)


def test_every_pi_and_sd_jetson_of_the_kinds_has_a_target() -> None:
    for name in kind_names():
        kind = load_kind(name)
        if kind.flash.method == "sd-image":
            assert card_target(kind).device_tree
        else:
            with pytest.raises(UserError, match=f'"{name}" does not boot from a card'):
                card_target(kind)


@pytest.mark.parametrize("pack", ["xz", "gz", "zip"])
def test_packed_images_unpack_to_the_same_bytes(pack: str, made: dict[str, Path], tmp_path: Path) -> None:
    content = made["trixie"].read_bytes()[: 20 * images.MIB]
    packed = tmp_path / f"system.img.{pack}"
    if pack == "xz":
        packed.write_bytes(lzma.compress(content, preset=0))
    elif pack == "gz":
        packed.write_bytes(gzip.compress(content, 1))
    else:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("readme.txt", "read me")
            archive.writestr("sd-blob.img", content)
    assert is_packed(packed)
    unpack(packed, tmp_path / "out.img", quiet)
    assert images.sha256(tmp_path / "out.img") == hashlib.sha256(content).hexdigest()
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut short or damaged"):
        unpack(packed, tmp_path / "again.img", quiet)


def test_two_images_in_one_archive_and_zstd_are_refused(tmp_path: Path) -> None:
    packed = tmp_path / "two.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.img", b"a")
        archive.writestr("b.img", b"b")
    with pytest.raises(UserError, match="holds 2 images"):
        unpack(packed, tmp_path / "out.img", quiet)
    (tmp_path / "system.img.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(UserError, match="zstd"):
        unpack(tmp_path / "system.img.zst", tmp_path / "out.img", quiet)


def test_the_hash_is_that_of_the_file_as_downloaded(tmp_path: Path) -> None:
    image = tmp_path / "system.img.xz"
    image.write_bytes(b"as downloaded")
    right = hashlib.sha256(b"as downloaded").hexdigest()
    assert check_source(image, None, quiet).against is None
    assert check_source(image, right.upper(), quiet).against == "--sha256"
    with pytest.raises(UserError, match=f'has sha256 "{right}", --sha256 says {"0" * 64}'):
        check_source(image, "0" * 64, quiet)
    with pytest.raises(UserError, match='"abc" is not a sha256'):
        check_source(image, "abc", quiet)
    beside = tmp_path / "system.img.xz.sha256"
    beside.write_text(f"{'1' * 64}  other.img.xz\n{right}  system.img.xz\n")
    assert check_source(image, None, quiet).against == str(beside)
    beside.write_text(f"{'1' * 64} *system.img.xz\n")
    with pytest.raises(UserError, match="1111"):
        check_source(image, None, quiet)
    beside.write_text(f"{'1' * 64}  other.img.xz\n")
    with pytest.raises(UserError, match=r'has no sha256 of "system\.img\.xz"'):
        check_source(image, None, quiet)
    with pytest.raises(UserError, match="no image at"):
        check_source(tmp_path / "nope.img", None, quiet)


def test_files_land_on_the_root_partition_as_roots(made: dict[str, Path], tmp_path: Path) -> None:
    image = tmp_path / "target.img"
    image.write_bytes(made["bookworm"].read_bytes())
    source = tmp_path / "with space"
    source.write_bytes(bytes(range(256)) * 40_000)  # 10 MB: many blocks
    root = Ext4(image, images.root_at(images.BOOKWORM))
    for _ in range(2):  # the second time in place of the first
        root.write([RootFile(PurePosixPath("/usr/local/lib/new/deep/file.bin"), source, 0o750)])
    assert images.read_root(image, images.BOOKWORM, "/usr/local/lib/new/deep/file.bin", tmp_path) == source.read_bytes()
    said = images.stat_root(image, images.BOOKWORM, "/usr/local/lib/new/deep/file.bin")
    assert "Mode:  0750" in said
    assert "User:     0   Group:     0" in said
    assert "Mode:  0755" in images.stat_root(image, images.BOOKWORM, "/usr/local/lib/new")
    images.check_file_systems(image, images.BOOKWORM, tmp_path)


def test_what_does_not_fit_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="40 MiB do not fit") as refused:
        Ext4(made["bookworm"], images.root_at(images.BOOKWORM)).check_writable(40 * images.MIB)
    assert any("larger image" in line for line in refused.value.tries)
    dirty = tmp_path / "dirty.img"
    dirty.write_bytes(made["bookworm"].read_bytes())
    at = f"{dirty}?offset={images.root_at(images.BOOKWORM)}"
    images.run("debugfs", "-w", "-R", "feature needs_recovery", at)
    with pytest.raises(UserError, match="not unmounted cleanly"):
        Ext4(dirty, images.root_at(images.BOOKWORM)).check_writable(1)

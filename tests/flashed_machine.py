"""A card as a board's own: an image in the shape of Raspberry Pi OS, and the machine that boots what was flashed.

The image is Debian 13 for arm64 with systemd and cloud-init, with the places and the settings of Raspberry Pi OS 13:
FAT32 ``bootfs`` at 8 MiB mounted on ``/boot/firmware``, ext4 ``rootfs``, stock seeds for cloud-init that have to be
replaced, an sshd that is off, host keys that the first boot makes. What configures a package is not run, since that
would be emulated for minutes; what it would leave is written.

Two things are not Raspberry Pi OS's. The network is brought up by systemd-networkd in place of NetworkManager. And
QEMU's machine ``virt`` has no Pi firmware, which would load a kernel from the card and hand it ``cmdline.txt``: the
kernel is Debian's own and comes from outside, and its command line is read from the card's ``cmdline.txt`` here. Only
``root=`` is set anew (the ramdisk knows no partition ids), and the serial console.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from virtual_machine import MERGED, Guest, copy_bytecode

from boards.emulated.userland import Userland, cached, prepare, unpack_debian
from boards.stations import Station
from tests.boards import images

RELEASE = "trixie"
STOCK_HOSTNAME = "raspberrypi"
FIRST_BOOT_S = 900.0
_ROOT_MIB = 640
_PACKAGES = (
    *("base-files", "base-passwd", "bash", "bsdutils", "ca-certificates", "cloud-init", "coreutils", "dash", "dbus"),
    *("dbus-user-session", "debianutils", "dosfstools", "e2fsprogs", "findutils", "grep", "gzip", "hostname"),
    *("init-system-helpers", "iproute2", "kmod", "libpam-modules", "libpam-runtime", "libpam-systemd", "libstdc++6"),
    *("login", "login.defs", "mawk", "mount", "netcat-openbsd", "openssh-server", "passwd", "perl-base", "procps"),
    *("python3", "python3-venv", "sed", "sudo", "systemd", "systemd-sysv", "tar", "udev", "util-linux", "zlib1g"),
)
_LEFT_OUT = [f"--exclude=./{name}/*" for name in ("dev", "usr/share/doc", "usr/share/man", "usr/share/locale")]
_ENABLED = (
    *("cloud-init-main", "cloud-init-local", "cloud-init-network", "cloud-config", "cloud-final"),
    *("systemd-networkd", "regenerate_ssh_host_keys"),
)
# What takes minutes of an emulated processor, and what nobody waits for.
_MASKED = (
    *("systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "ldconfig.service"),
    *("systemd-networkd-wait-online.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount"),
    *("e2scrub_reap.service", "e2scrub_all.timer", "fstrim.timer"),
)
_LINKS = {  # by packages' own scripts, otherwise
    "usr/bin/awk": "mawk",
    "usr/bin/nc": "nc.openbsd",
    "usr/bin/which": "which.debianutils",
    "etc/localtime": "/usr/share/zoneinfo/Etc/UTC",
    **{f"etc/systemd/system/{unit}": "/dev/null" for unit in _MASKED},
}
_PAM = {
    "auth": "auth required pam_unix.so\n",
    "account": "account required pam_unix.so\n",
    "password": "password required pam_unix.so yescrypt\n",
    "session": "session required pam_unix.so\nsession optional pam_systemd.so\n",
    "session-noninteractive": "session required pam_unix.so\n",
}
_FILES = {
    "etc/fstab": "proc /proc proc defaults 0 0\nPARTUUID=5e3da3da-01 /boot/firmware vfat defaults 0 2\n"
    "PARTUUID=5e3da3da-02 / ext4 defaults,noatime 0 1\n",
    "etc/hostname": f"{STOCK_HOSTNAME}\n",
    "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {STOCK_HOSTNAME}\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/machine-id": "",
    "etc/cloud/cloud.cfg.d/99_raspberry-pi.cfg": "datasource_list: [NoCloud, None]\n"
    "datasource:\n  NoCloud:\n    seedfrom: file:///boot/firmware\n"
    "ssh_deletekeys: false\nssh_genkeytypes: []\n",
    "etc/systemd/system/cloud-init-main.service.d/seed.conf": "[Unit]\nRequiresMountsFor=/boot/firmware\n",
    "etc/systemd/system/regenerate_ssh_host_keys.service": "[Unit]\nBefore=ssh.service\n"
    "ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n[Service]\nType=oneshot\n"
    # One kind of key: an emulated processor looks for the primes of the others for minutes.
    "ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key\n"
    "ExecStartPost=/bin/sh -c 'cat /etc/ssh/ssh_host_ed25519_key.pub >/dev/console'\n"
    "[Install]\nWantedBy=multi-user.target\n",
    "usr/lib/raspberrypi-sys-mods/imager_custom": "#!/bin/sh\nexit 1\n",
    "usr/lib/userconf-pi/userconf": "#!/bin/sh\nexit 1\n",
    **{f"etc/pam.d/common-{name}": text for name, text in _PAM.items()},
}
_SEEDS = {
    "config.txt": "[all]\n",
    "cmdline.txt": images.STOCK_CMDLINE + "\n",
    "user-data": "#cloud-config\n{}\n",
    # With an underscore, as Raspberry Pi OS has it.
    "meta-data": "dsmode: local\ninstance_id: rpios-image\n",
    "network-config": "network:\n  version: 2\n  ethernets:\n    eth0:\n      dhcp4: true\n      optional: true\n",
}
_IMPORTED = "cloudinit.cmd.main, cloudinit.distros.debian, cloudinit.net.networkd, cloudinit.sources.DataSourceNoCloud"


def raspberry_image() -> Path:
    """``raspios.img``; made once, needs root."""
    userland = prepare("rpi4", RELEASE)
    shape = [*_PACKAGES, *_LEFT_OUT, *_ENABLED, *map(str, _LINKS.items()), _IMPORTED, str(_ROOT_MIB)]
    content = [*shape, *map(str, {**_FILES, **_SEEDS}.items()), userland.root.parent.name]
    return cached("raspios-" + RELEASE, content, lambda target: _make(target, userland), None) / "raspios.img"


def _make(target: Path, userland: Userland) -> None:
    root = target.with_name("tree")
    unpack_debian(root, RELEASE, _PACKAGES, _LEFT_OUT, ["--arch=arm64", MERGED])
    _configure(root)
    _import_once(root, userland)
    target.mkdir()
    image = target / "raspios.img"
    root_start = images.BOOT_START + images.BOOT_MIB * images.MIB
    with open(image, "wb") as file:
        file.truncate(root_start + _ROOT_MIB * images.MIB)
    table = f"label: dos\nlabel-id: 0x5e3da3da\nstart=16384, size={images.BOOT_MIB * 2048}, type=c\n"
    images.run("sfdisk", "-q", str(image), stdin=f"{table}start={root_start // 512}, type=83\n")
    fat = ["mkfs.vfat", "-F", "32", "-s", "1", "-n", "bootfs", "--offset", "16384"]
    images.run(*fat, str(image), str(images.BOOT_MIB * 1024))
    _put_seeds(image, target)
    ext4 = ["mkfs.ext4", "-q", "-F", "-L", "rootfs", "-O", "^64bit,^huge_file", "-d", str(root)]
    images.run(*ext4, "-E", f"offset={root_start}", str(image), f"{_ROOT_MIB}M")
    shutil.rmtree(root)


def _configure(root: Path) -> None:
    """What the packages' scripts would leave."""
    masters = root / "usr/share/base-passwd"
    accounts = [line.split(":") for line in (masters / "passwd.master").read_text().splitlines()]
    passwd = "".join(":".join([name, "x", *rest]) + "\n" for name, _, *rest in accounts)
    shadow = "".join(f"{name}:*:20000:0:99999:7:::\n" for name, *_ in accounts)
    group = (masters / "group.master").read_text()
    texts = {**_FILES, "etc/passwd": passwd, "etc/shadow": shadow, "etc/group": group}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "etc/shadow").chmod(0o640)
    authorities = sorted((root / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    (root / "etc/ssl/certs/ca-certificates.crt").write_text("".join(path.read_text() for path in authorities))
    for name in ("usr/lib/raspberrypi-sys-mods/imager_custom", "usr/lib/userconf-pi/userconf"):
        (root / name).chmod(0o755)
    shutil.copy(root / "usr/share/openssh/sshd_config", root / "etc/ssh/sshd_config")
    for name in ("boot/firmware", "dev", "proc", "sys", "run", "tmp", "root", "home"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    for path, goal in _LINKS.items():
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(goal)
    for unit in _ENABLED:
        _enable(root, unit + ".service")


def _enable(root: Path, unit: str) -> None:
    """The links that ``systemctl enable`` makes of a unit's own ``WantedBy``."""
    found = next(
        folder / unit
        for folder in (root / "etc/systemd/system", root / "usr/lib/systemd/system")
        if (folder / unit).is_file()
    )
    for target in re.findall(r"^WantedBy=(\S+)", found.read_text(), re.MULTILINE):
        wants = root / "etc/systemd/system" / f"{target}.wants"
        wants.mkdir(parents=True, exist_ok=True)
        (wants / unit).symlink_to(f"/{found.relative_to(root)}")


def _import_once(root: Path, userland: Userland) -> None:
    """Leaves the bytecode of Python and of cloud-init beside them, as their packages' scripts do."""
    copy_bytecode(userland, root)
    (modules,) = root.glob("usr/lib/python3/dist-packages/cloudinit/config")
    configs = ", ".join(f"cloudinit.config.{path.stem}" for path in sorted(modules.glob("cc_*.py")))
    (python,) = root.glob("usr/bin/python3.??")
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    argv = [str(userland.qemu), "-L", str(root), str(python), "-c", f"import {_IMPORTED}, {configs}"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _put_seeds(image: Path, work: Path) -> None:
    """The boot partition as it is downloaded; of the device trees only the names are looked at."""
    staged = work / "boot"
    staged.mkdir()
    for name, text in {**_SEEDS, **{f"{tree}.dtb": "" for tree in images.PI_TREES}}.items():
        (staged / name).write_text(text)
    images.run("mcopy", "-i", f"{image}@@{images.BOOT_START}", *map(str, sorted(staged.iterdir())), "::/")
    shutil.rmtree(staged)


class FlashedBoard:
    """The machine that a flashed card is put into."""

    def __init__(self, card: Path, key: Path, user: str) -> None:
        """Reads the command line that the firmware would.

        Args:
            card: a file, which the machine writes to.
            key: private key of who may log in.
            user: whom the card was made for.
        """
        self._card, self._key, self._user = card, key, user
        self.cmdline = images.read_boot(card, "cmdline.txt", card.parent).decode().split()
        words = [word for word in self.cmdline if not word.startswith("root=")]
        words += ["root=/dev/vda2", "init=/usr/lib/systemd/systemd", "net.ifnames=0", "panic=1"]
        # An emulated processor beside other work takes longer than systemd gives a disk to appear and a unit to start.
        words += ["systemd.default_device_timeout_sec=900", "systemd.default_timeout_start_sec=900"]
        words += ["systemd.show_status=error", "systemd.log_color=0", "console=ttyAMA0"]
        self._guest = Guest(card, " ".join(words), FIRST_BOOT_S)
        self.host_key: str | None = None

    @property
    def console(self) -> str:
        """What it said since it was last switched on."""
        return self._guest.console

    @contextlib.contextmanager
    def on(self) -> Iterator[Station]:
        """Switches it on; with the block its power is cut.

        Its host key is read from the console of the first boot. From then on no other is taken.
        """
        with self._guest.on() as port:
            self.host_key = self.host_key or self._host_key()
            known_hosts = self._card.with_name("known_hosts")
            known_hosts.write_text(f"[127.0.0.1]:{port} {self.host_key}\n")
            yield Station(
                name="card",
                user=self._user,
                host="127.0.0.1",
                port=port,
                kind="rpi4",
                key=str(self._key),
                known_hosts=str(known_hosts),
            )

    def cut(self) -> None:
        """Cuts the power: nothing is told, nothing is written back."""
        self._guest.cut()

    def _host_key(self) -> str:
        """As the board says it when it has made it, before anybody can log in."""
        return self._guest.wait_for(r"(?m)^(ssh-ed25519 \S+)")[1]

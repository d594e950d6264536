"""A board that is a virtual machine: Debian's own arm64 kernel, a disk that survives, sshd."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from interpreters import succeed
from sshd import free_port, write_keys

from boards.emulated.userland import cached, prepare, unpack_debian
from boards.stations import Station

EMULATOR = "qemu-system-aarch64"
HOST = "10.0.2.2"
"""This machine, as the guest reaches it; QEMU's user network."""

BOOT_S = 180.0
_RELEASE = "bookworm"  # its modules are not compressed, which busybox could not undo
_PACKAGES = (
    *("bash", "busybox-static", "coreutils", "dash", "findutils", "grep", "gzip", "iproute2", "kmod", "libstdc++6"),
    *("linux-image-arm64", "mount", "openssh-server", "procps", "python3", "python3-venv", "sed", "tar", "util-linux"),
    "zlib1g",
)
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4")
_DISK_MIB = 1024
_RAMDISK_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules); do /bin/busybox insmod /$module; done
until /bin/busybox mount -t ext4 /dev/vda /root; do /bin/busybox sleep 0.1; done
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /init
"""
_INIT = """#!/bin/sh
export PATH=/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm /run/sshd
mount -t devpts pts /dev/pts
mount -t tmpfs none /dev/shm
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
exec /usr/sbin/sshd -D -e
"""
_FILES = {
    "init": _INIT,
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    "board:x:1000:1000::/home/board:/bin/bash\n",
    "etc/shadow": "root:*:1::::::\nboard:*:1::::::\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\nboard:x:1000:\n",
    "etc/nsswitch.conf": "passwd: files\nshadow: files\ngroup: files\n",
    "etc/ssh/sshd_config": "UsePAM no\nSubsystem sftp internal-sftp\n",
    "etc/hosts": "127.0.0.1 localhost\n",
}


def base() -> Path:
    """Kernel, ramdisk, disk image and keys; made once, needs root."""
    packages = prepare("rpi4", _RELEASE, "ai-edge-litert").site
    if packages is None:
        raise RuntimeError("a userland was prepared without its runtime")
    content = [*_PACKAGES, _RAMDISK_INIT, *_FILES.values(), packages.parent.name]
    return cached("vm-" + _RELEASE, content, lambda target: _make(target, packages), None)


def _make(target: Path, packages: Path) -> None:
    root = target.with_name("tree")
    hook = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
    unpack_debian(root, _RELEASE, _PACKAGES, ["--exclude=./dev/*"], ["--arch=arm64", hook])
    target.mkdir()
    write_keys(target)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    (root / "init").chmod(0o755)
    shutil.copytree(packages, root / "usr/local/lib/python3.11/dist-packages", dirs_exist_ok=True)
    shutil.copy(target / "host_key", root / "etc/ssh/ssh_host_ed25519_key")
    home = root / "home/board"
    (home / ".ssh").mkdir(parents=True)
    shutil.copy(target / "user_key.pub", home / ".ssh/authorized_keys")
    for path in (home, home / ".ssh", home / ".ssh/authorized_keys"):
        os.chown(path, 1000, 1000)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, target / "kernel")
    _ramdisk(target, root, kernel.name.removeprefix("vmlinuz-"))
    shutil.rmtree(root / "usr/lib/modules")
    shutil.rmtree(root / "boot")
    succeed("mkfs.ext4", "-q", "-F", "-d", root, target / "disk", f"{_DISK_MIB}M")
    shutil.rmtree(root)


def _ramdisk(target: Path, root: Path, kernel: str) -> None:
    """What brings the disk's driver and file system; written as one archive of the kernel's format."""
    tree = target / "ramdisk"
    for folder in ("bin", "dev", "root"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(root / "usr/bin/busybox", tree / "bin/busybox")
    succeed("depmod", "-b", root, kernel)
    shown = succeed("modprobe", "-d", root, "-S", kernel, "--show-depends", "-a", *_MODULES)
    files = dict.fromkeys(Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod"))
    for path in files:
        shutil.copy(path, tree / path.name)
    (tree / "modules").write_text(" ".join(path.name for path in files))
    (tree / "init").write_text(_RAMDISK_INIT)
    (tree / "init").chmod(0o755)
    names = "\n".join(["."] + [path.relative_to(tree).as_posix() for path in sorted(tree.rglob("*"))])
    with open(target / "initrd", "wb") as file:
        argv = ["cpio", "--quiet", "--create", "--format=newc"]
        subprocess.run(argv, cwd=tree, input=names.encode(), stdout=file, check=True)


class Machine:
    """One virtual machine with a disk of its own, which power cuts do not touch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._base = base()
        self._process: subprocess.Popen[bytes] | None = None
        succeed("cp", "--sparse=always", self._base / "disk", folder / "disk")

    @property
    def console(self) -> str:
        return (self.folder / "console").read_text(errors="replace")

    @contextlib.contextmanager
    def on(self) -> Iterator[Station]:
        """Switches it on; with the block its power is cut."""
        port = free_port()
        key = (self._base / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}")
        machine = ["-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "1024", "-accel", "tcg,thread=multi"]
        quiet = ["-display", "none", "-monitor", "none", "-no-reboot", "-serial", f"file:{self.folder / 'console'}"]
        boot = [
            "-kernel",
            self._base / "kernel",
            "-initrd",
            self._base / "initrd",
            "-append",
            "console=ttyAMA0 quiet panic=1",
        ]
        disk = ["-drive", f"if=none,id=disk,file={self.folder / 'disk'},format=raw"]
        network = ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22"]
        devices = ["virtio-blk-pci,drive=disk", "virtio-net-pci,netdev=net,romfile=", "virtio-rng-pci"]
        devices = [argument for device in devices for argument in ("-device", device)]
        process = subprocess.Popen([EMULATOR, *machine, *quiet, *map(str, boot), *disk, *network, *devices])
        self._process = process
        try:
            self._wait(port)
            yield Station(
                name="vm",
                user="board",
                host="127.0.0.1",
                port=port,
                kind="rpi4",
                key=str(self._base / "user_key"),
                known_hosts=str(self.folder / "known_hosts"),
            )
        finally:
            self.cut()

    def cut(self) -> None:
        """Cuts the power: nothing is told, nothing is written back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _wait(self, port: int) -> None:
        """Until its sshd greets; QEMU itself accepts at once."""
        end = time.monotonic() + BOOT_S
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
                if connection.recv(4) == b"SSH-":
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the machine did not come up:\n{self.console}")

"""What an image's own first boot is told: one pure function per form, from who the board shall be to files on FAT.

Sources: rpi-imager's ``doc/os_customisation_formats.md`` and ``src/customization_generator.cpp``, raspberrypi-sys-mods'
``imager_custom``, userconf-pi's ``userconf``, rpi-preseed's ``doc/rpi-preseed.5`` and schema, cloud-init's NoCloud.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from boards.flash.contents import Contents, FirstBootForm
from boards.flash.identity import Identity, Wifi
from splitboard.contract.errors import UserError

_GROUPS = ("users", "adm", "dialout", "audio", "video", "plugdev", "input", "render", "gpio", "spi", "i2c", "sudo")
"""As Raspberry Pi OS gives its first user: ``video`` and ``i2c`` read the sensors."""
_REGDOM = "cfg80211.ieee80211_regdom="
_NOCLOUD = "ds=nocloud"
_RUN = "systemd.run"
_IMAGER_CUSTOM = "/usr/lib/raspberrypi-sys-mods/imager_custom"
_USERCONF = "/usr/lib/userconf-pi/userconf"


@dataclass(frozen=True)
class FirstBoot:
    """What goes onto the boot partition.

    Attributes:
        files: content by name.
        left_out: what of the identity this image cannot be told, one line each.
    """

    files: dict[str, str]
    left_out: tuple[str, ...]


def first_boot(contents: Contents, identity: Identity, instance_id: str) -> FirstBoot:
    """The files for an image.

    Args:
        contents: of the image.
        identity: who the board shall be.
        instance_id: never used before: cloud-init does its work once per such id.

    Raises:
        UserError: the image lacks a file that its form needs.
    """
    if contents.form is FirstBootForm.FIRSTRUN:
        if contents.cmdline is None:
            raise UserError(
                f'the boot partition of "{contents.root.image.name}" has no "cmdline.txt"', ["download the image again"]
            )
        return FirstBoot(
            {
                "firstrun.sh": firstrun_script(identity, contents.boot_mount),
                "cmdline.txt": firstrun_cmdline(contents.cmdline, identity.wifi, contents.boot_mount),
            },
            (),
        )
    if contents.form is FirstBootForm.CLOUD_INIT:
        files = cloud_init_files(identity, instance_id)
        if contents.cmdline is not None:
            files["cmdline.txt"] = cloud_init_cmdline(contents.cmdline, identity.wifi, instance_id)
        return FirstBoot(files, ())
    if contents.form is FirstBootForm.PRESEED:
        return FirstBoot({"rpi-preseed.toml": preseed(identity)}, ())
    asked = ["user and password", "host name", *(["Wi-Fi"] if identity.wifi is not None else [])]
    return FirstBoot({}, (f"this image asks at its first boot (screen, or serial over USB) for: {', '.join(asked)}",))


def firstrun_script(identity: Identity, boot_mount: str) -> str:
    """Bookworm's ``firstrun.sh``: run once as root by ``systemd.run=``, then gone, with the network's key in it.

    Every step is tried whatever became of the others: a board without Wi-Fi is still reached by cable. What happened is
    left on the boot partition, where a card reader finds it.
    """
    steps = [
        ["hostname", _IMAGER_CUSTOM, "set_hostname", identity.hostname],
        ["ssh", _IMAGER_CUSTOM, "enable_ssh", "-k", *identity.keys],
        ["user", _USERCONF, identity.user, ""],  # no password: the key logs in
    ]
    if identity.wifi is not None:
        wifi = identity.wifi
        steps.append(["wifi", _IMAGER_CUSTOM, "set_wlan", wifi.ssid, wifi.psk, wifi.country])
    lines = "\n".join(f"step {shlex.join(step)}" for step in steps)
    return _FIRSTRUN.format(boot=shlex.quote(boot_mount), steps=lines)


def firstrun_cmdline(cmdline: str, wifi: Wifi | None, boot_mount: str) -> str:
    """The kernel's command line that runs ``firstrun.sh`` and reboots; the script takes these words out again."""
    words = [word for word in _words(cmdline, wifi) if not word.startswith((_RUN, "systemd.unit="))]
    words += [
        f"{_RUN}={boot_mount}/firstrun.sh",
        f"{_RUN}_success_action=reboot",
        "systemd.unit=kernel-command-line.target",
    ]
    return " ".join(words) + "\n"


def cloud_init_files(identity: Identity, instance_id: str) -> dict[str, str]:
    """``user-data``, ``meta-data`` and, for Wi-Fi, ``network-config``: JSON, which YAML is a superset of."""
    user: dict[str, Any] = {
        "name": identity.user,
        "gecos": "splitboard",
        "groups": list(_GROUPS),
        "shell": "/bin/bash",
        "lock_passwd": True,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",  # it has no password; Raspberry Pi OS gives its first user the same
        "ssh_authorized_keys": list(identity.keys),
    }
    data: dict[str, Any] = {
        "hostname": identity.hostname,
        "manage_etc_hosts": True,
        "ssh_pwauth": False,
        "users": [user],
        # Raspberry Pi OS ships with sshd off, and cloud-init has no key that turns it on.
        "runcmd": [["systemctl", "enable", "--now", "ssh"]],
    }
    files = {
        "user-data": f"#cloud-config\n{json.dumps(data, indent=1)}\n",
        "meta-data": json.dumps({"instance-id": instance_id, "local-hostname": identity.hostname}) + "\n",
    }
    if identity.wifi is not None:
        files["network-config"] = json.dumps(_network(identity.wifi), indent=1) + "\n"
    return files


def cloud_init_cmdline(cmdline: str, wifi: Wifi | None, instance_id: str) -> str:
    """The kernel's command line that names the new instance."""
    words = [word for word in _words(cmdline, wifi) if not word.startswith(_NOCLOUD)]
    return " ".join([*words, f"{_NOCLOUD};i={instance_id}"]) + "\n"


def preseed(identity: Identity) -> str:
    """``rpi-preseed.toml``. Its reader is a shell script: one line per string, backslash and quote escaped alone."""
    lines = [
        'config_version = "1.0"',
        "[system]",
        f"hostname = {_toml(identity.hostname)}",
        "[user]",
        f"name = {_toml(identity.user)}",
        "passwordless_sudo = true",
        "[ssh]",
        "enabled = true",
        "password_authentication = false",
        f"authorized_keys = [{', '.join(map(_toml, identity.keys))}]",
    ]
    if identity.wifi is not None:
        lines += [
            "[wlan]",
            f"ssid = {_toml(identity.wifi.ssid)}",
            f"password = {_toml(identity.wifi.psk)}",
            "password_encrypted = true",
            'key_mgmt = "wpa-psk"',
            f"country = {_toml(identity.wifi.country)}",
        ]
    return "\n".join([*lines, ""])


def _network(wifi: Wifi) -> dict[str, Any]:
    """In netplan's form, without the outer ``network`` that older versions of cloud-init do not take."""
    radio = {
        "dhcp4": True,
        "optional": True,
        "regulatory-domain": wifi.country,
        "access-points": {wifi.ssid: {"password": wifi.psk}},
    }
    return {"version": 2, "ethernets": {"eth0": {"dhcp4": True, "optional": True}}, "wifis": {"wlan0": radio}}


def _words(cmdline: str, wifi: Wifi | None) -> list[str]:
    """The words of the one line, with the radio's country set."""
    words = cmdline.split()
    if wifi is None:
        return words
    return [*(word for word in words if not word.startswith(_REGDOM)), f"{_REGDOM}{wifi.country}"]


def _toml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_FIRSTRUN = """\
#!/bin/sh
# Written by splitboard flash. Runs once, as root, and removes itself.
BOOT={boot}
step() {{
    echo "$1"
    shift
    "$@" || echo "failed with exit code $?"
}}
{{
{steps}
}} >"$BOOT/splitboard-firstrun.log" 2>&1
sed -i 's| systemd\\.run=.*||' "$BOOT/cmdline.txt"
rm -f "$BOOT/firstrun.sh"
sync
exit 0
"""

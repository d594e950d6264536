"""Who the board shall be: refused input, and the texts for each form of first boot, read by other parsers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from boards.flash.firstboot import (
    cloud_init_cmdline,
    cloud_init_files,
    firstrun_cmdline,
    firstrun_script,
    preseed,
)
from boards.flash.identity import Identity, Wifi, check_names, derive_psk, read_keys, read_wifi
from splitboard.contract.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@desk"
WIFI = Wifi('Bob\'s "5 GHz" \\ net', derive_psk("correct horse", 'Bob\'s "5 GHz" \\ net'), "GB")
WHO = Identity("ann", "rpi5-kitchen", (KEY,), WIFI)
CMDLINE = "console=tty1 root=PARTUUID=5e3da3da-02 rootwait quiet\n"


def test_the_key_of_the_standard() -> None:
    # IEEE 802.11-2020, annex J.4.2, test vectors 1 and 2.
    assert derive_psk("password", "IEEE") == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    assert derive_psk("ThisIsAPassword", "ThisIsASSID") == (
        "0dc0d6eb90555ed6419756b9a15ec3e3209b63df707dd508d14581f8982721af"
    )


def test_a_real_key_is_taken_and_others_are_not(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "id")], check=True)
    (key,) = read_keys(tmp_path / "id.pub")
    assert key.startswith("ssh-ed25519 ")
    with pytest.raises(UserError, match="private key") as refused:
        read_keys(tmp_path / "id")
    assert refused.value.tries == (f"--ssh-key {tmp_path / 'id'}.pub",)
    for name, text in {
        "empty": "",
        "prose": "the key of my board\n",
        "cut": KEY[:40],
        "other": KEY.replace("ssh-ed25519", "ssh-rsa"),
        "command": f"{KEY}\nssh-ed25519 $(reboot)\n",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError):
            read_keys(tmp_path / name)
    with pytest.raises(UserError, match="no ssh key at"):
        read_keys(tmp_path / "nope")


@pytest.mark.parametrize(
    ("user", "host"),
    [
        ("root", "pi"),
        ("Ann", "pi"),
        ("a b", "pi"),
        ("$(id)", "pi"),
        ("ann", "-pi"),
        ("ann", "p_i"),
        ("ann", "pi.local"),
    ],
)
def test_names_that_no_system_takes_are_refused(user: str, host: str) -> None:
    with pytest.raises(UserError):
        check_names(user, host)


def test_wifi_is_all_or_nothing(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    assert read_wifi(None, None, None) is None
    assert read_wifi("home", password, "GB") == Wifi("home", derive_psk("correct horse", "home"), "GB")
    with pytest.raises(UserError, match='"--wifi home" needs --wifi-password-file and --country'):
        read_wifi("home", None, None)
    for wrong in (("h" * 33, password, "GB"), ("home", password, "gb"), ("home", tmp_path / "nope", "GB")):
        with pytest.raises(UserError):
            read_wifi(*wrong)
    password.write_text("short")
    with pytest.raises(UserError, match="8 to 63"):
        read_wifi("home", password, "GB")


def test_firstrun_runs_each_step_with_the_words_as_they_are(tmp_path: Path) -> None:
    """The script is run; in place of the image's programs stands one that notes its arguments, and one step fails."""
    boot = tmp_path / "boot dir"
    boot.mkdir()
    noted = tmp_path / "noted"
    stub = tmp_path / "stub"
    stub.write_text(
        f"#!{sys.executable}\nimport json, sys\nopen({str(noted)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "sys.exit(3 if 'set_hostname' in sys.argv else 0)\n"
    )
    stub.chmod(0o755)
    cmdline = firstrun_cmdline(CMDLINE, WIFI, str(boot))
    (boot / "cmdline.txt").write_text(cmdline)
    text = firstrun_script(WHO, str(boot))
    programs = ("/usr/lib/raspberrypi-sys-mods/imager_custom", "/usr/lib/userconf-pi/userconf")
    for program in programs:
        assert program in text
        text = text.replace(program, str(stub))
    (boot / "firstrun.sh").write_text(text)
    subprocess.run(["sh", "-n", str(boot / "firstrun.sh")], check=True)
    subprocess.run(["sh", str(boot / "firstrun.sh")], check=True)
    assert [json.loads(line) for line in noted.read_text().splitlines()] == [
        ["set_hostname", "rpi5-kitchen"],
        ["enable_ssh", "-k", KEY],
        ["ann", ""],
        ["set_wlan", WIFI.ssid, WIFI.psk, "GB"],
    ]
    assert not (boot / "firstrun.sh").exists()
    assert (boot / "cmdline.txt").read_text() == CMDLINE.strip() + " cfg80211.ieee80211_regdom=GB\n"
    assert "failed with exit code 3" in (boot / "splitboard-firstrun.log").read_text()
    assert WIFI.psk not in (boot / "splitboard-firstrun.log").read_text()


def test_the_command_line_stays_one_line_and_is_not_grown_twice() -> None:
    once = firstrun_cmdline(CMDLINE, WIFI, "/boot/firmware")
    assert once == (
        "console=tty1 root=PARTUUID=5e3da3da-02 rootwait quiet cfg80211.ieee80211_regdom=GB "
        "systemd.run=/boot/firmware/firstrun.sh systemd.run_success_action=reboot "
        "systemd.unit=kernel-command-line.target\n"
    )
    assert firstrun_cmdline(once, WIFI, "/boot/firmware") == once
    cloud = cloud_init_cmdline(CMDLINE.strip() + " ds=nocloud;i=rpios-image", None, "splitboard-1")
    assert cloud == "console=tty1 root=PARTUUID=5e3da3da-02 rootwait quiet ds=nocloud;i=splitboard-1\n"


def test_cloud_init_files_are_yaml_with_cloud_inits_keys() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads what is JSON for us")
    files = cloud_init_files(WHO, "splitboard-1")
    assert files["user-data"].splitlines()[0] == "#cloud-config"
    data = yaml.safe_load(files["user-data"])
    (user,) = data["users"]
    assert (user["name"], user["ssh_authorized_keys"], user["lock_passwd"]) == ("ann", [KEY], True)
    assert {"video", "i2c", "sudo"} <= set(user["groups"])
    assert data["hostname"] == "rpi5-kitchen"
    assert ["systemctl", "enable", "--now", "ssh"] in data["runcmd"]
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": "splitboard-1", "local-hostname": "rpi5-kitchen"}
    radio = yaml.safe_load(files["network-config"])["wifis"]["wlan0"]
    assert radio["access-points"] == {WIFI.ssid: {"password": WIFI.psk}}
    assert radio["regulatory-domain"] == "GB"
    assert "network-config" not in cloud_init_files(Identity("ann", "pi", (KEY,), None), "i")


def test_the_preseed_is_toml_within_its_readers_subset() -> None:
    text = preseed(WHO)
    read = tomllib.loads(text)
    assert read["system"] == {"hostname": "rpi5-kitchen"}
    assert read["user"]["name"] == "ann"
    assert read["ssh"] == {"enabled": True, "password_authentication": False, "authorized_keys": [KEY]}
    assert (read["wlan"]["ssid"], read["wlan"]["password"]) == (WIFI.ssid, WIFI.psk)
    # rpi-preseed's reader takes one line per value, and of the escapes only those of backslash and quote.
    assert set(re.findall(r"\\(.)", text)) <= {"\\", '"'}
    assert '"""' not in text

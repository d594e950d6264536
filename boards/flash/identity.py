"""Who the board shall be: its user, that user's key, its name, its Wi-Fi. Checked before anything is written."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from splitboard.contract.errors import UserError

DEFAULT_USER = "splitboard"
_USER = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_COUNTRY = re.compile(r"[A-Z]{2}")
_KEY_KINDS = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")
_PSK_ROUNDS = 4096
_PSK_BYTES = 32


@dataclass(frozen=True)
class Wifi:
    """A network with a password (WPA2, or WPA3 where it lets WPA2 in).

    Attributes:
        ssid: its name.
        psk: 64 hexadecimal digits, derived from the password and the name; the password itself stays here.
        country: two capitals, whose rules the radio keeps.
    """

    ssid: str
    psk: str
    country: str


@dataclass(frozen=True)
class Identity:
    """Who the board shall be.

    Attributes:
        user: account that owns the bundle and that is logged in to.
        hostname: without ``.local``.
        keys: public keys that may log in, one line each.
        wifi: ``None`` leaves the network to the cable.
    """

    user: str
    hostname: str
    keys: tuple[str, ...]
    wifi: Wifi | None


def check_names(user: str, hostname: str) -> None:
    """Refuses names that a system would not take.

    Raises:
        UserError: one of them.
    """
    if not _USER.fullmatch(user) or user == "root":
        raise UserError(f'"{user}" cannot be the board\'s user', ["--user with a-z, 0-9, - and _, not root"])
    if not _LABEL.fullmatch(hostname):
        raise UserError(f'"{hostname}" cannot be a host name', ["--hostname with a-z, 0-9 and -, as in rpi5-kitchen"])


def read_keys(path: Path) -> tuple[str, ...]:
    """Public keys from a file such as ``id_ed25519.pub``.

    Raises:
        UserError: no such file, a private key, or a line that is no key.
    """
    made = ["ssh-keygen -t ed25519, then --ssh-key ~/.ssh/id_ed25519.pub"]
    if not path.is_file():
        raise UserError(f'no ssh key at "{path}"', made)
    text = path.read_text(encoding="utf-8", errors="replace")
    if "PRIVATE KEY" in text:
        raise UserError(f'"{path}" is the private key, which stays on this machine', [f"--ssh-key {path}.pub"])
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise UserError(f'"{path}" holds no key', made)
    for line in lines:
        if not _is_key(line):
            raise UserError(f'"{path}" holds a line that is no ssh key: "{line[:40]}"', made)
    return tuple(lines)


def _is_key(line: str) -> bool:
    """Whether a line is ``TYPE BASE64 [COMMENT]``: whole fields in base64, the first the type (RFC 4253, 6.6)."""
    words = line.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(_KEY_KINDS) or not line.isprintable():
        return False
    try:
        blob = base64.b64decode(words[1], validate=True)
    except binascii.Error:
        return False
    fields, at = [], 0
    while at + 4 <= len(blob):
        (length,) = struct.unpack_from(">I", blob, at)
        fields.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    return at == len(blob) and len(fields) > 1 and fields[0] == words[0].encode()


def read_wifi(ssid: str | None, password_file: Path | None, country: str | None) -> Wifi | None:
    """A network from the options about it: all of them or none.

    Raises:
        UserError: some but not all, or a value that no network has.
    """
    if ssid is None and password_file is None and country is None:
        return None
    if ssid is None or password_file is None or country is None:
        given = {"--wifi": ssid, "--wifi-password-file": password_file, "--country": country}
        missing = [name for name, value in given.items() if value is None]
        present = next(f"{name} {value}" for name, value in given.items() if value is not None)
        raise UserError(
            f'"{present}" needs {" and ".join(missing)}', ["--wifi NAME --wifi-password-file FILE --country GB"]
        )
    if not 1 <= len(ssid.encode()) <= 32 or not ssid.isprintable():
        raise UserError(f'"{ssid}" is no name of a network: 1 to 32 bytes', ["--wifi NAME"])
    if not _COUNTRY.fullmatch(country):
        raise UserError(f'"{country}" is no country', ["--country with two capitals, as GB or DE (ISO 3166)"])
    if not password_file.is_file():
        raise UserError(f'no password file at "{password_file}"', ["write the network's password into a file"])
    password = password_file.read_text(encoding="utf-8").rstrip("\r\n")
    if not 8 <= len(password.encode()) <= 63 or not password.isprintable():
        raise UserError(f'"{password_file}" holds no password of 8 to 63 characters', ["one line, nothing else"])
    return Wifi(ssid, derive_psk(password, ssid), country)


def derive_psk(password: str, ssid: str) -> str:
    """The key that WPA2 derives: PBKDF2-HMAC-SHA1, 4096 rounds, 256 bits (IEEE 802.11-2020, annex J.4.1)."""
    return hashlib.pbkdf2_hmac("sha1", password.encode(), ssid.encode(), _PSK_ROUNDS, _PSK_BYTES).hex()

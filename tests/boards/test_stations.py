"""Stations: the user's file, where it is looked for, and addresses that do without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from boards.stations import STATIONS_VARIABLE, Station, read_stations, station, stations_file
from splitboard.contract.errors import UserError

DESK = """
[pi1]
address = "pi@10.0.0.7"
port = 2222
kind = "rpi5"
key = "keys/pi1"
root = "~/edge"
known_hosts = "/etc/ssh/desk"
meter = "ina219:1:0x41"
python = "python3.11"

[orin]
address = "nvidia@orin.local:22022"
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the machine's own user is found."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(STATIONS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path / "here")


def written(path: Path, text: str = DESK) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_station_is_what_its_table_says(tmp_path: Path) -> None:
    path = written(tmp_path / "desk.toml")
    assert station("pi1", path) == Station(
        name="pi1",
        user="pi",
        host="10.0.0.7",
        port=2222,
        kind="rpi5",
        key=str(tmp_path / "keys" / "pi1"),
        root="edge",
        known_hosts="/etc/ssh/desk",
        meter="ina219:1:0x41",
        python="python3.11",
    )
    assert station("orin", path) == Station("orin", "nvidia", "orin.local", 22022)
    assert list(read_stations(path)) == ["pi1", "orin"]


def test_a_key_at_home(tmp_path: Path) -> None:
    path = written(tmp_path / "desk.toml", '[a]\naddress = "u@h"\nkey = "~/.ssh/id"\n')
    assert station("a", path).key == str(tmp_path / "home" / ".ssh" / "id")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("pi@10.0.0.7", Station("pi@10.0.0.7", "pi", "10.0.0.7")),
        ("pi@board.lan:2222", Station("pi@board.lan:2222", "pi", "board.lan", 2222)),
        ("u-1.x@[fe80::1%eth0]", Station("u-1.x@[fe80::1%eth0]", "u-1.x", "fe80::1%eth0")),
        ("u@[::1]:22", Station("u@[::1]:22", "u", "::1")),
    ],
)
def test_an_address_needs_no_file(address: str, expected: Station) -> None:
    assert station(address) == expected


@pytest.mark.parametrize(
    "address", ["@h", "u@", "u@h:", "u@h:x", "u@-oProxyCommand=id", "-l@h", "u@h p", "u@fe80::1", "a@b@c"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError) as error:
        station(address)
    assert error.value.message == f'"{address}" is no address'


@pytest.mark.parametrize("number", ["0", "65536", "99999"])
def test_what_is_no_port_is_refused(number: str) -> None:
    with pytest.raises(UserError, match=f'"{number}" is no port'):
        station(f"u@h:{number}")


def test_the_file_is_looked_for_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stations_file() is None
    at_home = written(tmp_path / "home" / ".config" / "splitboard" / "stations.toml")
    assert stations_file() == at_home
    written(tmp_path / "here" / "stations.toml")
    assert stations_file() == Path("stations.toml")
    by_variable = written(tmp_path / "by_variable.toml")
    monkeypatch.setenv(STATIONS_VARIABLE, str(by_variable))
    assert stations_file() == by_variable
    assert stations_file(at_home) == at_home


def test_a_file_that_was_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "here" / "stations.toml")
    with pytest.raises(UserError, match='no stations file "nope"'):
        stations_file(Path("nope"))
    monkeypatch.setenv(STATIONS_VARIABLE, "gone.toml")
    with pytest.raises(UserError, match=r'no stations file "gone\.toml"'):
        station("pi1")


def test_an_unknown_station_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        station("pi2", written(tmp_path / "desk.toml"))
    assert error.value.message == f'unknown station "pi2" in "{tmp_path / "desk.toml"}"'
    assert error.value.tries[:2] == ('"pi1" is the nearest', "stations: pi1, orin")
    assert error.value.exit_code == 3


def test_without_a_file_the_advice_is_to_write_one() -> None:
    with pytest.raises(UserError, match=r'unknown station "pi1": there is no "stations\.toml"') as error:
        station("pi1")
    assert '[pi1] address = "pi@10.0.0.7"' in error.value.tries[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[pi1]\nadress = "u@h"\n', '"address" is the nearest known key'),
        ("[pi1]\nport = 22\n", 'the key "address" is missing'),
        ('[pi1]\naddress = "u@h"\nport = "22"\n', "port: expected int"),
        ('[pi1]\naddress = "u@h:22"\nport = 23\n', 'the port is in "u@h:22" and in port = 23'),
        ('[pi1]\naddress = "u@h"\nport = 70000\n', '"70000" is no port'),
        ('[pi1]\naddress = "h"\n', '"h" is no address'),
        ('[pi1]\naddress = "u@h"\nkind = "rpi6"\n', 'unknown board "rpi6"'),
        ('pi1 = "u@h"\n', "expected a table"),
        ("[pi1\n", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_stations(written(tmp_path / "desk.toml", text))
    assert says in str(error.value)
    assert "\n" not in error.value.message
    assert str(tmp_path / "desk.toml") in error.value.message
    assert ("[pi1]" in error.value.message) == text.startswith(("[pi1]", "pi1"))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_stations(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not valid TOML"):
        read_stations(tmp_path / "b.toml")

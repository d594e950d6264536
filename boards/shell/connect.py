"""A shell on a station."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from boards.shell.shell import Shell
from boards.stations import Station
from splitboard.contract.errors import UserError


@contextlib.contextmanager
def connect(station: Station, *, accept_host_key: bool = False) -> Iterator[Shell]:
    """A shell on a station, as long as the block lasts.

    The host key must be in ``known_hosts`` (the station's file, else the user's own). On first contact a person at a
    terminal is asked, ``accept_host_key`` writes it down, and nothing else goes on. A key that is not the known one is
    refused whatever was asked. The user's ``~/.ssh/config`` is not read: a station says all.

    Args:
        station: where it is.
        accept_host_key: on first contact, write the key down without asking.

    Raises:
        UserError: no way there, nobody answers, the host key is not known or not the known one, the login is refused;
            or asyncssh is not installed.
    """
    try:
        from boards.shell.login import logged_in
    except ModuleNotFoundError as error:
        raise UserError(f'a station needs "{error.name}"', ['pip install "splitboard[boards]"']) from error
    with logged_in(station, accept_host_key) as shell:
        yield shell

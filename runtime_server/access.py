"""Who may ask: a bearer token, and TLS."""

from __future__ import annotations

import hmac
import ssl
from pathlib import Path

from splitboard.contract.errors import UserError
from splitboard.contract.interface import Reason, WireError

_SCHEME = "bearer "


class Token:
    """A secret that requests must carry (RFC 6750).

    Args:
        secret: as the client sends it.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def check(self, authorization: str | None) -> None:
        """Compares, in a time that does not tell how much was right.

        Args:
            authorization: value of the header or metadata of that name, ``None`` where there was none.

        Raises:
            WireError: it is another, or none.
        """
        given = authorization or ""
        scheme, secret = given[: len(_SCHEME)].lower(), given[len(_SCHEME) :].strip()
        if scheme != _SCHEME or not hmac.compare_digest(secret.encode(), self._secret):
            what = "needs a bearer token" if authorization is None else "was given another token"
            raise WireError(Reason.UNAUTHORISED, f"this server {what}")


def read_token(path: Path) -> Token:
    """The token in a file; white space around it is no part of it.

    Raises:
        UserError: it cannot be read, or holds none that fits into a header.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'cannot read a token from "{path}": {error}', ["a file with one line"]) from error
    if not text.isprintable() or not text or " " in text:
        raise UserError(f'"{path}" must hold one token without blanks', ["openssl rand -hex 32 > token"])
    return Token(text)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS for a server, 1.2 or newer.

    Args:
        certificate: PEM, with the chain.
        key: PEM, its private key.

    Raises:
        UserError: one cannot be read, or they do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (certificate, key):
        if not path.is_file():
            raise UserError(f'there is no file "{path}"', ["--tls-cert CHAIN.pem --tls-key KEY.pem"])
    try:
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise UserError(
            f'"{certificate}" and "{key}" are no certificate with its key: {error}',
            ["both in PEM, the key without a password"],
        ) from error
    return context

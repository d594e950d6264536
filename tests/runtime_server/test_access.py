"""Who may ask: certificates and tokens, with certificates made here and the standard library's TLS client."""

from __future__ import annotations

import datetime
import json
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from asking import INFER, ask, refusal, remote_request, scores
from serving import Running, running_server, start_server

from runtime_server.access import Token, read_token
from splitboard.contract.errors import EXIT_USER_ERROR, UserError
from splitboard.contract.interface import Reason, WireError

SECRET = "a-secret-that-nobody-guesses"
BEARER = {"Authorization": f"Bearer {SECRET}"}


@dataclass(frozen=True)
class Certificates:
    """An authority, and files of what it issued."""

    authority: trustme.CA
    folder: Path

    def issue(self, name: str, **options: datetime.datetime) -> dict[str, str]:
        """Options of a server with a certificate for this host, as `ServeOptions` names them."""
        issued = self.authority.issue_cert("127.0.0.1", **options)
        chain, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        chain.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return {"tls_cert": str(chain), "tls_key": str(key)}

    def trusting(self) -> ssl.SSLContext:
        """A client that trusts the authority alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(trustme.CA(), tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secured(
    tiny_bundle: Path, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(f"{SECRET}\n")
    with running_server(tiny_bundle, token_file=str(token), **certificates.issue("good")) as running:
        yield running


def get(url: str, context: ssl.SSLContext, headers: dict[str, str] | None = None, body: bytes | None = None) -> bytes:
    asked = urllib.request.Request(url, body, headers or {})
    with urllib.request.urlopen(asked, timeout=20, context=context) as reply:
        found: bytes = reply.read()
    return found


def test_tls_with_a_token(secured: Running, certificates: Certificates, tiny_bundle: Path) -> None:
    body, headers = remote_request(tiny_bundle)
    asked = urllib.request.Request(secured.url + INFER, body, {**headers, **BEARER})
    with urllib.request.urlopen(asked, timeout=20, context=certificates.trusting()) as reply:
        assert secured.url.startswith("https://")
        assert len(scores(reply.headers, reply.read())) == 2


def test_a_large_body_over_tls(secured: Running, certificates: Certificates) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(secured.url + INFER, certificates.trusting(), BEARER, bytes(66_000))
    assert refused.value.code == 400
    assert refusal(refused.value.read()) == "malformed"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {SECRET}x"},
        {"Authorization": f"Bearer {SECRET[:-1]}"},
        {"Authorization": f"Basic {SECRET}"},
        {"Authorization": SECRET},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \xe9"},
    ],
)
@pytest.mark.parametrize("path", [INFER, "/v2", "/metrics", "/v2/models/tiny-s00/stats", "/nothing/here"])
def test_without_the_token_nothing_but_health_is_told(
    secured: Running, certificates: Certificates, path: str, headers: dict[str, str]
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(secured.url + path, certificates.trusting(), headers)
    said = refused.value.read()
    assert (refused.value.code, refusal(said)) == (401, "unauthorised")
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"
    assert SECRET not in said.decode()
    assert json.loads(get(f"{secured.url}/v2/health/ready", certificates.trusting(), headers)) == {"ready": True}


def test_an_expired_certificate_is_noticed_by_the_client(tiny_bundle: Path, certificates: Certificates) -> None:
    long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    issued = certificates.issue("expired", not_before=long_ago, not_after=long_ago + datetime.timedelta(days=1))
    with running_server(tiny_bundle, **issued) as running:
        with pytest.raises(urllib.error.URLError, match="certificate has expired"):
            get(f"{running.url}/v2", certificates.trusting())
        lenient = ssl._create_unverified_context()  # the server still serves
        assert json.loads(get(f"{running.url}/v2", lenient))["name"] == "splitboard"


def test_a_self_signed_certificate_is_noticed_by_the_client(secured: Running) -> None:
    with pytest.raises(urllib.error.URLError, match="unable to get local issuer certificate"):
        get(f"{secured.url}/v2/health/live", ssl.create_default_context())


def test_plain_text_and_half_a_handshake_on_a_tls_port(secured: Running, certificates: Certificates) -> None:
    halves = [socket.create_connection(("127.0.0.1", secured.port), 20) for _ in range(200)]
    for half in halves:
        half.sendall(b"\x16\x03\x01\x02\x00")
    with socket.create_connection(("127.0.0.1", secured.port), 20) as plain:
        plain.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP")
    assert json.loads(get(f"{secured.url}/v2/health/live", certificates.trusting())) == {"live": True}
    for half in halves:
        half.close()


def test_old_tls_is_not_spoken(secured: Running, certificates: Certificates) -> None:
    context = certificates.trusting()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(urllib.error.URLError):
        get(f"{secured.url}/v2/health/live", context)


def test_without_a_token_file_nobody_is_asked(server: Running) -> None:
    assert ask(server.port, "GET", "/v2", headers={"Authorization": "Bearer whatever"})[0] == 200


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Bearer x", "Token secret", "secret"])
def test_a_token_is_compared_whole(given: str | None) -> None:
    token = Token("secret")
    token.check("Bearer secret")
    token.check("bearer secret")
    with pytest.raises(WireError) as refused:
        token.check(given)
    assert refused.value.reason is Reason.UNAUTHORISED


@pytest.mark.parametrize("text", ["", "\n", "two words\n", "two\nlines\n", "caf\xe9"])
def test_a_file_without_a_token(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=str(path)):
        read_token(path)


def test_files_that_are_no_certificate_are_an_error_of_the_user(tiny_bundle: Path, certificates: Certificates) -> None:
    first, second = certificates.issue("first"), certificates.issue("second")
    missing = str(certificates.folder / "missing.pem")
    for options, words in (
        ({"tls_cert": missing, "tls_key": first["tls_key"]}, f'there is no file "{missing}"'),
        ({"tls_cert": first["tls_cert"]}, "TLS needs a certificate and its key"),
        ({"tls_cert": first["tls_cert"], "tls_key": second["tls_key"]}, "are no certificate with its key"),
        ({"token_file": missing}, f'cannot read a token from "{missing}"'),
        ({"queue": 0}, 'queue is "0"'),
    ):
        process = start_server(0, tiny_bundle, **options)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, words in errors, "Traceback" in errors) == (EXIT_USER_ERROR, True, False), errors


def test_the_command_takes_all_options(tiny_bundle: Path, certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRET)
    issued = certificates.issue("command")
    options = [
        "--port",
        "0",
        "--threads",
        "1",
        "--workers",
        "2",
        "--queue",
        "3",
        "--token-file",
        str(tmp_path / "token"),
    ]
    options += ["--tls-cert", issued["tls_cert"], "--tls-key", issued["tls_key"], "--json"]
    command = [sys.executable, "-I", "-m", "splitboard.cli.main", "serve", str(tiny_bundle), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        text = get(f"{url}/metrics", certificates.trusting(), BEARER).decode()
        process.terminate()
        assert process.wait(30) == 0
    assert "splitboard_queue_limit 3.0" in text

"""The driver against real TLS servers: trust, names, and the same answers as without."""

import asyncio
import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop

from paceline.errors import ServiceError
from paceline.load.driver import drive
from paceline.load.scenario import Scenario
from paceline.model.request import Request
from paceline.store.folder import create_run

x509 = pytest.importorskip("cryptography.x509")
BIG = b"x" * 300_000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    no_password = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def unchecked() -> ssl.SSLContext:
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    return tls


def driven(
    folder: Path,
    certificate: Path,
    tls: ssl.SSLContext | None,
    *,
    host: str = "localhost",
    names: list[str] | None = None,
    sizes: list[int] | None = None,
    **changes: object,
) -> list[Request]:
    """Drive at a TLS server that answers with a big body; `names` and `sizes` get what it was asked."""

    received = [] if sizes is None else sizes

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                received.append(len(await reader.readexactly(int(length[1]) if length else 0)))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BIG) + BIG)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            writer.close()

    def named(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
        if names is not None:
            names.append(name or "")

    async def main() -> list[Request]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        context.sni_callback = named
        server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
        run = create_run(folder, "t")
        port = server.sockets[0].getsockname()[1]
        scenario = Scenario(name="s", **{"users": 3, "requests": 12, **changes})  # type: ignore[arg-type]
        try:
            await drive(scenario, f"https://{host}:{port}", run, tls=tls)
        finally:
            server.close()
        return run.requests()

    return uvloop.run(main())


def test_answers_over_tls_are_read_whole(tmp_path: Path, certificate: Path) -> None:
    names: list[str] = []
    requests = driven(tmp_path, certificate, trusting(certificate), names=names)
    assert [(r.error, r.response_bytes) for r in requests] == [(None, len(BIG))] * 12
    assert set(names) == {"localhost"}  # SNI
    assert len(names) <= 3  # kept alive: one handshake a user


def test_a_big_request_over_tls_is_sent_whole(tmp_path: Path, certificate: Path) -> None:
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('"' + "x" * 2_000_000 + '"')
    sizes: list[int] = []
    requests = driven(tmp_path, certificate, trusting(certificate), sizes=sizes, bodies=str(bodies), requests=2)
    assert [r.error for r in requests] == [None] * 2
    assert sizes == [2_000_002] * 2


def test_a_certificate_that_nobody_vouches_for_is_one_sentence(tmp_path: Path, certificate: Path) -> None:
    with pytest.raises(
        ServiceError, match=r"the certificate of localhost:\d+ is not to be trusted: self.signed"
    ) as raised:
        driven(tmp_path, certificate, None)
    assert "--insecure" in str(raised.value)


def test_a_certificate_for_another_name_is_one_sentence(tmp_path: Path, certificate: Path) -> None:
    with pytest.raises(ServiceError, match=r"not to be trusted: .*127\.0\.0\.1"):
        driven(tmp_path, certificate, trusting(certificate), host="127.0.0.1")


def test_unchecked_certificates_are_taken_as_they_are(tmp_path: Path, certificate: Path) -> None:
    requests = driven(tmp_path, certificate, unchecked(), host="127.0.0.1")
    assert [r.error for r in requests] == [None] * 12


@pytest.mark.slow
def test_several_processes_trust_what_one_does(tmp_path: Path, certificate: Path) -> None:
    requests = driven(tmp_path, certificate, trusting(certificate), processes=2)
    assert [r.error for r in requests] == [None] * 12


def test_tls_asked_of_a_plain_server_is_one_sentence(tmp_path: Path) -> None:
    async def main() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Plain\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        run = create_run(tmp_path, "t")
        port = server.sockets[0].getsockname()[1]
        try:
            await drive(Scenario(name="s", users=1, requests=1), f"https://127.0.0.1:{port}", run)
        finally:
            server.close()

    with pytest.raises(ServiceError, match="cannot agree on TLS"):
        uvloop.run(main())

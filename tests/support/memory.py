"""The engine against other people's TLS servers, in memory: no socket, no thread.

Python's `ssl` (OpenSSL 3.0) and pyOpenSSL (OpenSSL 4.0) both speak through memory BIOs.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from OpenSSL import SSL

from tests.support.pki import NOW, SERVER_NAME, Authority, Identity, client_identity, server_identity
from vmtoken.tls.client import ClientConnection
from vmtoken.tls.config import ClientConfig, Credential, TrustStore
from vmtoken.tls.events import (
    DataReceived,
    Event,
    HandshakeComplete,
    NeedData,
    SignatureNeeded,
)
from vmtoken.tls.signatures import PublicKey, sign


class PythonServer:
    """Python's `ssl`."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.is_ready = False
        self.received = b""
        self.failure: Exception | None = None

    def receive(self, records: bytes) -> bytes:
        self._incoming.write(records)
        try:
            if not self.is_ready:
                self.tls.do_handshake()
                self.is_ready = True
            while data := self.tls.read(65536):
                self.received += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.failure = error
        return self._outgoing.read()

    def send(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._outgoing.read()


class PyOpenSslServer:
    """pyOpenSSL, with a newer OpenSSL."""

    def __init__(self, context: SSL.Context) -> None:
        self.tls = SSL.Connection(context, None)
        self.tls.set_accept_state()
        self.is_ready = False
        self.received = b""
        self.failure: Exception | None = None

    def receive(self, records: bytes) -> bytes:
        if records:
            self.tls.bio_write(records)
        try:
            if not self.is_ready:
                self.tls.do_handshake()
                self.is_ready = True
            while data := self.tls.recv(65536):
                self.received += data
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            self.failure = error
        return self._read()

    def send(self, data: bytes) -> bytes:
        self.tls.sendall(data)
        return self._read()

    def _read(self) -> bytes:
        output = b""
        try:
            while piece := self.tls.bio_read(65536):
                output += piece
        except SSL.WantReadError:
            pass
        return output


def python_context(
    directory: Path,
    identity: Identity | None = None,
    *,
    version: ssl.TLSVersion | None = None,
    verify: ssl.VerifyMode = ssl.CERT_REQUIRED,
) -> ssl.SSLContext:
    """A context of Python's `ssl` for one server identity."""
    files = (identity or server_identity()).write(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.chain, files.key)
    context.load_verify_locations(files.anchors)
    context.verify_mode = verify
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def pyopenssl_context(
    directory: Path,
    identity: Identity | None = None,
    *,
    version: int | None = None,
) -> SSL.Context:
    """A context of pyOpenSSL for one server identity; it demands a client certificate."""
    files = (identity or server_identity()).write(directory)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_chain_file(str(files.chain))
    context.use_privatekey_file(str(files.key))
    context.load_verify_locations(str(files.anchors))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *answer: bool(answer[-1]))
    context.set_session_id(b"tests")
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    return context


def stranger_context(directory: Path, version: int) -> SSL.Context:
    """Asks for a certificate of a CA that did not issue ours, and takes none as well."""
    stranger = Authority.self_signed("somebody else").issue().write(directory, "stranger")
    context = pyopenssl_context(directory, version=version)
    context.load_client_ca(str(stranger.anchors).encode())
    context.set_verify(SSL.VERIFY_PEER, lambda *answer: bool(answer[-1]))
    return context


def credential(identity: Identity | None = None) -> Credential:
    """What the engine needs of a client identity."""
    identity = identity or client_identity()
    return Credential(identity.chain_der, PublicKey.of(identity.certificate).schemes())


def trust(identity: Identity | None = None) -> TrustStore:
    """The root above an identity."""
    return TrustStore([(identity or server_identity()).root_der])


def config(**changes: object) -> ClientConfig:
    """A configuration that suits the test PKI."""
    settings: dict[str, object] = {
        "server_name": SERVER_NAME,
        "trust": trust(),
        "time": NOW,
        "credential": credential(),
    }
    return ClientConfig(**(settings | changes))  # type: ignore[arg-type]


class Client:
    """A connection with its key, which answers what it is asked."""

    def __init__(
        self,
        config: ClientConfig,
        identity: Identity | None = None,
        random: Callable[[int], bytes] | None = None,
    ) -> None:
        self.connection = ClientConnection(config, random=random) if random else ClientConnection(config)
        self._identity = identity or client_identity()
        self.events: list[Event] = []

    @property
    def complete(self) -> HandshakeComplete | None:
        return next((event for event in self.events if isinstance(event, HandshakeComplete)), None)

    @property
    def received(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, DataReceived))

    def receive(self, records: bytes) -> bytes:
        """Take records, answer every question, give what is to be sent."""
        self.connection.receive_data(records)
        self.run()
        return bytes(self.connection.data_to_send())

    def run(self) -> None:
        while True:
            event = self.connection.next_event()
            if isinstance(event, NeedData):
                return
            self.events.append(event)
            match event:
                case SignatureNeeded(scheme, content):
                    signature = sign(self._identity.key, scheme, content)
                    self.connection.provide_signature(scheme, signature)
                case HandshakeComplete():
                    return


def handshake(client: Client, server: PythonServer | PyOpenSslServer, rounds: int = 10) -> HandshakeComplete:
    """Run until both sides are done."""
    to_server = bytes(client.connection.data_to_send())
    for _ in range(rounds):
        to_client = server.receive(to_server)
        if client.complete is not None and server.is_ready:
            if to_client:  # tickets
                client.connection.receive_data(to_client)
            return client.complete
        to_server = client.receive(to_client)
    raise AssertionError(f"no end after {rounds} rounds: {server.failure}")


def exchange(
    client: Client, server: PythonServer | PyOpenSslServer, sizes: Sequence[int] = (5, 70000)
) -> None:
    """Application data both ways, by the connection's own record layer."""
    for size in sizes:
        data = bytes(index % 251 for index in range(size))
        before = len(server.received)
        client.connection.send_data(data)
        client.connection.receive_data(server.receive(bytes(client.connection.data_to_send())))
        assert server.received[before:] == data
        before = len(client.received)
        client.receive(server.send(data))
        assert client.received[before:] == data

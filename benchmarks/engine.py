"""CPU of a handshake on the client's side alone: in memory, no socket, no other process."""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import Callable, Iterator
from typing import Protocol

from OpenSSL import SSL

from benchmarks.bench import VERSIONS, Bench
from benchmarks.local import client_context
from benchmarks.rows import CpuMeter, Row, in_turns, median
from tests.fakes.signing_key import SoftwareKey
from tests.support.engine_client import client_config
from tests.support.pki import NOW, SERVER_NAME, Identity, IdentityFiles, client_identity, server_identity
from tests.support.tokens import engine_token
from vmtoken.tls.client import ClientConnection
from vmtoken.tls.codes import CipherSuite, NamedGroup, ProtocolVersion
from vmtoken.tls.config import ClientConfig
from vmtoken.tls.events import HandshakeComplete, NeedData, SignatureNeeded
from vmtoken.tls.signatures import sign
from vmtoken.token import HandshakeStart, HandshakeToken

GOAL = "<= 1.0"
_CODES = {"1.2": ProtocolVersion.TLS_1_2, "1.3": ProtocolVersion.TLS_1_3}
SUITES = {
    "1.2": CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    "1.3": CipherSuite.TLS_AES_256_GCM_SHA384,
}
"""What `ssl` ends up with: it cannot choose the suites of TLS 1.3."""


def rows(bench: Bench) -> Iterator[Row]:
    """Full and mutual, ECDSA P-256, chains of leaf, intermediate and root."""
    client, files = client_identity(), server_identity().write(bench.directory, "engine-server")
    measure = functools.partial(in_turns, rounds=bench.rounds(40, 8), batch=10)
    for version in VERSIONS:
        theirs = functools.partial(
            ssl_client, client_context(client, bench.directory, version), ssl_server(files)
        )
        ours = functools.partial(our_client, client, ssl_server(files), NamedGroup.X25519, version)
        costs = measure([ours, theirs])
        goal = GOAL if version == "1.3" else ""
        yield Row(f"engine CPU, TLS {version} full, X25519", median(costs[0]), "us", median(costs[1]), goal)
        token = functools.partial(token_client, engine_token(SoftwareKey(client)), ssl_server(files))
        costs = measure([token, theirs])
        yield Row(f"engine token CPU, TLS {version} full", median(costs[0]), "us", median(costs[1]))
    # The system's OpenSSL, and so the yardstick, has X25519 only.
    theirs = functools.partial(ssl_client, client_context(client, bench.directory), ssl_server(files))
    ours = functools.partial(our_client, client, pyopenssl_server(files), NamedGroup.X25519MLKEM768, "1.3")
    costs = measure([ours, theirs])
    yield Row("engine CPU, TLS 1.3 full, X25519MLKEM768", median(costs[0]), "us", median(costs[1]))


class MemoryServer(Protocol):
    """The other side of one connection."""

    def exchange(self, records: bytes) -> bytes:
        """Take what the client sent and give the answer."""
        ...


def our_client(
    client: Identity, server: Callable[[], MemoryServer], group: NamedGroup, version: str
) -> float:
    """Microseconds of CPU that our engine takes, from the configuration to the key block."""
    peer, meter = server(), CpuMeter()
    with meter:
        connection = ClientConnection(_config(client, group, version))
        records = connection.data_to_send()
    done = False
    while not done:
        answer = peer.exchange(records)
        with meter:
            connection.receive_data(answer)
            done = _advance(connection, client)
            records = connection.data_to_send()
    with meter:
        connection.key_block()
    peer.exchange(records)
    return meter.read()


def token_client(token: HandshakeToken, server: Callable[[], MemoryServer]) -> float:
    """The same of a key that can only sign with the engine, while somebody waits: shares are made before.

    It offers all groups and suites, asks for consent, and verifies the signature that the key made.
    """
    peer, meter = server(), CpuMeter()
    token.abort()
    with meter:
        step = token.start(HandshakeStart(SERVER_NAME, int(NOW.timestamp())), lambda _: None)
    while step.result is None:
        answer = peer.exchange(step.client_flight)
        with meter:
            step = token.process(answer)
    peer.exchange(step.client_flight)
    return meter.read()


def _advance(connection: ClientConnection, client: Identity) -> bool:
    while True:
        match connection.next_event():
            case SignatureNeeded(scheme, content):
                connection.provide_signature(scheme, sign(client.key, scheme, content))
            case NeedData():
                return False
            case HandshakeComplete():
                return True


@functools.cache
def _settings(client: Identity) -> ClientConfig:
    return client_config(SERVER_NAME, client)


def _config(client: Identity, group: NamedGroup, version: str) -> ClientConfig:
    """Anchors and credential are parsed once, as a token does; the rest is new for each handshake."""
    known = _settings(client)
    return ClientConfig(
        server_name=SERVER_NAME,
        trust=known.trust,
        time=known.time,
        credential=known.credential,
        cipher_suites=(SUITES[version],),
        groups=(group, NamedGroup.SECP256R1),  # in TLS 1.2 the curves of certificates too
        key_shares=(group,),
        min_version=_CODES[version],
        max_version=_CODES[version],
    )


def ssl_client(context: ssl.SSLContext, server: Callable[[], MemoryServer]) -> float:
    """Microseconds of CPU that Python's `ssl` takes for the same."""
    peer, meter = server(), CpuMeter()
    with meter:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        connection = context.wrap_bio(incoming, outgoing, server_hostname=SERVER_NAME)
    done = False
    while not done:
        with meter:
            done = _shake(connection)
            records = outgoing.read()
        answer = peer.exchange(records)
        if not done:
            with meter:
                incoming.write(answer)
    return meter.read()


def _shake(connection: ssl.SSLObject) -> bool:
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


class SslServer:
    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.connection = context.wrap_bio(self.incoming, self._outgoing, server_side=True)

    def exchange(self, records: bytes) -> bytes:
        self.incoming.write(records)
        _shake(self.connection)
        return self._outgoing.read()


def ssl_server(files: IdentityFiles) -> Callable[[], SslServer]:
    """Servers of one context: X25519, AES-256-GCM, a client certificate required."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.chain, files.key)
    context.load_verify_locations(files.anchors)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    return functools.partial(SslServer, context)


class _PyOpensslServer:
    def __init__(self, context: SSL.Context) -> None:
        self._connection = SSL.Connection(context, None)
        self._connection.set_accept_state()

    def exchange(self, records: bytes) -> bytes:
        self._connection.bio_write(records)
        with contextlib.suppress(SSL.WantReadError):
            self._connection.do_handshake()
        return self._connection.bio_read(1 << 17)


def pyopenssl_server(files: IdentityFiles) -> Callable[[], MemoryServer]:
    """The same with X25519MLKEM768."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_chain_file(str(files.chain))
    context.use_privatekey_file(str(files.key))
    context.load_verify_locations(str(files.anchors))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return functools.partial(_PyOpensslServer, context)

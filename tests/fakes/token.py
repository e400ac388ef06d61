"""A HandshakeToken that behaves: a handshake of two flights with a server that speaks in words.

What the server sends is one of `SERVER_FLIGHT`, `SERVER_FINISHED`, `PART` (more is needed), or anything else,
which fails the handshake with an alert. A script can hold a step back or make it fail.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from vmtoken.errors import TlsHandshakeFailed, TokenUnavailable, VmTokenError
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import CipherSuite, ProtocolVersion
from vmtoken.tls.key_block import KeyBlock
from vmtoken.token import (
    Assurance,
    Authorize,
    HandshakeFailed,
    HandshakeResult,
    HandshakeStart,
    HandshakeStep,
    Resumption,
    ServerIdentity,
    TokenDescription,
    Traffic,
)

PART = b"part"
SERVER_FLIGHT = b"server flight"
SERVER_FINISHED = b"server finished"
TICKET = b"ticket"
ALERT = b"alert"


@dataclass
class Script:
    """What shall happen in the steps of a token; shared by all tokens that open the same card."""

    before: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Called in the token's thread before `open`, `start`, `process`, `accept_ticket`; may block or raise."""

    version: ProtocolVersion = ProtocolVersion.TLS_1_3
    assurance: Assurance = Assurance.SOFTWARE
    spki_sha256: tuple[bytes, ...] = (b"\x01" * 32, b"\x02" * 32)
    certificate_chain: tuple[bytes, ...] = (b"not parsed",)
    asks: bool = True
    """False: the token is broken and never calls `authorize`."""

    opened: int = 0
    closed: int = 0
    handles: dict[bytes, ServerIdentity] = field(default_factory=dict)

    def step(self, name: str) -> None:
        self.before.get(name, lambda: None)()


class FakeToken:
    """One open card. It must be used by one thread at a time, and checks that."""

    def __init__(self, script: Script) -> None:
        script.opened += 1
        self._script = script
        self._start: HandshakeStart | None = None
        self._authorize: Authorize | None = None
        self._server: ServerIdentity | None = None
        self._resumed = False
        self._apdus = 0
        self._count = 0
        self._gone = False
        self._busy = threading.Lock()
        script.step("open")

    @property
    def assurance(self) -> Assurance:
        return self._script.assurance

    @property
    def traffic(self) -> Traffic:
        return Traffic(self._apdus, 100 * self._apdus)

    def describe(self) -> TokenDescription:
        return TokenDescription(
            serial="FAKE-1",
            assurance=self.assurance,
            certificate_chain=self._script.certificate_chain,
            versions=(ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3),
            application="fake",
        )

    def start(self, start: HandshakeStart, authorize: Authorize) -> HandshakeStep:
        self._enter("start")
        self._apdus = 1
        self._start, self._authorize, self._server = start, authorize, None
        self._resumed = start.resumption in self._script.handles
        return HandshakeStep(b"ClientHello " + start.server_name.encode())

    def process(self, server_records: bytes) -> HandshakeStep:
        self._enter("process")
        self._apdus += 1
        assert self._start is not None, "process follows start"
        if server_records == PART:
            return HandshakeStep()
        if server_records == SERVER_FLIGHT and self._server is None:
            return self._answer_server()
        if server_records == SERVER_FINISHED and self._server is not None:
            return HandshakeStep(result=self._result(self._server))
        self._start = None
        raise HandshakeFailed(TlsHandshakeFailed("The server said something else."), ALERT)

    def accept_ticket(self, session: bytes, message: bytes) -> Resumption | None:
        self._enter("accept_ticket")
        if self._script.version is ProtocolVersion.TLS_1_3 and message != TICKET:
            raise HandshakeFailed(TlsHandshakeFailed("not a ticket"))
        self._count += 1
        handle = hashlib.sha256(session + bytes([self._count])).digest()
        assert self._server is not None
        self._script.handles[handle] = self._server
        return Resumption(
            handle,
            self._server,
            self._script.version,
            lifetime=3600,
            single_use=self._script.version is ProtocolVersion.TLS_1_3,
        )

    def abort(self) -> None:
        self._start = None

    def close(self) -> None:
        if not self._gone:
            self._gone = True
            self._script.closed += 1

    def _enter(self, name: str) -> None:
        assert self._busy.acquire(blocking=False), "one thread at a time"
        try:
            if self._gone:
                raise TokenUnavailable("The fake card is gone.")
            self._script.step(name)
        finally:
            self._busy.release()

    def _answer_server(self) -> HandshakeStep:
        assert self._start is not None
        assert self._authorize is not None
        server = ServerIdentity(self._start.server_name, self._script.spki_sha256, b"leaf certificate")
        if self._script.asks:
            try:
                self._authorize(server)
            except VmTokenError as error:
                self._start = None
                raise HandshakeFailed(error, ALERT) from error
        self._server = server
        return HandshakeStep(b"client flight")

    def _result(self, server: ServerIdentity) -> HandshakeResult:
        assert self._start is not None
        alpn = self._start.alpn[0] if self._start.alpn else None
        resumed = self._resumed
        self._start = None
        return HandshakeResult(
            key_block=_key_block(self._script.version),
            session=b"session in the token",
            server=server,
            resumed=resumed,
            alpn=alpn,
            group="x25519",
            client_certificate_sent=not resumed,
        )


def _key_block(version: ProtocolVersion) -> KeyBlock:
    if version is ProtocolVersion.TLS_1_3:
        secrets = SecretBytes(b"c" * 32), SecretBytes(b"s" * 32)
        return KeyBlock(version, CipherSuite.TLS_AES_128_GCM_SHA256, *secrets, 0, 0)
    secrets = SecretBytes(b"c" * 20), SecretBytes(b"s" * 20)
    return KeyBlock(version, CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, *secrets, 1, 1)

"""Clients of a broker that make one handshake after another, with a TLS server in memory."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from tests.support.broker_app import Stream
from tests.support.pki import server_identity
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

SOME_TIME = 60.0
"""Seconds, in any case."""


def server_context(directory: Path) -> ssl.SSLContext:
    """A server that wants a client certificate below the root of the test servers."""
    files = server_identity().write(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.chain, files.key)
    context.load_verify_locations(files.anchors)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@dataclass
class Load:
    """Full handshakes of many clients with one token, and what came of them."""

    stub: TokenServiceStub
    server: ssl.SSLContext
    token: str
    served: list[str] = field(default_factory=list)
    """The tokens that did it, by their own names."""

    serials: list[int] = field(default_factory=list)
    """The certificates that the server saw."""

    failed: list[str] = field(default_factory=list)
    over: bool = False

    @contextlib.asynccontextmanager
    async def of(self, clients: int) -> AsyncIterator[None]:
        """So many clients, until the block ends and their last handshakes are over."""
        tasks = [asyncio.create_task(self._client()) for _ in range(clients)]
        try:
            yield
        finally:
            self.over = True
            await asyncio.gather(*tasks)

    async def more(self, count: int, token: str = "") -> list[str]:
        """Wait for so many handshakes more, of a token if one is named; the tokens that served them."""
        begin = len(self.served)
        async with asyncio.timeout(SOME_TIME):
            while True:
                new = self.served[begin:]
                if (new.count(token) if token else len(new)) >= count:
                    return new
                await asyncio.sleep(0.01)

    async def _client(self) -> None:
        stream = Stream(self.stub)
        while not self.over:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            server = self.server.wrap_bio(incoming, outgoing, server_side=True)
            answer = await stream.start(timeout=SOME_TIME, no_resumption=True, token=self.token)
            while answer.WhichOneof("step") == "flight":
                incoming.write(answer.flight.records)
                with contextlib.suppress(ssl.SSLWantReadError):
                    server.do_handshake()
                answer = await stream.records(outgoing.read())
            if answer.HasField("failure"):
                self.failed.append(answer.failure.error.message)
                continue
            incoming.write(answer.result.records)
            with contextlib.suppress(ssl.SSLWantReadError):
                server.do_handshake()
            leaf = server.getpeercert(binary_form=True)
            assert leaf is not None, "it asked for one"
            self.serials.append(x509.load_der_x509_certificate(leaf).serial_number)
            self.served.append(answer.result.token)

"""An application of the VM: the agent's TlsService, called in the plain blocking way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from tests.support.pki import KeyKind
from tests.support.servers import Server
from tests.support.stack import ALGORITHMS, Stack, sync_channel
from vmtoken.errors import VmTokenError
from vmtoken.rpc.status import from_rpc_error
from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1 import token_pb2
from vmtoken.v1.tls_service_pb2_grpc import TlsServiceStub

TIMEOUT = 20.0
"""Seconds for one call; the deadline of a handshake too."""

_VERSIONS = {token_pb2.TLS_VERSION_1_2: "1.2", token_pb2.TLS_VERSION_1_3: "1.3"}


class StackSession:
    """An open session: a `Stream`, and what the agent says about it."""

    def __init__(self, service: TlsServiceStub, info: pb.SessionInfo) -> None:
        self._service = service
        self.info = info
        self.version = _VERSIONS[info.version]
        self.resumed = info.resumed
        self.alpn = info.alpn or None
        self.group = info.group.upper() or None
        self.client_certificate_sent = info.client_certificate_sent

    def send(self, data: bytes) -> None:
        with our_errors():
            self._service.Write(pb.WriteRequest(session_id=self.info.session_id, data=data), timeout=TIMEOUT)

    def receive(self) -> bytes:
        with our_errors():
            return self._service.Read(pb.ReadRequest(session_id=self.info.session_id), timeout=TIMEOUT).data

    def end_sending(self) -> None:
        with our_errors():
            self._service.Close(pb.CloseRequest(session_id=self.info.session_id, half=True), timeout=TIMEOUT)

    def close(self) -> None:
        with our_errors():
            self._service.Close(pb.CloseRequest(session_id=self.info.session_id), timeout=TIMEOUT)


class StackClient:
    """Connects through agent, broker and card; the token of a kind of key is named after it."""

    name = "stack"
    kinds = tuple(ALGORITHMS)
    failures: tuple[type[Exception], ...] = (VmTokenError,)

    def __init__(self, channel: grpc.Channel) -> None:
        self.service = TlsServiceStub(channel)

    @classmethod
    @contextmanager
    def of(cls, stack: Stack) -> Iterator[StackClient]:
        """An application of this stack's VM."""
        with sync_channel(stack.agent_socket) as channel:
            yield cls(channel)

    def connect(
        self, server: Server, kind: KeyKind, *, alpn: tuple[str, ...] = (), no_resumption: bool = False
    ) -> StackSession:
        return self.connect_to(
            server.port,
            token=kind.value,
            alpn=alpn,
            no_resumption=no_resumption,
            server_name=server.server_name,
        )

    def connect_to(
        self,
        port: int,
        *,
        token: str,
        server_name: str,
        alpn: tuple[str, ...] = (),
        no_resumption: bool = False,
        timeout: float = TIMEOUT,
    ) -> StackSession:
        request = pb.ConnectRequest(
            host="127.0.0.1",
            port=port,
            token=token,
            alpn=alpn,
            server_name=server_name,
            no_resumption=no_resumption,
        )
        with our_errors():
            return StackSession(self.service, self.service.Connect(request, timeout=timeout).session)

    def close(self, session: StackSession, server: Server, kind: KeyKind) -> None:
        """End a session; the token keeps its ticket."""
        session.close()


@contextmanager
def our_errors() -> Iterator[None]:
    """gRPC's exceptions as the `VmTokenError` that they carry."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error

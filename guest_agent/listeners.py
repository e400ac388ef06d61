"""The applications' socket: who is calling, and the gRPC server of each user behind the front door."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from guest_agent.config import ApplicationSettings
from guest_agent.peers import LocalUser, local_user
from guest_agent.services.tls_service import TlsService
from guest_agent.sessions import Sessions
from vmtoken.rpc.channel import private_server
from vmtoken.rpc.front_door import FrontDoor, Unwelcome
from vmtoken.transport import unix
from vmtoken.v1 import tls_service_pb2
from vmtoken.v1.tls_service_pb2_grpc import add_TlsServiceServicer_to_server

_SERVICE = tls_service_pb2.DESCRIPTOR.services_by_name["TlsService"].full_name


@dataclass(frozen=True, slots=True)
class _Server:
    """The private gRPC server of one user."""

    server: grpc.aio.Server
    health: health.HealthServicer
    path: Path


class ApplicationListener:
    """The socket that applications connect to."""

    def __init__(self, sessions: Sessions, settings: ApplicationSettings) -> None:
        self._sessions = sessions
        self._settings = settings
        self._private = settings.socket.with_suffix(".d")
        self._servers: dict[LocalUser, asyncio.Task[_Server]] = {}
        self._door = FrontDoor(local_user, self._server_of)
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Serve. Raises `OSError` when the socket cannot be had."""
        self._settings.socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._private.mkdir(mode=0o700, exist_ok=True)
        self._private.chmod(0o700)  # only the front door enters: that is what makes a server one user's
        self._listener = await unix.listen(self._settings.socket, self._settings.mode, self._door.protocol)

    async def stop_accepting(self) -> None:
        """Take no more connections, and say NOT_SERVING on those that there are."""
        if self._listener is not None:
            self._listener.close()
            self._settings.socket.unlink(missing_ok=True)
        for starting in self._servers.values():
            await (await starting).health.enter_graceful_shutdown()

    async def close(self) -> None:
        """End every call, every server and every connection."""
        servers = [await starting for starting in self._servers.values()]
        self._servers.clear()
        await asyncio.gather(*(server.server.stop(grace=0.1) for server in servers))
        await self._door.close()
        for server in servers:
            server.path.unlink(missing_ok=True)

    async def _server_of(self, user: LocalUser) -> Path:
        """The socket of the user's server, which is started when the user first calls."""
        starting = self._servers.get(user)
        if starting is None:
            starting = self._servers[user] = asyncio.ensure_future(self._start(user))
        try:
            return (await asyncio.shield(starting)).path
        except RuntimeError as error:  # what gRPC raises when it cannot bind
            self._servers.pop(user, None)
            raise Unwelcome(f"the server of {user} does not start: {error}") from error

    async def _start(self, user: LocalUser) -> _Server:
        path = self._private / f"{user.uid}.sock"
        path.unlink(missing_ok=True)
        server = private_server(path, str(user), max_streams=self._settings.calls_per_user)
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        add_TlsServiceServicer_to_server(TlsService(self._sessions, user), server)
        names = (_SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        await server.start()
        for name in ("", _SERVICE):
            await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        return _Server(server, servicer, path)

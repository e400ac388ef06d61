"""Links: where VMs come in, and the gRPC server of each VM.

Every link knows its caller before a byte is read. A Unix socket belongs to one VM, whose server listens
on it. TCP comes through the front door, which knows the VM by its enrolment certificate and splices to
the private socket of that VM's server; vchan has a door of its own (`dom0_broker.vchan_links`), and a further
kind of link is one more.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import ssl
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from dom0_broker.administration import Residence
from dom0_broker.admission import Pace
from dom0_broker.audit import AuditNotes
from dom0_broker.broker import Broker
from dom0_broker.config import BrokerConfig, split_address
from dom0_broker.domains import DomainIdentity
from dom0_broker.services.admin_service import AdminService
from dom0_broker.services.token_service import TokenService
from dom0_broker.vchan_links import VchanLinks, Xen
from vmtoken.rpc.channel import private_server
from vmtoken.rpc.front_door import FrontDoor, Unwelcome
from vmtoken.transport import tcp, unix
from vmtoken.transport.vchan import RingSizes
from vmtoken.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
)

_TOKEN_SERVICE = token_service_pb2.DESCRIPTOR.services_by_name["TokenService"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

VmOfCertificate = Callable[[bytes], DomainIdentity | None]
"""The VM that an enrolment certificate, by its SHA-256, is pinned to."""


@dataclass(frozen=True, slots=True)
class _Server:
    """The gRPC server of one VM."""

    server: grpc.aio.Server
    health: health.HealthServicer
    private: Path
    """Where front doors lead."""

    link: Path | None
    """The VM's own Unix socket."""

    async def stop(self) -> None:
        await self.server.stop(grace=0.1)
        for path in (self.private, self.link):
            if path is not None:
                path.unlink(missing_ok=True)  # names in a tmpfs


class Links:
    """All links of all VMs. VMs come and go while it runs."""

    def __init__(self, broker: Broker, config: BrokerConfig) -> None:
        self._broker = broker
        self._config = config
        self._servers: dict[uuid.UUID, asyncio.Task[_Server]] = {}
        self._tcp: asyncio.Server | None = None
        self._tcp_door: FrontDoor[DomainIdentity] | None = None
        self._vchan: VchanLinks | None = None

    async def open_vm(self, vm: DomainIdentity) -> None:
        """Open the Unix socket of a VM, and its vchan if its domain runs. Raises `OSError`."""
        if self._vchan is not None:
            self._vchan.reconsider()
        if self._config.unix.enabled:
            await self._server_of(vm)

    async def open_tcp(self, context: ssl.SSLContext, vm_of_certificate: VmOfCertificate) -> str:
        """Listen for mutual TLS; the address as HOST:PORT. Raises `OSError`."""

        def identify(transport: asyncio.BaseTransport) -> DomainIdentity:
            fingerprint = hashlib.sha256(tcp.peer_certificate(transport)).digest()
            vm = vm_of_certificate(fingerprint)
            if vm is None:
                raise Unwelcome(f"no VM is enrolled with certificate {fingerprint.hex()}")
            return vm

        self._tcp_door = self.door(identify)
        host, port = split_address(self._config.tcp.listen)
        self._tcp = await tcp.listen(host, port, context, self._tcp_door.protocol)
        return self.tcp_address

    async def open_vchan(self, vms: Callable[[], list[DomainIdentity]], notes: AuditNotes, xen: Xen) -> None:
        """Serve every domain that is one of `vms`, now and as they come. Raises `OSError`."""
        sizes = RingSizes(self._config.vchan.read_ring, self._config.vchan.write_ring)
        vchan = VchanLinks(sizes, vms, self._private_socket_of, notes, xen)
        await vchan.open()
        self._vchan = vchan

    def door(self, identify: Callable[[asyncio.BaseTransport], DomainIdentity]) -> FrontDoor[DomainIdentity]:
        """A front door for one more kind of link, whose callers `identify` knows or refuses (`Unwelcome`)."""
        return FrontDoor(identify, self._private_socket_of)

    @property
    def tcp_address(self) -> str:
        """Where agents reach the broker over TCP; empty when they cannot."""
        if self._tcp is None or not self._tcp.sockets:
            return ""
        host, port = self._tcp.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def socket(self, vm: DomainIdentity) -> Path | None:
        """The Unix socket of a VM, None when these links are off."""
        return self._config.link_socket(vm.name) if self._config.unix.enabled else None

    def residence(self, vm: DomainIdentity) -> Residence | None:
        """Where a VM lives as far as vchan links know; None when there are no such links."""
        if self._vchan is None:
            return None
        return Residence(self._vchan.domid(vm), self._vchan.connected(vm), self._vchan.unlinked(vm))

    async def unlink_vm(self, vm: DomainIdentity) -> None:
        """End the vchan of a VM until it has another domain."""
        if self._vchan is not None:
            await self._vchan.unlink(vm)

    def link_vm(self, vm: DomainIdentity) -> None:
        """Open the vchan of a VM again."""
        if self._vchan is not None:
            self._vchan.link(vm)

    @property
    def doubles(self) -> list[int]:
        """Domains that have the UUID of a VM which another domain is already."""
        return [] if self._vchan is None else [domain.domid for domain in self._vchan.doubles]

    def turn_out(self, vm: DomainIdentity) -> None:
        """End the VM's TCP links: its certificate is not the one pinned any more."""
        if self._tcp_door is not None:
            self._tcp_door.turn_out(vm)

    async def close_vm(self, vm: DomainIdentity) -> None:
        """End every link of a VM and its server."""
        self.turn_out(vm)
        if self._vchan is not None:
            self._vchan.reconsider()
            await self._vchan.settled()
        starting = self._servers.pop(vm.uuid, None)
        if starting is not None:
            await (await starting).stop()

    async def stop_accepting(self) -> None:
        """Take no more connections from the network, and say NOT_SERVING to everybody."""
        if self._tcp is not None:
            self._tcp.close()
        if self._vchan is not None:
            self._vchan.stop_accepting()
        for server in await self._started():
            await server.health.enter_graceful_shutdown()

    async def close(self) -> None:
        """End all links and servers."""
        await asyncio.gather(*(server.stop() for server in await self._started()))
        self._servers.clear()
        if self._vchan is not None:
            await self._vchan.close()
        if self._tcp is not None and self._tcp_door is not None:
            self._tcp.close()
            await self._tcp_door.close()

    async def _started(self) -> list[_Server]:
        outcomes = await asyncio.gather(*self._servers.values(), return_exceptions=True)
        return [outcome for outcome in outcomes if isinstance(outcome, _Server)]

    async def _private_socket_of(self, vm: DomainIdentity) -> Path:
        return (await self._server_of(vm)).private

    async def _server_of(self, vm: DomainIdentity) -> _Server:
        """The VM's gRPC server, started when it is first needed. Raises `OSError`."""
        starting = self._servers.get(vm.uuid)
        if starting is None:
            starting = asyncio.ensure_future(self._start(vm))
            self._servers[vm.uuid] = starting
        try:
            return await asyncio.shield(starting)
        except (RuntimeError, LookupError, OSError) as error:  # gRPC cannot bind; there is no such group
            self._servers.pop(vm.uuid, None)
            raise OSError(f"the server of VM {vm} does not start: {error}") from error

    async def _start(self, vm: DomainIdentity) -> _Server:
        private, link = self._config.private_dir / f"{vm.uuid.hex}.sock", self.socket(vm)
        if link is not None:
            link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            unix.remove_stale(link)
        links = [] if link is None else [link]
        server = private_server(private, vm.name, max_streams=self._config.limits.vm_streams, links=links)
        if link is not None and self._config.unix.group:
            shutil.chown(link, group=self._config.unix.group)
            link.chmod(0o660)
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        service = TokenService(self._broker, vm, Pace(self._config.limits.vm_rate))
        token_service_pb2_grpc.add_TokenServiceServicer_to_server(service, server)
        await server.start()
        for name in ("", _TOKEN_SERVICE):
            await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        return _Server(server, servicer, private, link)


class AdminLink:
    """The operator's socket: for the broker's own user and root."""

    def __init__(self, service: AdminService, config: BrokerConfig) -> None:
        self._service = service
        self._path = config.admin_socket
        self._private = config.private_dir / "admin.sock"
        self._door = FrontDoor(_operator, self._server_of)
        self._listener: asyncio.Server | None = None
        self._server: grpc.aio.Server | None = None
        self.health = health.HealthServicer()
        """For "" and, by `token/NAME`, for every token."""

    async def open(self) -> None:
        """Raises `OSError` when the socket cannot be had."""
        try:
            self._server = server = private_server(self._private, "operator", max_streams=100)
        except RuntimeError as error:  # what gRPC raises when it cannot bind
            raise OSError(f"the operator's server does not start: {error}") from error
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(self._service, server)
        names = [admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name, _HEALTH]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        await server.start()
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        self._listener = await unix.listen(self._path, 0o600, self._door.protocol)

    async def show_token(self, name: str, *, works: bool) -> None:
        """Set the health of a token."""
        status = health_pb2.HealthCheckResponse
        await self.health.set(f"token/{name}", status.SERVING if works else status.NOT_SERVING)

    async def close(self) -> None:
        """End the operator's calls."""
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            await self._server.stop(grace=0.5)
        await self._door.close()
        for path in (self._path, self._private):
            path.unlink(missing_ok=True)  # names in a tmpfs

    async def _server_of(self, _: str) -> Path:
        return self._private


def _operator(transport: asyncio.BaseTransport) -> str:
    """The mode of the socket says the same; this is for the day when somebody changes it."""
    uid = unix.peer_credentials(transport).uid
    if uid not in {0, os.geteuid()}:
        raise Unwelcome(f"user {uid} is not the operator")
    return "operator"


def make_runtime_directories(config: BrokerConfig) -> None:
    """Make the directories of sockets; only our own user enters the private one."""
    os.umask(0o022)
    config.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    config.private_dir.mkdir(mode=0o700, exist_ok=True)
    config.private_dir.chmod(0o700)

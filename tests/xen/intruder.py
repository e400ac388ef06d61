"""What root in a VM can try to get at the token of another VM; a program for a domU without an agent.

Its argument is a `Victim` as JSON. Prints a line of JSON for each attempt: its name, and what came of it.
tests/xen/test_proof.py says what has to come of it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from cryptography import x509

from guest_agent.config import VchanLink
from guest_agent.vchan_relay import VchanRelay
from vmtoken.transport import libxenvchan
from vmtoken.transport.vchan import link_path
from vmtoken.v1 import token_service_pb2 as pb
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

DOM0 = 0
WITHIN = 60.0
"""Seconds for an attempt."""

GRANTS = 2048
"""References of dom0's that are tried: all that its first four frames of grants hold."""


@dataclass(frozen=True)
class Victim:
    """What is known of the other VM: a lot, as if dom0 had told."""

    domid: int
    uuid: str
    vm: str
    token: str
    session: str
    grant: int
    port: int
    tcp: tuple[str, int]
    """The broker's TCP link."""


def report(attempt: str, outcome: object) -> None:
    """Tell the test."""
    print(json.dumps([attempt, outcome]), flush=True)


# Over its own link -------------------------------------------------------------------------------------


async def over_its_own_link(victim: Victim) -> None:
    """Ask for the other's token, and pretend to be the other."""
    relay = VchanRelay(VchanLink())
    async with grpc.aio.insecure_channel(
        f"unix:{relay.path}", options=[("grpc.default_authority", victim.vm)]
    ) as channel:
        service = TokenServiceStub(channel)
        listed = await service.ListTokens(pb.ListTokensRequest(), timeout=WITHIN, wait_for_ready=True)
        report("its own tokens", [token.name for token in listed.tokens])
        report("handshake with 'identity'", await _handshake(service, "identity"))
        for name in _names(victim):
            report(f"certificate of {name!r}", await _certificate(service, name))
            report(f"handshake with {name!r}", await _handshake(service, name))
        for metadata in _forged(victim):
            report(f"metadata {metadata[0]}", await _certificate(service, "", metadata))
        report("ticket for a session of the other", await _ticket(service, victim))
        report("administration", await _administration(channel))
    await relay.close()


def _names(victim: Victim) -> list[str]:
    return [
        victim.token,
        f"{victim.vm}/identity",
        f"{victim.vm}:identity",
        f"../{victim.vm}/{victim.token}",
        f"soft:{victim.token}",
        f"identity\0{victim.token}",
        victim.token.upper(),
        victim.uuid,
        "*",
    ]


def _forged(victim: Victim) -> Iterator[tuple[tuple[str, str], ...]]:
    for name in ("vm", "x-vm", "vmtoken-vm", "x-forwarded-for", "forwarded", "x-vmtoken-caller", "caller"):
        yield ((name, victim.vm),)
    yield (("vm-uuid", victim.uuid),)
    yield (("domid", str(victim.domid)), ("x-domid", str(victim.domid)))


async def _certificate(service: Any, token: str, metadata: Any = None) -> str:
    request = pb.GetCertificateChainRequest(token=token)
    try:
        chain = await service.GetCertificateChain(request, timeout=WITHIN, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return x509.load_der_x509_certificate(chain.certificates[0]).subject.rfc4514_string()


async def _handshake(service: Any, token: str) -> str:
    request = pb.HandshakeRequest()
    request.start.token, request.start.server_name, request.start.port = token, "server.lab", 4433
    request.start.timeout.FromSeconds(30)
    return await _step(service, request)


async def _ticket(service: Any, victim: Victim) -> str:
    """A session ticket (RFC 8446 section 4.6.1) for a session that another VM has made."""
    message = bytes.fromhex("0400001500001c2000000000010100080123456789abcdef0000")
    ticket = pb.SessionTicket(session_id=bytes.fromhex(victim.session), message=message)
    return await _step(service, pb.HandshakeRequest(ticket=ticket))


async def _step(service: Any, request: pb.HandshakeRequest) -> str:
    call = service.Handshake(timeout=WITHIN)
    try:
        await call.write(request)
        response = await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code().name
    finally:
        call.cancel()
    if response.WhichOneof("step") == "failure":
        return str(response.failure.error.reason)
    if response.WhichOneof("step") == "ticket":
        return f"accepted {response.ticket.accepted}"
    return str(response.WhichOneof("step"))


async def _administration(channel: grpc.aio.Channel) -> str:
    method = channel.unary_unary("/vmtoken.v1.AdminService/ListVms")
    try:
        await method(b"", timeout=WITHIN)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "an answer"


# Over the other's channel --------------------------------------------------------------------------------


def over_the_others_channel(victim: Victim) -> None:
    """As a client of it, by its grant, by its event channel, and by every grant that there may be."""
    path = link_path(DOM0, victim.domid)
    report("the other's channel", _refusal(lambda: libxenvchan.open_client(DOM0, path)))
    own_domid = int(_xenstore("read", "domid"))
    own = _own_channel(link_path(DOM0, own_domid))
    try:
        grants = _Grants()
        report("the other's grant", grants.maps(victim.grant))
        report("grants of dom0 that it can map", sum(grants.maps(each) for each in range(GRANTS)))
        report("the other's event channel", _event_channel(victim.port))
    finally:
        own.close()


def _own_channel(path: str) -> libxenvchan.Vchan:
    """As soon as the broker has made it anew."""
    deadline = time.monotonic() + WITHIN
    while True:
        try:
            return libxenvchan.open_client(DOM0, path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class _Grants:
    """Pages of dom0, by libxengnttab (xengnttab.h)."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libxengnttab.so.1", use_errno=True)
        self._library.xengnttab_open.restype = ctypes.c_void_p
        self._library.xengnttab_open.argtypes = (ctypes.c_void_p, ctypes.c_uint)
        self._library.xengnttab_map_grant_ref.restype = ctypes.c_void_p
        self._library.xengnttab_map_grant_ref.argtypes = (
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_int,
        )
        self._library.xengnttab_unmap.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
        self._table = self._library.xengnttab_open(None, 0)

    def maps(self, reference: int) -> bool:
        """Whether we can read the page."""
        page = self._library.xengnttab_map_grant_ref(self._table, DOM0, reference, 1)
        if page:
            self._library.xengnttab_unmap(self._table, page, 1)
        return bool(page)


def _event_channel(port: int) -> str:
    library = ctypes.CDLL("libxenevtchn.so.1", use_errno=True)
    library.xenevtchn_open.restype = ctypes.c_void_p
    library.xenevtchn_bind_interdomain.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)
    bound = library.xenevtchn_bind_interdomain(library.xenevtchn_open(None, 0), DOM0, port)
    return "bound" if bound >= 0 else os.strerror(ctypes.get_errno())


def _refusal(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "an answer"


# By another way ------------------------------------------------------------------------------------------


def by_xenstore(victim: Victim) -> None:
    """Write who it is, or where others look for their broker, into what belongs to dom0 or to the other."""
    own_domid = _xenstore("read", "domid")
    for path in (
        f"/local/domain/{own_domid}/vm",
        f"/local/domain/{own_domid}/name",
        f"/local/domain/{own_domid}/domid",
        f"/vm/{victim.uuid}/uuid",
        f"/vm/{victim.uuid}/name",
        f"/local/domain/{victim.domid}/data/vmtoken",
        f"/local/domain/{victim.domid}/vmtoken/broker-domid",
        f"/local/domain/0/data/vmtoken/{victim.domid}/ring-ref",
        f"/local/domain/0/data/vmtoken/{own_domid}/ring-ref",
    ):
        report(f"xenstore {_spelled(path, own_domid, victim)}", _xenstore("write", path, victim.uuid))


def _spelled(path: str, own_domid: str, victim: Victim) -> str:
    return (
        path.replace(victim.uuid, "OTHER")
        .replace(f"/{victim.domid}/", "/OTHER/")
        .replace(f"/{own_domid}/", "/OWN/")
    )


def _xenstore(verb: str, *arguments: str) -> str:
    tool = subprocess.run([f"xenstore-{verb}", *arguments], capture_output=True, text=True, check=False)
    return tool.stdout.strip() if tool.returncode == 0 else "refused"


def by_tcp(victim: Victim) -> None:
    """Without a certificate of enrolment, to the broker's other link."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(victim.tcp, timeout=WITHIN) as plain,
            context.wrap_socket(plain, server_hostname=victim.vm) as tls,
        ):
            tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            report("TCP without a certificate", "an answer" if tls.recv(100) else "closed")
    except OSError as error:
        report("TCP without a certificate", type(error).__name__)


def main() -> None:
    """Everything, one after the other."""
    facts = json.loads(sys.argv[1])
    victim = Victim(**{**facts, "tcp": tuple(facts["tcp"])})
    asyncio.run(over_its_own_link(victim))
    over_the_others_channel(victim)
    by_xenstore(victim)
    by_tcp(victim)
    report("done", True)


if __name__ == "__main__":
    main()

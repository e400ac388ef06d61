"""The use cases of dom0's operator for VMs: make known, enroll, bind, forget; and what the policy would say.

Every change is in the store before it takes effect, and in the audit log.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography import x509

from dom0_broker.audit import AuditError, AuditLog, Fields
from dom0_broker.domains import DomainIdentity, checked_name, parsed_uuid
from dom0_broker.enrolment import EnrolmentCa
from dom0_broker.handshake import Desk
from dom0_broker.policy import Outcome, PolicyRequest, spki_sha256
from dom0_broker.pool import Pool, check_same_identity
from dom0_broker.store import BindingRecord, Store, VmRecord
from vmtoken.errors import Conflict, InvalidRequest, VmTokenError
from vmtoken.tls.ocsp import UNPARSABLE
from vmtoken.token import Assurance


@dataclass(frozen=True, slots=True)
class Residence:
    """The domain that a VM is now, if any."""

    domid: int | None
    connected: bool
    """Whether its agent is at the other end of the vchan."""

    unlinked: bool
    """Whether it has none because of `unlink`."""


class LinkControl(Protocol):
    """What administration needs of the links."""

    async def open_vm(self, vm: DomainIdentity) -> None:
        """Open the Unix socket of a VM."""
        ...

    async def close_vm(self, vm: DomainIdentity) -> None:
        """End every link of a VM."""
        ...

    def turn_out(self, vm: DomainIdentity) -> None:
        """End links that rest on an enrolment."""
        ...

    def socket(self, vm: DomainIdentity) -> Path | None:
        """The Unix socket of a VM."""
        ...

    def residence(self, vm: DomainIdentity) -> Residence | None:
        """The domain that a VM is now."""
        ...

    async def unlink_vm(self, vm: DomainIdentity) -> None:
        """End the vchan of a VM until it has another domain."""
        ...

    def link_vm(self, vm: DomainIdentity) -> None:
        """Open the vchan of a VM again."""
        ...


class VmAdministration:
    """VMs and their bindings. Used from the event loop; the store works in threads."""

    def __init__(
        self, store: Store, desk: Desk, links: LinkControl, ca: EnrolmentCa, one_at_a_time: asyncio.Lock
    ) -> None:
        self._store = store
        self._desk = desk
        self._links = links
        self._ca = ca
        self._one_at_a_time = one_at_a_time

    def vms(self) -> list[VmRecord]:
        """All VMs, by name."""
        return self._desk.inventory.vms()

    def bindings(self, vm: uuid.UUID) -> list[tuple[str, str]]:
        """The tokens of a VM: the name that it sees, the token's own; several of one name are a pool."""
        bound = self._desk.inventory.bindings(vm)
        return [(name, token.name) for name, tokens in bound for token in tokens]

    def socket(self, vm: DomainIdentity) -> Path | None:
        """The Unix socket of a VM."""
        return self._links.socket(vm)

    def residence(self, vm: DomainIdentity) -> Residence | None:
        """The domain that a VM is now; None when the broker does not watch domains."""
        return self._links.residence(vm)

    def handshakes(self, vm: uuid.UUID) -> int:
        """How many a VM has open or waiting."""
        return self._desk.quotas.open(vm)

    async def add(self, name: str, uuid_text: str) -> VmRecord:
        """Make a VM known and open its links. Raises `AlreadyExists`, `InvalidRequest`, `Conflict`."""
        checked_name(name, "VM")
        number = parsed_uuid(uuid_text) if uuid_text else uuid.uuid4()
        if number is None:
            raise InvalidRequest(f"The text '{uuid_text}' is not a UUID.")
        record = VmRecord(DomainIdentity(number, name), None)
        async with self._one_at_a_time:
            await asyncio.to_thread(self._store.add_vm, record.identity)
            self._desk.inventory.put_vm(record)
            await self._record("vm-added", record.identity)
            try:
                await self._links.open_vm(record.identity)
            except OSError as error:
                raise Conflict(f"VM '{name}' is known now, but its socket cannot be had: {error}.") from error
        return record

    async def remove(self, name_or_uuid: str) -> None:
        """Forget a VM. Raises `NotFound`."""
        async with self._one_at_a_time:
            vm = self._desk.inventory.vm(name_or_uuid).identity
            await asyncio.to_thread(self._store.remove_vm, vm.uuid)
            self._desk.inventory.remove_vm(vm.uuid)
            self._desk.sessions.forget_vm(vm.uuid)
            await self._record("vm-removed", vm)
            await self._links.close_vm(vm)

    async def unlink(self, name_or_uuid: str) -> None:
        """End the vchan of a VM before its domain is saved. Raises `NotFound`, `Conflict`."""
        vm = self._desk.inventory.vm(name_or_uuid).identity
        if self._domid(vm) is None:
            raise Conflict(f"VM '{vm.name}' has no vchan that could be ended: its domain does not run.")
        await self._links.unlink_vm(vm)
        await self._record("vm-unlinked", vm)

    async def link(self, name_or_uuid: str) -> None:
        """Take `unlink` back. Raises `NotFound`, `Conflict`."""
        vm = self._desk.inventory.vm(name_or_uuid).identity
        self._domid(vm)
        self._links.link_vm(vm)
        await self._record("vm-linked", vm)

    async def enroll(self, name_or_uuid: str, untrusted_request: bytes) -> tuple[bytes, bytes]:
        """The VM's new enrolment certificate and the CA's, DER. Raises `NotFound`, `InvalidRequest`."""
        async with self._one_at_a_time:
            vm = self._desk.inventory.vm(name_or_uuid).identity
            certificate = self._ca.sign_vm(vm, untrusted_request, self._desk.clock.now())
            fingerprint = hashlib.sha256(certificate).digest()
            await asyncio.to_thread(self._store.enroll_vm, vm.uuid, fingerprint)
            self._desk.inventory.put_vm(VmRecord(vm, fingerprint))
            await self._record("vm-enrolled", vm, {"certificate_sha256": fingerprint.hex()})
            self._links.turn_out(vm)
        return certificate, self._ca.certificate

    async def bind(self, name_or_uuid: str, token: str, name: str) -> None:
        """Let a VM use a token, beside others of that name if they have the same identity.

        Raises `NotFound`, `AlreadyExists`, `Conflict`, `InvalidRequest`.
        """
        async with self._one_at_a_time:
            inventory, vm = self._desk.inventory, self._desk.inventory.vm(name_or_uuid).identity
            newcomer = inventory.token(token)
            binding = BindingRecord(vm.uuid, checked_name(name or token, "binding"), token)
            members = dict(inventory.bindings(vm.uuid)).get(binding.name, ())
            if members and newcomer not in members:
                await check_same_identity(newcomer, members)
            await asyncio.to_thread(self._store.bind, binding)
            self._desk.inventory.bind(binding)
            await self._record("token-bound", vm, {"token": token, "name": binding.name})

    async def unbind(self, name_or_uuid: str, name: str, token: str | None = None) -> None:
        """Take the tokens of a name, or one of them, away from a VM. Raises `NotFound`."""
        async with self._one_at_a_time:
            vm = self._desk.inventory.vm(name_or_uuid).identity
            await asyncio.to_thread(self._store.unbind, vm.uuid, name, token)
            self._desk.inventory.unbind(vm.uuid, name, token)
            await self._record("token-unbound", vm, {"name": name, "token": token})

    async def policy_outcomes(
        self, name_or_uuid: str, server_name: str, token: str, certificates: Sequence[bytes]
    ) -> list[Outcome]:
        """The rules that could decide for a server, in order. Raises `NotFound`, `InvalidRequest`."""
        vm = self._desk.inventory.vm(name_or_uuid).identity
        bound = Pool.bound(self._desk.inventory, vm.uuid, token).candidates()[0]
        description = bound.worker.description or (await bound.state()).description
        assurance = description.assurance if description else Assurance.SOFTWARE
        try:
            path = [spki_sha256(x509.load_der_x509_certificate(each)) for each in certificates]
        except UNPARSABLE as error:
            raise InvalidRequest("The certificates are not X.509 in DER.") from error
        request = PolicyRequest(vm, bound.name, assurance)
        return list(self._desk.policy().explain(request, server_name, path or None))

    def _domid(self, vm: DomainIdentity) -> int | None:
        """The domain that a VM is now. Raises `Conflict` when the broker does not watch domains."""
        residence = self._links.residence(vm)
        if residence is None:
            raise Conflict("The broker serves no vchan: see [vchan] in broker.toml, and 'vmtokenctl status'.")
        return residence.domid

    async def _record(self, event: str, vm: DomainIdentity, fields: Fields | None = None) -> None:
        await recorded(self._desk.audit, event, {"vm": vm.name, "vm_uuid": str(vm.uuid), **(fields or {})})


async def recorded(audit: AuditLog, event: str, fields: Fields) -> None:
    """Write a record without stopping the event loop. Raises `VmTokenError`; the change stays."""
    try:
        await asyncio.to_thread(audit.append, event, fields)
    except AuditError as error:
        raise VmTokenError(f"It is done, but not in the audit log: {error}") from error

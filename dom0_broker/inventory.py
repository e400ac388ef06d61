"""VMs and tokens at run time: who is known, which token is whose, and the thread behind each token."""

from __future__ import annotations

import asyncio
import functools
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from dom0_broker.admission import Admission
from dom0_broker.config import Limits
from dom0_broker.domains import DomainIdentity, parsed_uuid
from dom0_broker.store import BindingRecord, Store, TokenRecord, VmRecord
from dom0_broker.worker import TokenWorker
from vmtoken.clock import Clock
from vmtoken.errors import (
    NotFound,
    NoTokenBound,
    PinRejected,
    TokenNotFound,
    TokenNotReady,
    TokenUnavailable,
    VmTokenError,
)
from vmtoken.token import HandshakeToken, Resumption, TokenDescription

OpenToken = Callable[[TokenRecord], HandshakeToken]
"""Opens the card behind a token with its PIN; blocks; called in the token's thread."""

PinRefused = Callable[[str, PinRejected], None]
"""Hears that an open token, named, refused its PIN; called in the token's thread."""

_OPENING = 5.0
"""Seconds that a list waits for a card that is being opened."""

OVERDUE: Final = 5.0
"""Seconds after which a card that has not answered is passed over while others do; a slow one takes half."""

_OPERATOR: Final = uuid.UUID(int=0)
"""Stands for the operator in a token's queue."""

_WAIT: Final = 30.0
"""Seconds that the operator waits for a token that VMs are using."""

Result = TypeVar("Result")


@dataclass(slots=True)
class Token:
    """A token at run time."""

    record: TokenRecord
    worker: TokenWorker
    admission: Admission
    completed: int = 0
    failed: int = 0
    ticket: asyncio.Future[Resumption | None] | None = None
    """The latest session on its way from the card to those that can be resumed; None once it is there."""

    @property
    def name(self) -> str:
        """The token's own name."""
        return self.record.name

    async def ticket_kept(self, deadline: float) -> None:
        """Wait, until `deadline` (loop time), for a session that the next handshake could resume."""
        if self.ticket is not None:
            await asyncio.wait([self.ticket], timeout=max(0.0, deadline - asyncio.get_running_loop().time()))

    async def alone(self, work: Callable[[], Result]) -> Result:
        """Do something with the card while nobody has it open, for the operator, who waits as VMs do."""
        await self.admission.acquire(_OPERATOR, asyncio.get_running_loop().time() + _WAIT)
        try:
            return await self.worker.run_closed(work)
        finally:
            self.admission.release()

    @asynccontextmanager
    async def kept_closed(self) -> AsyncIterator[None]:
        """The token is closed, and nobody opens it until the block ends; the operator waits as VMs do."""
        loop, ended = asyncio.get_running_loop(), threading.Event()
        begun = loop.create_future()

        def hold() -> None:
            loop.call_soon_threadsafe(begun.set_result, None)
            ended.wait()

        holding = asyncio.create_task(self.alone(hold))
        try:
            await asyncio.wait([holding, begun], return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                await holding  # raises why not
            yield
        finally:
            ended.set()
            await asyncio.gather(holding, return_exceptions=True)

    async def state(self) -> TokenState:
        """What the token is now; opens it if need be, without a handshake slot."""
        try:
            async with asyncio.timeout(_OPENING):
                await self.worker.run(lambda token: None)
        except TimeoutError:
            busy = TokenNotReady(f"Token '{self.name}' does not answer just now.")
            return TokenState(self.worker.description, busy)
        except VmTokenError as error:
            return TokenState(self.worker.description, error)
        return TokenState(self.worker.description, self.missing)

    @property
    def problem(self) -> VmTokenError | None:
        """Why a handshake had better use another token just now; None when all is well."""
        if self.worker.problem is None and self.worker.busy_for > OVERDUE:
            return TokenUnavailable(f"The card behind token '{self.name}' takes long to answer.")
        return self.worker.problem

    @property
    def leaf(self) -> bytes | None:
        """Its certificate, DER, empty without one; None while the token was not opened."""
        description = self.worker.description
        return None if description is None else next(iter(description.certificate_chain), b"")

    @property
    def missing(self) -> TokenNotReady | None:
        """What personalisation has left out, as far as the token was opened and shows it."""
        description = self.worker.description
        if description is None or description.certificate_chain:
            return None
        return TokenNotReady(f"Token '{self.name}' has no certificate yet; the operator has to install one.")


@dataclass(frozen=True, slots=True)
class TokenState:
    """What a token said that it is, and why it is not ready, if so."""

    description: TokenDescription | None
    problem: VmTokenError | None


@dataclass(frozen=True, slots=True)
class TokenUse:
    """A binding of a token, as the operator speaks of it."""

    vm: str
    name: str
    tokens: tuple[Token, ...]
    """All of that name, in the order in which they were bound."""


@dataclass(slots=True)
class _Vm:
    record: VmRecord
    bindings: dict[str, list[str]] = field(default_factory=dict)
    """Tokens by the name that the VM sees, in the order in which they were bound."""


class Inventory:
    """The store's content in memory, with a worker a token. Used from the event loop only."""

    def __init__(
        self,
        store: Store,
        open_token: OpenToken,
        limits: Limits,
        clock: Clock,
        *,
        pin_refused: PinRefused = lambda token, error: None,
    ) -> None:
        self._open_token = open_token
        self._pin_refused = pin_refused
        self._limits = limits
        self._clock = clock
        self._vms = {record.identity.uuid: _Vm(record) for record in store.vms()}
        self._tokens: dict[str, Token] = {}
        for token in store.tokens():
            self.put_token(token)
        for binding in store.bindings():
            self.bind(binding)

    def vms(self) -> list[VmRecord]:
        """All VMs, by name."""
        return sorted((vm.record for vm in self._vms.values()), key=lambda record: record.identity.name)

    def vm(self, name_or_uuid: str) -> VmRecord:
        """Raises `NotFound`."""
        wanted = parsed_uuid(name_or_uuid)
        for vm in self._vms.values():
            if name_or_uuid == vm.record.identity.name or wanted == vm.record.identity.uuid:
                return vm.record
        raise NotFound(f"There is no VM '{name_or_uuid}'.")

    def vm_of_certificate(self, certificate_sha256: bytes) -> DomainIdentity | None:
        """The VM that an enrolment certificate is pinned to."""
        found = (vm.record for vm in self._vms.values() if vm.record.certificate_sha256 == certificate_sha256)
        record = next(found, None)
        return record.identity if record else None

    def tokens(self) -> list[Token]:
        """All tokens, by name."""
        return [self._tokens[name] for name in sorted(self._tokens)]

    def token(self, name: str) -> Token:
        """Raises `NotFound`."""
        try:
            return self._tokens[name]
        except KeyError:
            raise NotFound(f"There is no token '{name}'.") from None

    def bindings(self, vm: uuid.UUID) -> list[tuple[str, tuple[Token, ...]]]:
        """The tokens of a VM by the names that it sees, sorted; several of one name are a pool."""
        bound = self._vms[vm].bindings if vm in self._vms else {}
        return [(name, self._named(bound[name])) for name in sorted(bound)]

    def bound_tokens(self, vm: uuid.UUID, untrusted_name: str) -> tuple[str, tuple[Token, ...]]:
        """The tokens that a VM means; no name means its only one. Raises `NoTokenBound`, `TokenNotFound`."""
        bound = self._vms[vm].bindings if vm in self._vms else {}
        if not bound:
            raise NoTokenBound(
                "No token is bound to this VM; the operator binds one with 'vmtokenctl vm bind'."
            )
        if not untrusted_name and len(bound) == 1:
            untrusted_name = next(iter(bound))
        if untrusted_name not in bound:
            known = ", ".join(sorted(bound))
            what = f"no token '{untrusted_name}'" if untrusted_name else "several tokens: name one"
            raise TokenNotFound(f"This VM has {what}; it has {known}.")
        return untrusted_name, self._named(bound[untrusted_name])

    def uses_of(self, token: str) -> list[TokenUse]:
        """Where a token is bound, by VM and name."""
        uses = [
            TokenUse(vm.record.identity.name, name, self._named(tokens))
            for vm in self._vms.values()
            for name, tokens in vm.bindings.items()
            if token in tokens
        ]
        return sorted(uses, key=lambda use: (use.vm, use.name))

    def vms_of(self, token: str) -> list[str]:
        """Names of the VMs that a token is bound to."""
        return sorted({use.vm for use in self.uses_of(token)})

    def put_vm(self, record: VmRecord) -> None:
        """A VM is new or changed."""
        vm = self._vms.setdefault(record.identity.uuid, _Vm(record))
        vm.record = record

    def remove_vm(self, vm: uuid.UUID) -> None:
        """A VM is gone, with its bindings."""
        self._vms.pop(vm, None)

    def put_token(self, record: TokenRecord) -> Token:
        """A token is new, or its PIN changed."""
        token = self._tokens.get(record.name)
        if token is None:
            self._tokens[record.name] = token = self._new_token(record)
        token.record = record
        return token

    async def remove_token(self, name: str, why: VmTokenError | None = None) -> None:
        """A token is gone, with its bindings; closes its card. Who waits for it alone is told why."""
        token = self._tokens[name]
        token.admission.close(why)
        await token.worker.stop()
        for vm in self._vms.values():
            for binding in [each for each, tokens in vm.bindings.items() if name in tokens]:
                self._unbind(vm, binding, name)
        del self._tokens[name]

    def cards_changed(self, scheme: str, is_present: Callable[[TokenRecord], bool]) -> None:
        """Tokens of a scheme came or went; `is_present` tells which, in the tokens' threads."""
        for token in self._tokens.values():
            if token.record.uri.startswith(f"{scheme}:"):
                token.worker.look_again(functools.partial(is_present, token.record))

    def bind(self, binding: BindingRecord) -> None:
        """A VM may use a token."""
        self._vms[binding.vm].bindings.setdefault(binding.name, []).append(binding.token)

    def unbind(self, vm: uuid.UUID, name: str, token: str | None = None) -> None:
        """A VM may not use the tokens of a name, or one of them, any more."""
        if token is None:
            self._vms[vm].bindings.pop(name, None)
        else:
            self._unbind(self._vms[vm], name, token)

    def close_admission(self) -> None:
        """Begin no more handshakes."""
        for token in self._tokens.values():
            token.admission.close()

    async def close(self) -> None:
        """Close all cards."""
        self.close_admission()
        await asyncio.gather(*(token.worker.stop() for token in self._tokens.values()))

    def _named(self, names: Iterable[str]) -> tuple[Token, ...]:
        return tuple(self._tokens[name] for name in names)

    def _unbind(self, vm: _Vm, name: str, token: str) -> None:
        vm.bindings[name].remove(token)
        if not vm.bindings[name]:
            del vm.bindings[name]

    def _new_token(self, record: TokenRecord) -> Token:
        def open_token() -> HandshakeToken:
            return self._open_token(self._tokens[record.name].record)

        worker = TokenWorker(
            record.name,
            open_token,
            card_timeout=self._limits.card_timeout,
            clock=self._clock,
            pin_refused=lambda error: self._pin_refused(record.name, error),
        )
        admission = Admission(
            record.name,
            capacity=self._limits.queue,
            clock=self._clock,
            healthy=lambda: token.problem is None,
        )
        token = Token(record, worker, admission)
        return token

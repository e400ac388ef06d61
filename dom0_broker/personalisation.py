"""The use cases of dom0's operator for tokens: make, make known, personalise, forget.

Work on a card runs in the token's own thread, between two handshakes. Every change is in the audit log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from dom0_broker.administration import recorded
from dom0_broker.audit import Fields
from dom0_broker.backends.base import Kept, TokenIssuer
from dom0_broker.domains import checked_name
from dom0_broker.elements import Elements, random_pins
from dom0_broker.handshake import Desk
from dom0_broker.inventory import Token
from dom0_broker.pins import PinKeeper
from dom0_broker.store import PinRole, Store, TokenRecord
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.errors import AlreadyExists, Conflict
from vmtoken.secret import SecretBytes

__all__ = ["KeyAlgorithm", "TokenAdministration"]

Result = TypeVar("Result")


class TokenAdministration:
    """Tokens. Used from the event loop; cards and store work in threads."""

    def __init__(
        self, store: Store, desk: Desk, elements: Elements, pins: PinKeeper, one_at_a_time: asyncio.Lock
    ) -> None:
        self._store = store
        self._desk = desk
        self._elements = elements
        self._pins = pins
        self._one_at_a_time = one_at_a_time

    async def create(self, name: str, uri: str, algorithm: KeyAlgorithm) -> tuple[str, bytes]:
        """A new token with a key pair inside: its URI and public key. Raises `AlreadyExists`, `Conflict`."""
        uri = uri or f"soft:{name}"
        async with self._one_at_a_time:
            self._check_free(name, uri)
            record = self._elements.record(name, uri)
            await asyncio.to_thread(self._make, record)
            token = self._desk.inventory.put_token(record)
            await self._record("token-created", token, {"uri": uri, "algorithm": algorithm.name})
        return uri, await self._issue(token, lambda issuer: issuer.generate_key(algorithm))

    async def add(
        self, name: str, uri: str, user_pin: SecretBytes | None, operator_pin: SecretBytes | None
    ) -> Token:
        """Make a token known that exists. Raises `AlreadyExists`, `InvalidRequest`."""
        async with self._one_at_a_time:
            self._check_free(name, uri)
            record = self._elements.record(name, uri)
            given = {PinRole.USER: user_pin, PinRole.OPERATOR: operator_pin}
            pins = self._pins.sealed(name, {role: pin for role, pin in given.items() if pin is not None})
            await asyncio.to_thread(self._store.add_token, record, pins)
            self._pins.adopt(name, pins)
            token = self._desk.inventory.put_token(record)
            await self._record("token-added", token, {"uri": uri})
        return token

    async def remove(self, name: str, *, destroy: bool) -> None:
        """Forget a token, and destroy the element if asked. Raises `NotFound`, `Conflict` (it is bound)."""
        async with self._one_at_a_time:
            token = self._desk.inventory.token(name)
            if self._desk.inventory.vms_of(name):
                raise Conflict(f"Token '{name}' is bound to a VM; unbind it first.")
            await self._desk.inventory.remove_token(name)
            try:
                await asyncio.to_thread(self._unmake, token.record, destroy)
            except BaseException:
                self._desk.inventory.put_token(token.record)
                raise
            self._desk.sessions.forget_token(name)
            await self._record("token-destroyed" if destroy else "token-removed", token)

    async def certificate_request(self, name: str, subject: str, dns_names: Sequence[str]) -> bytes:
        """PKCS#10, DER, signed inside the token. Raises `NotFound`, `InvalidRequest`, card errors."""
        token = self._desk.inventory.token(name)
        names = tuple(dns_names)
        return await self._issue(token, lambda issuer: issuer.certificate_request(subject, names))

    async def install_certificate(self, name: str, chain: Sequence[bytes]) -> None:
        """Store a chain, leaf first. Raises `Conflict` when it does not match the key."""
        token = self._desk.inventory.token(name)
        certificates = tuple(chain)

        def install(issuer: TokenIssuer) -> bool:
            issuer.install_certificate_chain(certificates)
            return issuer.keeps_certificates

        if not await self._issue(token, install):
            await self._keep(token, replace(token.record.kept, chain=certificates))
        self._desk.sessions.forget_token(name)
        await self._record("certificate-installed", token, {"certificates": len(certificates)})

    async def install_trust(self, name: str, anchors: Sequence[bytes]) -> None:
        """Store trust anchors; sessions made with the earlier ones are not resumed."""
        token = self._desk.inventory.token(name)
        certificates = tuple(anchors)

        def install(issuer: TokenIssuer) -> bool:
            issuer.install_trust_anchors(certificates)
            return issuer.keeps_certificates

        if not await self._issue(token, install):
            await self._keep(token, replace(token.record.kept, anchors=certificates))
        self._desk.sessions.forget_token(name)
        await self._record("trust-installed", token, {"anchors": len(certificates)})

    def _make(self, record: TokenRecord) -> None:
        """PINs first: killed in between, there is a token without an element, and never the reverse."""
        pins = random_pins()
        sealed = self._pins.sealed(record.name, {PinRole.USER: pins.user, PinRole.OPERATOR: pins.operator})
        self._store.add_token(record, sealed)
        self._pins.adopt(record.name, sealed)
        try:
            self._elements.create(record, pins)
        except BaseException:
            self._store.remove_token(record.name)
            self._pins.forget(record.name)
            raise

    def _unmake(self, record: TokenRecord, destroy: bool) -> None:
        """The element first, for the same reason."""
        if destroy:
            self._elements.delete(record)
        self._store.remove_token(record.name)
        self._pins.forget(record.name)

    async def _keep(self, token: Token, kept: Kept) -> None:
        """What the token cannot keep itself; it is opened anew with it."""
        await asyncio.to_thread(self._store.keep_certificates, token.name, kept)
        token.record = replace(token.record, kept=kept)
        await token.alone(lambda: None)

    async def _issue(self, token: Token, work: Callable[[TokenIssuer], Result]) -> Result:
        """Personalise a card while nobody else has it."""

        def issue() -> Result:
            with self._elements.issuing(token.record) as issuer:
                return work(issuer)

        return await token.alone(issue)

    def _check_free(self, name: str, uri: str) -> None:
        checked_name(name, "token")
        if any(name == each.name or uri == each.record.uri for each in self._desk.inventory.tokens()):
            raise AlreadyExists(f"There is a token '{name}' or one at {uri} already.")

    async def _record(self, event: str, token: Token, fields: Fields | None = None) -> None:
        await recorded(self._desk.audit, event, {"token": token.name, **(fields or {})})

"""The end of a token's life: off its VMs, its key destroyed where that can be, a record of it kept."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from dom0_broker.administration import recorded
from dom0_broker.audit import Fields
from dom0_broker.elements import Elements
from dom0_broker.handshake import Desk
from dom0_broker.inventory import Token
from dom0_broker.pins import PinKeeper
from dom0_broker.store import RetiredToken, Store
from vmtoken.errors import Conflict, TokenNotFound, VmTokenError


@dataclass(frozen=True, slots=True)
class Retirement:
    """What became of a token."""

    record: RetiredToken
    vms: tuple[str, ...]
    """Where it was bound."""

    key_stays_because: str
    """One sentence; empty when the key is destroyed."""


class TokenRetirement:
    """Retires tokens. Used from the event loop; cards and store work in threads."""

    def __init__(
        self, store: Store, desk: Desk, elements: Elements, pins: PinKeeper, one_at_a_time: asyncio.Lock
    ) -> None:
        self._store = store
        self._desk = desk
        self._elements = elements
        self._pins = pins
        self._one_at_a_time = one_at_a_time

    async def retire(self, name: str, *, unbind: bool, despite_key: bool) -> Retirement:
        """End a token's life. Raises `NotFound`; `Conflict` while VMs have it or its key cannot be destroyed.

        A handshake under way ends before; live TLS sessions go on, for the token is not on their path.
        """
        async with self._one_at_a_time:
            inventory = self._desk.inventory
            token, vms = inventory.token(name), tuple(inventory.vms_of(name))
            if vms and not unbind:
                raise Conflict(f"Token '{name}' is bound to VM {', '.join(vms)}; unbind it first.")
            state = await token.state()
            serial, leaf = state.description.serial if state.description else "", token.leaf or b""
            key_stays_because = await self._destroyed(token)
            if key_stays_because and not despite_key:
                message = (
                    f"The key of token '{name}' cannot be destroyed, so it is retired only with --force."
                )
                raise Conflict(" ".join((message, key_stays_because)))
            now, destroyed = self._desk.clock.now().replace(microsecond=0), not key_stays_because
            record = RetiredToken(name, token.record.uri, serial, leaf, destroyed, now)
            retirement = Retirement(record, vms, key_stays_because)
            await self._forget(token, record)
            await self._write(retirement)
        return retirement

    def retired(self) -> list[RetiredToken]:
        """Tokens that have been, the latest first. Blocks."""
        return self._store.retired_tokens()

    async def _destroyed(self, token: Token) -> str:
        """Destroy the key while nobody has the card; why that is not possible, if so."""

        def destroy() -> None:
            try:
                self._elements.delete(token.record)
            except Conflict:  # a card that software did not make
                with self._elements.issuing(token.record) as issuer:
                    issuer.destroy_key()

        try:
            await token.alone(destroy)
        except VmTokenError as error:
            return error.message
        return ""

    async def _forget(self, token: Token, record: RetiredToken) -> None:
        """The store first: what it does not take can be tried again."""
        await asyncio.to_thread(self._store.retire_token, record)
        why = TokenNotFound(f"Token '{token.name}' was retired; the operator has to bind another one.")
        await self._desk.inventory.remove_token(token.name, why)
        self._pins.forget(token.name)
        self._desk.sessions.forget_token(token.name)

    async def _write(self, retirement: Retirement) -> None:
        record = retirement.record
        leaf = hashlib.sha256(record.certificate).hexdigest() if record.certificate else None
        fields: Fields = {
            "token": record.name,
            "uri": record.uri,
            "serial": record.serial,
            "leaf_sha256": leaf,
            "key_destroyed": record.key_destroyed,
            "vms": ",".join(retirement.vms),
        }
        await recorded(self._desk.audit, "token-retired", fields)

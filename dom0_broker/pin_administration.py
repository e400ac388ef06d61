"""The use cases of dom0's operator for PINs: give, change, unblock, look at them.

Work on a card runs in the token's own thread, between two handshakes. Every change is in the audit log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final, TypeVar

from dom0_broker.administration import recorded
from dom0_broker.elements import Elements
from dom0_broker.handshake import Desk
from dom0_broker.inventory import Token
from dom0_broker.pins import PinKeeper
from dom0_broker.store import PinRecord, PinRole
from vmtoken.errors import InvalidRequest, VmTokenError
from vmtoken.secret import SecretBytes

Result = TypeVar("Result")

_READING: Final = 2.0
"""Seconds that the operator waits for counters; the last known ones do as well."""


class PinAdministration:
    """PINs of tokens. Used from the event loop; cards and store work in threads."""

    def __init__(self, desk: Desk, elements: Elements, pins: PinKeeper, one_at_a_time: asyncio.Lock) -> None:
        self._desk = desk
        self._elements = elements
        self._pins = pins
        self._one_at_a_time = one_at_a_time

    async def set(self, name: str, role: PinRole, pin: SecretBytes, *, again: bool) -> str:
        """Use another PIN from now on, after it was tried once; `again`: even if it was refused before.

        The answer says why the token has not taken it yet, if so. Raises `NotFound`, `PinRejected`,
        `PinBlocked`, card errors.
        """
        async with self._one_at_a_time:
            token = self._desk.inventory.token(name)
            problem = await self._alone(
                token, lambda: self._elements.set_pin(token.record, role, pin, again=again)
            )
            await self._record("pin-set", token, role)
        return problem

    async def use_source(self, name: str, role: PinRole, source: Path) -> None:
        """Take the PIN from a file from now on. Raises `NotFound`, `PinMissing`, `Conflict`."""
        async with self._one_at_a_time:
            token = self._desk.inventory.token(name)
            await self._alone(token, lambda: self._pins.use_source(name, role, source))
            await self._record("pin-source-set", token, role, source=str(source))

    async def change(self, name: str, new_pin: SecretBytes) -> None:
        """Give the token another user PIN. Raises `NotFound`, `PinMissing`, `PinRejected`, `PinBlocked`."""
        _check(new_pin)
        async with self._one_at_a_time:
            token = self._desk.inventory.token(name)
            await self._alone(token, lambda: self._elements.change_user_pin(token.record, new_pin))
            await self._record("pin-changed", token, PinRole.USER)

    async def unblock(self, name: str, code: SecretBytes | None, new_pin: SecretBytes) -> None:
        """Give the token another user PIN with all its tries; errors as `change`, about the code."""
        _check(new_pin)
        async with self._one_at_a_time:
            token = self._desk.inventory.token(name)
            await self._alone(token, lambda: self._elements.unblock_user_pin(token.record, code, new_pin))
            await self._record("pin-unblocked", token, PinRole.USER)

    async def read(self, name: str) -> None:
        """Ask a token for its counters, unless it is in use: then the last known ones are good enough."""
        token = self._desk.inventory.token(name)
        with suppress(VmTokenError, TimeoutError):
            async with asyncio.timeout(_READING):
                await token.worker.run_if_closed(lambda: self._elements.read_pins(token.record))

    def states(self, name: str) -> dict[PinRole, PinRecord]:
        """What is known of a token's PINs."""
        return {role: self._pins.record(name, role) for role in PinRole}

    def sharers(self, name: str) -> list[str]:
        """The other tokens that have the same PINs."""
        return self._pins.sharers(name)

    async def sharers_of(self, uri: str) -> tuple[list[str], list[PinRole]]:
        """The tokens that a new one would share its PINs with, and which the broker has."""
        holder = await asyncio.to_thread(self._elements.pin_holder, uri)
        return self._pins.sharers_of(holder)

    async def _alone(self, token: Token, work: Callable[[], Result]) -> Result:
        """Do something while no token that has the same PINs is open: an open one has its PIN in memory."""
        with suppress(VmTokenError):  # the card may be away
            await token.worker.run_if_closed(lambda: self._elements.find_pin_holder(token.record))
        async with AsyncExitStack() as stack:
            for name in self._pins.sharers(token.name):
                await stack.enter_async_context(self._desk.inventory.token(name).kept_closed())
            return await token.alone(work)

    async def _record(self, event: str, token: Token, role: PinRole, **fields: str) -> None:
        await recorded(self._desk.audit, event, {"token": token.name, "pin": role.value, **fields})


def _check(new_pin: SecretBytes) -> None:
    if not len(new_pin):
        raise InvalidRequest("The new PIN is empty; give one.")

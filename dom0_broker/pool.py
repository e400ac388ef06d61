"""Pools: tokens with one identity that a VM has under one name, and which of them makes a handshake.

A handshake takes the first token that is free. One that does not work is passed over until it does again; to
find out is not the business of guests but of `Probes`. What is bound alone is a pool of one.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from dom0_broker.admission import first_free
from dom0_broker.certificates import Identity, identity_of
from dom0_broker.inventory import Inventory, Token
from vmtoken.clock import Clock
from vmtoken.errors import (
    Conflict,
    InvalidRequest,
    TokenBusy,
    TokenNotReady,
    VmTokenError,
)

log = logging.getLogger(__name__)

_DETOUR: Final = 1
"""Handshakes that one with a session to resume lets pass before it, rather than be a full one elsewhere:
about what it saves, since a full one takes a card two to three times as long."""

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
"""Seconds before a card that does not work is tried again: doubled each time."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The tokens of one name, in the order in which they were bound."""

    name: str
    members: tuple[Token, ...]

    @classmethod
    def bound(cls, inventory: Inventory, vm: uuid.UUID, untrusted_name: str) -> Pool:
        """The pool that a VM means; no name means its only one. Raises `NoTokenBound`, `TokenNotFound`."""
        return cls(*inventory.bound_tokens(vm, untrusted_name))

    @property
    def identity(self) -> Identity | None:
        """Who the pool is: the first of its members that shows a certificate says so."""
        return next((found for token in self.members if (found := identity(token))), None)

    def candidates(self, tried: Collection[str] = ()) -> list[Token]:
        """Those that a handshake may use: the ones that work, or all of the right identity if none does."""
        left = [token for token in self.members if token.name not in tried]
        if len(self.members) == 1:
            return left
        ours = self.identity
        fitting = [token for token in left if token.leaf is None or identity(token) == ours is not None]
        working = [token for token in fitting if token.problem is None and token.leaf]
        return working or fitting or ([] if ours else left)

    async def admit(
        self,
        vm: uuid.UUID,
        deadline: float,
        *,
        tried: Collection[str] = (),
        can_resume: Callable[[Token], bool] = lambda _: False,
    ) -> Token:
        """Wait for the slot of a token that was not tried yet, until `deadline` (loop time).

        Raises `TokenBusy` or `ShuttingDown`.
        """
        candidates = self.candidates(tried)
        nearest = _worth_waiting_for(candidates, can_resume)
        if nearest is not None and await _had_soon(nearest, vm, deadline):
            return nearest
        slot = await first_free([token.admission for token in candidates], vm, deadline)
        return next(token for token in candidates if token.admission is slot)

    def check(self, token: Token) -> None:
        """Raises `TokenNotReady` for an open member that is somebody else than the pool."""
        theirs = identity(token)
        if len(self.members) > 1 and theirs is not None and theirs != self.identity:
            raise TokenNotReady(
                f"Token '{token.name}' is {theirs}, but '{self.name}' is {self.identity}; it is not used "
                "until it has a certificate for the same."
            )


def identity(token: Token) -> Identity | None:
    """Who a token is, None when it was not opened or has no certificate that can be read."""
    try:
        return identity_of(token.leaf) if token.leaf else None
    except InvalidRequest:
        return None


async def check_same_identity(newcomer: Token, members: Sequence[Token]) -> None:
    """Raises `Conflict` when a token that is to join others has another identity, as far as that is known."""
    await asyncio.gather(*(token.state() for token in (newcomer, *members)))
    ours = Pool("", tuple(members)).identity
    theirs = identity(newcomer)
    if ours is not None and theirs is not None and ours != theirs:
        raise Conflict(
            f"Token '{newcomer.name}' is {theirs}, but {_names(members)} of that name is {ours}; tokens of "
            "one name have the same subject and alternative names, so choose another name or certificate."
        )


def check_replacement(inventory: Inventory, token: Token, leaf: bytes) -> None:
    """Raises `Conflict` when a new certificate would take a token out of a pool that it is in."""
    theirs = identity_of(leaf)
    for use in inventory.uses_of(token.name):
        others = tuple(each for each in use.tokens if each is not token)
        ours = Pool(use.name, others).identity
        if ours is not None and ours != theirs:
            raise Conflict(
                f"The certificate is for {theirs}, but token '{token.name}' is in the pool '{use.name}' of "
                f"VM '{use.vm}' with {_names(others)}, which is {ours}; have it issued for that, or unbind "
                "it first."
            )


class Probes:
    """Opens cards again that did not work, so that no handshake has to be the one that finds out.

    No PIN is lost by that: `PinKeeper` presents none that was refused. Used from the event loop only.
    """

    def __init__(self, inventory: Inventory, clock: Clock) -> None:
        self._inventory = inventory
        self._clock = clock
        self._pauses: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def look(self) -> None:
        """Begin what is due; to be called about once a second."""
        for token in self._inventory.tokens():
            problem = token.worker.problem
            if problem is None:
                self._forget(token.name)
            elif token.name not in self._running and self._is_due(token.name):
                self._running[token.name] = asyncio.create_task(self._probe(token))

    async def close(self) -> None:
        """Stop. What a card does at the moment goes on in its own thread."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _is_due(self, name: str) -> bool:
        now = self._clock.monotonic()
        return now >= self._due.setdefault(name, now + _FIRST_PAUSE)

    async def _probe(self, token: Token) -> None:
        try:
            await token.worker.run(lambda _: None)
            log.info("token works again", extra={"token": token.name})
            self._forget(token.name)
        except VmTokenError:
            pause = min(2 * self._pauses.get(token.name, _FIRST_PAUSE / 2), _LONGEST_PAUSE)
            self._pauses[token.name] = pause
            self._due[token.name] = self._clock.monotonic() + pause
        finally:
            del self._running[token.name]

    def _forget(self, name: str) -> None:
        self._pauses.pop(name, None)
        self._due.pop(name, None)


def _worth_waiting_for(candidates: Sequence[Token], can_resume: Callable[[Token], bool]) -> Token | None:
    """The token that can resume, unless another one would be had much sooner."""
    if len(candidates) == 1:
        return None
    holders = [token for token in candidates if can_resume(token)]
    if not holders:
        return None
    nearest = min(holders, key=lambda token: token.admission.load)
    shortest = min(token.admission.load for token in candidates)
    return nearest if nearest.admission.load <= shortest + _DETOUR else None


async def _had_soon(token: Token, vm: uuid.UUID, deadline: float) -> bool:
    """Wait for one token as long as it should take, and not longer: it may have begun to hang."""
    patience = asyncio.get_running_loop().time() + 2 * token.admission.expected_wait
    try:
        await token.admission.acquire(vm, min(deadline, patience))
    except TokenBusy:
        return False
    return True


def _names(tokens: Sequence[Token]) -> str:
    return "token " + ", ".join(f"'{token.name}'" for token in tokens)

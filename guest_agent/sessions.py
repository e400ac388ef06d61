"""The open sessions of all users: who may open how many, whose is which, which are forgotten."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from guest_agent.broker_client import BrokerClient, Token
from guest_agent.config import AgentConfig
from guest_agent.handshake_flow import Target
from guest_agent.peers import LocalUser
from guest_agent.tickets import TicketReturns
from guest_agent.tls_stream import TlsStream
from vmtoken.errors import QuotaExceeded, SessionNotFound, ShuttingDown

_ID_OCTETS = 16
"""Random octets in a session id: 128 bits are not guessed."""

_TICKET_WAIT = 2.0
"""Seconds that a close waits for a ticket when it was asked to."""


class Sessions:
    """What applications may do with sessions. Every method takes the user as the socket knows it."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._broker = BrokerClient(config.broker)
        self._tickets = TicketReturns(self._broker, config.sessions.ticket_timeout)
        self._streams: dict[tuple[LocalUser, str], TlsStream] = {}
        self._places: Counter[LocalUser] = Counter()
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False
        self._broker.warm_up()

    async def tokens(self) -> list[Token]:
        """The tokens of this VM. Raises `BrokerUnavailable`."""
        return await self._broker.tokens(self._config.sessions.handshake_timeout)

    @property
    def broker_version(self) -> str:
        """Of the broker that told its tokens last; empty when it did not say."""
        return self._broker.broker_version

    async def open(self, user: LocalUser, target: Target, timeout: float | None) -> tuple[str, TlsStream]:
        """Open a session that lives until `close`, its idle timeout or the end of the agent."""
        self._take_place(user)
        try:
            stream = await self._connect(target, timeout)
        except BaseException:
            self._give_place_back(user)
            raise
        session_id = secrets.token_urlsafe(_ID_OCTETS)
        self._streams[user, session_id] = stream
        return session_id, stream

    def find(self, user: LocalUser, session_id: str) -> TlsStream:
        """An open session of this user. Raises `SessionNotFound`."""
        stream = self._streams.get((user, session_id))
        if stream is None:
            raise SessionNotFound("There is no such session, or it belongs to another user.")
        return stream

    async def close(self, user: LocalUser, session_id: str, *, await_ticket: bool = False) -> None:
        """End a session of this user. Raises `SessionNotFound`."""
        stream = self.find(user, session_id)
        if await_ticket:
            await stream.ticket_kept(_TICKET_WAIT)
        self.discard(user, session_id)

    def discard(self, user: LocalUser, session_id: str) -> None:
        """Close a session if it is still open."""
        stream = self._streams.pop((user, session_id), None)
        if stream is not None:
            stream.close()
            self._give_place_back(user)

    @contextmanager
    def borrowed(self, user: LocalUser, session_id: str) -> Iterator[TlsStream]:
        """A session of this user for one tunnel, with which it ends. Raises `SessionNotFound`."""
        stream = self.find(user, session_id)
        try:
            yield stream
        finally:
            self.discard(user, session_id)

    def close_idle(self) -> int:
        """Close what nobody has used for longer than the idle timeout; how many that were."""
        oldest = asyncio.get_running_loop().time() - self._config.sessions.idle_timeout
        idle = [key for key, stream in self._streams.items() if stream.last_used < oldest]
        for user, session_id in idle:
            self.discard(user, session_id)
        return len(idle)

    async def reconfigure(self, config: AgentConfig) -> None:
        """Take new limits and times, and a new link if it changed; open sessions go on."""
        changed = config.broker != self._config.broker
        self._config = config
        if changed:
            broker, tickets = self._broker, self._tickets
            self._broker = BrokerClient(config.broker)
            self._tickets = TicketReturns(self._broker, config.sessions.ticket_timeout)
            await tickets.close()
            await broker.close()

    async def drain(self) -> bool:
        """Open no more sessions and wait for those there are, under the limit; True when all have ended."""
        self._draining = True
        try:
            async with asyncio.timeout(self._config.sessions.drain_timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def end(self) -> None:
        """Close every session and the link to the broker."""
        for user, session_id in list(self._streams):
            self.discard(user, session_id)
        await self._tickets.close()
        await self._broker.close()

    def __len__(self) -> int:
        return self._places.total()

    async def _connect(self, target: Target, timeout: float | None) -> TlsStream:
        settings = self._config.sessions
        limit = settings.handshake_timeout
        seconds = limit if timeout is None else min(timeout, limit)
        return await TlsStream.connect(target, self._broker, self._tickets, settings, seconds)

    def _take_place(self, user: LocalUser) -> None:
        limits = self._config.applications
        if self._draining:
            raise ShuttingDown("The agent is stopping and opens no more sessions.", retry_after=5.0)
        if self._places[user] >= limits.sessions_per_user:
            raise QuotaExceeded(
                f"This user has {limits.sessions_per_user} sessions open, as many as it may; close some."
            )
        if self._places.total() >= limits.sessions:
            raise QuotaExceeded(f"This agent has {limits.sessions} sessions open, as many as it may.")
        self._places[user] += 1
        self._empty.clear()

    def _give_place_back(self, user: LocalUser) -> None:
        self._places[user] -= 1
        if not self._places[user]:
            del self._places[user]
        if not self._places:
            self._empty.set()

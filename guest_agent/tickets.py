"""Session tickets on their way back to the token that holds the resumption secret.

They come after the handshake and are nobody's hurry: they go back in the background, a bounded
number at a time, and a session does not wait for them to end.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from guest_agent.broker_client import BrokerClient
from vmtoken.errors import VmTokenError

log = logging.getLogger(__name__)

MAX_UNDER_WAY: Final = 256
"""Tickets on their way at once; more are dropped, which costs a full handshake later."""


class TicketReturns:
    """Gives tickets back to the broker."""

    def __init__(self, broker: BrokerClient, timeout: float) -> None:
        self._broker = broker
        self._timeout = timeout
        self._under_way: set[asyncio.Task[bool]] = set()

    def give_back(self, session_id: bytes, message: bytes) -> asyncio.Task[bool] | None:
        """Send a ticket on its way; the task says whether the token took it. None when it is dropped."""
        if len(self._under_way) >= MAX_UNDER_WAY:
            return None
        task = asyncio.get_running_loop().create_task(self._give_back(session_id, message))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _give_back(self, session_id: bytes, message: bytes) -> bool:
        try:
            async with asyncio.timeout(self._timeout):
                accepted = await self._broker.give_back_ticket(session_id, message)
        except (VmTokenError, TimeoutError) as error:
            log.info("ticket not given back", extra={"session": session_id.hex(), "because": str(error)})
            return False
        log.debug("ticket given back", extra={"session": session_id.hex(), "accepted": accepted})
        return accepted

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

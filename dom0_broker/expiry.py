"""Certificates that end soon: said in the log once a day, and to whoever asks."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from dom0_broker.certificates import Expiry, expiries
from dom0_broker.inventory import Inventory, Token
from vmtoken.clock import Clock

log = logging.getLogger(__name__)

_AGAIN: Final = timedelta(days=1)


class ExpiryWatch:
    """Looks at chains and trust anchors of all tokens, as far as they were opened or the broker knows."""

    def __init__(self, inventory: Inventory, clock: Clock, ahead: timedelta) -> None:
        self._inventory = inventory
        self._clock = clock
        self._ahead = ahead
        self._logged: dict[tuple[str, Expiry], datetime] = {}
        """By token; of the days left only whether there are any."""

    def of(self, token: Token) -> list[Expiry]:
        """What of a token ends within the time that was configured, soonest first."""
        description = token.worker.description
        chain = description.certificate_chain if description else token.record.kept.chain
        return expiries(chain, token.record.kept.anchors, self._clock.now(), self._ahead)

    def look(self) -> None:
        """Log what was not logged within a day; to be called now and then."""
        now = self._clock.now()
        found = [(token.name, expiry) for token in self._inventory.tokens() for expiry in self.of(token)]
        recent = {key: last for key, last in self._logged.items() if now - last < _AGAIN}
        for name, expiry in found:
            key = (name, replace(expiry, days_left=0 if expiry.days_left >= 0 else -1))
            if key not in recent:
                recent[key] = now
                _say(name, expiry)
        self._logged = recent


def _say(token: str, expiry: Expiry) -> None:
    over = expiry.days_left < 0
    log.log(
        logging.ERROR if over else logging.WARNING,
        "certificate has expired" if over else "certificate expires soon",
        extra={
            "token": token,
            "what": expiry.what,
            "subject": expiry.subject,
            "not_after": expiry.not_after.isoformat(),
            "days_left": expiry.days_left,
        },
    )

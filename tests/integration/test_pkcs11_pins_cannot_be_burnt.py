"""The siege of `test_pins_cannot_be_burnt`, of PIV cards that OpenSC shows to PKCS#11.

The module tells no numbers; the cards are ours, in readers of a pcscd, and count what it really gives them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest

from dom0_broker.backends.pkcs11.uri import Pkcs11Uri
from dom0_broker.backends.registry import BackendSettings, TokenBackend
from dom0_broker.backends.software.keystore import Contents, Keystore
from tests.integration.test_pins_cannot_be_burnt import RESERVE, PivSlots, besieged
from tests.support.broker_app import broker_config
from tests.support.cards import NAME, SEALING_KEY
from tests.support.piv import SECRETS, PivHolder, personalised, piv_backend
from tests.support.pkcs11 import Pkcs11Token, opensc, opensc_locator
from vmtoken.cards.piv_codes import Slot
from vmtoken.errors import InvalidRequest

pytestmark = pytest.mark.pkcs11

ROUNDS = 100
"""Each start of a broker loads the module anew, and each login takes a dozen APDUs through pcscd."""


@dataclass
class CardsBehindOpensc(PivSlots):
    """Two keys of each card; no answer is lost on the way, since the way is that of OpenSC."""

    user: ClassVar[bytes] = SECRETS.pin.reveal()
    operator: ClassVar[bytes] = b""
    holders: dict[str, PivHolder] = field(default_factory=dict)
    module: Pkcs11Token | None = None

    @contextmanager
    def in_readers(self, directory: Path) -> Iterator[None]:
        """The cards are there."""
        for name in ("right", "wrong"):
            backend = piv_backend(directory / name)
            self.holders[name] = personalised(backend)
            personalised(backend, slot=Slot.SIGNATURE)
        with opensc(directory, *self.holders.values()) as (self.module, _):
            yield

    def backend_for(self, scheme: str, settings: BackendSettings) -> TokenBackend:
        if scheme != "pkcs11":
            raise InvalidRequest(f"There are no tokens of the scheme {scheme} here.")
        assert self.module is not None
        return self.module.new_backend(pin_reserve=settings.pin_reserve)

    def make(self, name: str) -> str:
        card, slot = self._place(name)
        assert self.module is not None
        locator = opensc_locator(self.module, self.holders[card].identity)
        return str(replace(Pkcs11Uri.parse(f"pkcs11:{locator}"), id=b"\x01" if slot == "9a" else b"\x02"))

    def restore(self, name: str) -> None:
        keystore = self.holders[self._place(name)[0]].backend._keystore(NAME)
        keystore.save(self.restored(keystore.contents))

    def _contents(self, name: str) -> Contents:
        backend = self.holders[name].backend
        return Keystore.load(backend._directory / f"{NAME}.element", SEALING_KEY).contents


@pytest.mark.parametrize("seed", [int(os.environ.get("VMTOKEN_SEED", "20261126"))])
async def test_no_try_is_lost_twice_behind_a_pkcs11_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    config = broker_config(tmp_path, pin_reserve=RESERVE, drain=0.1)
    cards = CardsBehindOpensc(config.state_dir, dice)
    cards.watch(monkeypatch)
    with cards.in_readers(tmp_path):
        await besieged(config, cards, dice, ROUNDS)
    assert len(cards.wrong) > 5, "the siege was one"

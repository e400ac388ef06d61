"""A hostile guest and a broken configuration try everything: no try of a PIN is lost twice.

Cards of one kind stand behind tokens of which the broker has right PINs, wrong ones, none, or a file. Each
PIN that a card ever compares is written down on the card's side, and its counters are read past the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import grpc.aio
import msgspec
import pytest

from dom0_broker.app import App
from dom0_broker.audit import verify
from dom0_broker.backends.base import FoundToken, Kept, Pins, PinState, TokenBackend, TokenIssuer
from dom0_broker.backends.pcsc.applications import PivUse
from dom0_broker.backends.registry import BackendSettings, backend_for
from dom0_broker.backends.software import pin as software_pin
from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import Applications, ElementOptions, SoftwareElement
from dom0_broker.backends.software.keystore import Contents, Keystore
from dom0_broker.backends.software.pin import StoredPin
from dom0_broker.backends.software.piv_store import PivSecrets
from dom0_broker.backends.software.sealing import load_sealing_key
from dom0_broker.config import BrokerConfig
from dom0_broker.store import PinRole
from tests.fakes.reader import FakeReader
from tests.support.broker_app import WEB01, Stream, agent_of, broker_config
from tests.support.cards import personalise
from tests.support.pki import client_identity
from vmtoken.cards.piv_codes import Slot
from vmtoken.errors import InvalidRequest, TokenUnavailable, VmTokenError
from vmtoken.rpc.channel import unix_channel
from vmtoken.secret import SecretBytes
from vmtoken.token import HandshakeToken
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import token_service_pb2
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

ROUNDS = 1000
RESERVE = 1
USER, OPERATOR = b"123456", b"87654321"
MANAGEMENT_KEY = SecretBytes(bytes(range(32)))
TOKENS = ("right", "wrong", "none", "file")

_PIN_COMMANDS = (0x20, 0x24, 0x2C)
"""VERIFY, CHANGE REFERENCE DATA, RESET RETRY COUNTER."""


@dataclass
class SoftCards:
    """Software elements, behind a line that can lose the answer to a PIN."""

    state: Path
    dice: random.Random
    wrong: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    """What cards compared in vain: the salt of the PIN that was right, and the one that was given."""

    loses: float = 0.0
    """Share of commands with a PIN whose answer is lost."""

    backend: SoftwareBackend | None = None
    user: ClassVar[bytes] = USER
    operator: ClassVar[bytes] = OPERATOR
    """What opens them for personalisation."""

    @functools.cached_property
    def sealing_key(self) -> SecretBytes:
        """The host's."""
        return load_sealing_key(self.state)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have each PIN that is compared written down."""
        matches = StoredPin.matches

        def compared(right: StoredPin, candidate: bytes) -> bool:
            if matches(right, candidate):
                return True
            self.wrong[right.salt, candidate] += 1
            return False

        monkeypatch.setattr(StoredPin, "matches", compared)
        monkeypatch.setattr(software_pin, "_SCRYPT_COST", 1 << 4)  # a thousand rounds in time

    def backend_for(self, scheme: str, settings: BackendSettings) -> TokenBackend:
        """What the broker uses."""
        only_soft(scheme)
        made = backend_for(scheme, settings)
        assert isinstance(made, SoftwareBackend)
        self.backend, connect = made, made.connect

        def over_a_bad_line(locator: str) -> SoftwareElement:
            element = connect(locator)
            element.transmit = self._losing(element.transmit)  # type: ignore[method-assign]
            return element

        made.connect = over_a_bad_line  # type: ignore[method-assign]
        return made

    def make(self, name: str) -> str:
        """A personalised card; its URI."""
        backend = SoftwareBackend(self.state / "elements", self.sealing_key)
        backend.create(name, Pins(SecretBytes(USER), SecretBytes(OPERATOR)))
        with contextlib.closing(backend.open_issuer(name, SecretBytes(OPERATOR))) as issuer:
            personalise(issuer, client_identity())
        return f"soft:{name}"

    def tries_left(self, name: str) -> tuple[int, int]:
        """Of user and operator PIN, as the card keeps them."""
        contents = self._contents(name)
        return contents.user_pin.tries_left, contents.operator_pin.tries_left

    def restore(self, name: str) -> None:
        """The owner gives the right PIN elsewhere: all tries of the user PIN are back."""
        assert self.backend is not None
        keystore = self.backend._keystore(name)
        keystore.save(self.restored(keystore.contents))

    def restored(self, contents: Contents) -> Contents:
        """With all tries of the user PIN."""
        return msgspec.structs.replace(contents, user_pin=contents.user_pin.restored())

    def _contents(self, name: str) -> Contents:
        return Keystore.load(self.state / f"elements/{name}.element", self.sealing_key).contents

    def _losing(self, transmit: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def lossy(command: bytes) -> bytes:
            has_pin = command[1] in _PIN_COMMANDS and len(command) > 4
            if not has_pin or self.dice.random() >= self.loses:
                return transmit(command)
            if self.dice.random() < 0.5:
                transmit(command)
            raise TokenUnavailable("The card was pulled.")

        return lossy


_PIV = ElementOptions(applications=Applications.PIV)


@dataclass
class PivCards(SoftCards):
    """PIV cards, whose keys the broker's engine makes tokens of; without readers."""

    operator: ClassVar[bytes] = MANAGEMENT_KEY.reveal().hex().encode()
    readers: dict[str, FakeReader] = field(default_factory=dict)

    def backend_for(self, scheme: str, settings: BackendSettings) -> TokenBackend:
        only_soft(scheme)
        self.backend = SoftwareBackend(settings.elements_directory, settings.sealing_key, options=_PIV)
        return _PivBackend(self, settings.pin_reserve)

    def make(self, name: str) -> str:
        secrets = PivSecrets(SecretBytes(USER), SecretBytes(OPERATOR), MANAGEMENT_KEY)
        backend = SoftwareBackend(self.state / "elements", self.sealing_key, options=_PIV)
        backend.create(name, Pins(SecretBytes(USER), SecretBytes(OPERATOR)), secrets)
        return f"soft:{name}"

    def tries_left(self, name: str) -> tuple[int, int]:
        """Of PIN and PUK."""
        piv = self._contents(name).piv
        assert piv is not None
        return piv.pin.tries_left, piv.puk.tries_left

    def restored(self, contents: Contents) -> Contents:
        piv = contents.piv
        assert piv is not None
        fresh = msgspec.structs.replace(piv, pin=piv.pin.restored(), puk=piv.puk.restored())
        return msgspec.structs.replace(contents, piv=fresh)

    def use(self, locator: str, reserve: int) -> PivUse:
        """One use of a card."""
        name, _, slot = locator.partition(";slot=")
        if name not in self.readers:
            self.readers[name] = FakeReader(functools.partial(self._insert, name), self._losing)
        return PivUse(self.readers[name].borrow(), reserve, Slot.of(slot) if slot else Slot.AUTHENTICATION)

    def _insert(self, name: str) -> SoftwareElement:
        assert self.backend is not None
        return self.backend.connect(name)


@dataclass
class PivSlots(PivCards):
    """Two keys of each PIV card, with one PIN and one counter."""

    def make(self, name: str) -> str:
        card, slot = self._place(name)
        return f"{super().make(card) if slot == '9a' else f'soft:{card}'};slot={slot}"

    def tries_left(self, name: str) -> tuple[int, int]:
        return super().tries_left(self._place(name)[0])

    def restore(self, name: str) -> None:
        super().restore(self._place(name)[0])

    def _place(self, name: str) -> tuple[str, str]:
        """Beside the right PIN stands the token without one, beside the wrong one that with a file."""
        first = {"none": "right", "file": "wrong"}.get(name)
        return (first, "9c") if first else (name, "9a")


class _PivBackend:
    """As the PC/SC backend uses PIV cards."""

    def __init__(self, cards: PivCards, reserve: int) -> None:
        self._use = functools.partial(cards.use, reserve=reserve)

    def open(self, locator: str, user_pin: SecretBytes | None, kept: Kept) -> HandshakeToken:
        return self._use(locator).token(user_pin, kept)

    def open_issuer(
        self, locator: str, operator_pin: SecretBytes | None, user_pin: SecretBytes | None = None
    ) -> TokenIssuer:
        return self._use(locator).issuer(operator_pin, user_pin)

    def pin_holder(self, locator: str) -> str:
        return f"soft:{locator.partition(';')[0]}"

    def pin_state(self, locator: str) -> PinState:
        return self._use(locator).pin_state()

    def change_user_pin(self, locator: str, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        self._use(locator).change_user_pin(old_pin, new_pin)

    def unblock_user_pin(self, locator: str, code: SecretBytes, new_pin: SecretBytes) -> None:
        self._use(locator).unblock_user_pin(code, new_pin)

    def present(self, locator: str) -> bool:
        return True

    def discover(self) -> list[FoundToken]:
        return []

    def reset(self, locator: str) -> None:
        pass

    def watch(self, changed: Callable[[], None]) -> None:
        pass

    def close(self) -> None:
        pass


def only_soft(scheme: str) -> None:
    """No reader and no module of this machine takes part."""
    if scheme != "soft":
        raise InvalidRequest(f"There are no tokens of the scheme {scheme} here.")


class Siege:
    """One broker after another on the same state, and what is done to it."""

    def __init__(self, config: BrokerConfig, cards: SoftCards, dice: random.Random) -> None:
        self.config = config
        self.cards = cards
        self.dice = dice
        self.fresh = itertools.count(10_000_000)
        self.given: list[bytes] = []
        """Wrong PINs that were given so far."""

        self.source = config.state_dir.parent / "pin"
        self.done: Counter[str] = Counter()
        self.app: App
        self.admin: AdminServiceStub
        self.guest: TokenServiceStub
        self._running = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """A broker starts."""
        self.app = App(self.config, backends=self.cards.backend_for)
        await self.app.start()
        channel = await self._running.enter_async_context(unix_channel(self.config.admin_socket))
        self.admin = AdminServiceStub(channel)
        with suppress(grpc.aio.AioRpcError):  # the VM is known from the first start on
            await self.admin.AddVm(pb.AddVmRequest(name=WEB01.name, uuid=str(WEB01.uuid)))
        self.guest = await self._running.enter_async_context(agent_of(self.app, WEB01))

    async def stop(self) -> None:
        """It ends."""
        await self._running.aclose()
        await self.app.stop()

    async def prepare(self) -> None:
        """A VM has all the tokens."""
        add = self.admin.AddToken
        pins = {
            "right": (self.cards.user, self.cards.operator),
            "wrong": (self.new_wrong(), self.new_wrong()),
        }
        for name in TOKENS:
            user, operator = pins.get(name, (b"", b""))
            uri = self.cards.make(name)
            await add(pb.AddTokenRequest(name=name, uri=uri, user_pin=user, operator_pin=operator))
            await self.admin.Bind(pb.BindRequest(vm=WEB01.name, token=name))

    def new_wrong(self) -> bytes:
        """A PIN that no card has, and that was not given before."""
        self.given.append(str(next(self.fresh)).encode())
        return self.given[-1]

    async def round(self) -> None:
        """Something is done, by whoever."""
        self.cards.loses = self.dice.choice([0, 0, 0, 0.3])
        name = self.dice.choice(TOKENS)
        action: Callable[[str], Awaitable[object]] = self.dice.choice(_ACTIONS)
        self.done[action.__name__] += 1
        with suppress(grpc.aio.AioRpcError, VmTokenError):
            await action(self, name)  # type: ignore[call-arg, arg-type]
        self.cards.loses = 0
        for token in TOKENS:
            user, operator = self.cards.tries_left(token)
            assert min(user, operator) >= RESERVE, f"{token} after {action.__name__}"

    # The guest.

    async def handshakes(self, name: str) -> None:
        await asyncio.gather(*(self._handshake(name) for _ in range(self.dice.randint(1, 3))))

    async def _handshake(self, name: str) -> None:
        stream = Stream(self.guest)
        with suppress(grpc.aio.AioRpcError):
            answer = await stream.start(token=self.dice.choice([name, name, "", "1234"]))
            if answer.HasField("flight"):
                await stream.records(self.dice.randbytes(20))
        stream.call.cancel()

    async def lists(self, name: str) -> None:
        await self.guest.ListTokens(token_service_pb2.ListTokensRequest())
        request = token_service_pb2.GetCertificateChainRequest(token=name)
        await self.guest.GetCertificateChain(request)

    # The operator, who looks.

    async def looks(self, name: str) -> None:
        await self.admin.Status(pb.StatusRequest())
        await self.admin.ListAllTokens(pb.ListAllTokensRequest(name=name))
        await self.admin.ReadTokenPins(pb.ReadTokenPinsRequest(name=name))
        async for _ in self.admin.Metrics(pb.MetricsRequest()):
            pass

    async def discovers(self, name: str) -> None:
        await self.admin.ResetToken(pb.ResetTokenRequest(name=name))
        await self.admin.DiscoverTokens(pb.DiscoverTokensRequest())

    # The operator, whose configuration is broken.

    async def sets_a_wrong_pin(self, name: str) -> None:
        role = self.dice.choice([pb.PIN_ROLE_USER, pb.PIN_ROLE_OPERATOR])
        await self.admin.SetTokenPin(pb.SetTokenPinRequest(name=name, pin=self.new_wrong(), role=role))

    async def sets_the_same_pin_again(self, name: str) -> None:
        role = self.dice.choice([pb.PIN_ROLE_USER, pb.PIN_ROLE_OPERATOR])
        pin = self.dice.choice(self.given[-8:])
        await self.admin.SetTokenPin(pb.SetTokenPinRequest(name=name, pin=pin, role=role))

    async def has_a_bad_source(self, name: str) -> None:
        content = self.dice.choice([b"", self.dice.choice(self.given), self.new_wrong()])
        self.source.write_bytes(content + b"\n")
        self.source.chmod(self.dice.choice([0o600, 0o600, 0o644]))
        await self.admin.SetTokenPinSource(pb.SetTokenPinSourceRequest(name="file", source=str(self.source)))

    async def changes(self, name: str) -> None:
        new = str(next(self.fresh)).encode()
        await self.admin.ChangeTokenPin(pb.ChangeTokenPinRequest(name=name, new_pin=new))

    async def unblocks(self, name: str) -> None:
        new, code = str(next(self.fresh)).encode(), self.dice.choice([b"", self.new_wrong()])
        await self.admin.UnblockTokenPin(pb.UnblockTokenPinRequest(name=name, code=code, new_pin=new))

    async def personalises(self, name: str) -> None:
        request = pb.CreateCertificateRequestRequest(name=name, subject="CN=x")
        with suppress(grpc.aio.AioRpcError):
            await self.admin.CreateCertificateRequest(request)
        await self.admin.InstallTrust(pb.InstallTrustRequest(name=name, anchors=[b"nonsense"]))

    async def reloads(self, name: str) -> None:
        rules = self.config.policy_dir / "20-more.policy"
        rules.write_text(self.dice.choice(["nonsense\n", "allow vm=* server=*\n"]))
        await self.admin.Reload(pb.ReloadRequest())

    async def restarts(self, name: str) -> None:
        await self.stop()
        await self.start()

    # The owner of a card, elsewhere.

    async def restores(self, name: str) -> None:
        token = self.app._desk.inventory.token(name)
        await token.worker.run_closed(lambda: self._restore(name))

    def _restore(self, name: str) -> None:
        """Not while the broker waits for the counter to tell it something."""
        with self.app._pins.turn(name):
            if self.app._pins.record(name, PinRole.USER).presented is None:
                self.cards.restore(name)


_ACTIONS = [
    *3 * [Siege.handshakes, Siege.lists, Siege.looks],
    Siege.discovers,
    *2 * [Siege.sets_a_wrong_pin, Siege.sets_the_same_pin_again],
    Siege.has_a_bad_source,
    Siege.changes,
    Siege.unblocks,
    Siege.personalises,
    Siege.reloads,
    Siege.restarts,
    Siege.restores,
]


@contextlib.asynccontextmanager
async def siege(config: BrokerConfig, cards: SoftCards, dice: random.Random) -> AsyncIterator[Siege]:
    it = Siege(config, cards, dice)
    await it.start()
    try:
        await it.prepare()
        yield it
    finally:
        await it.stop()


async def besieged(config: BrokerConfig, cards: SoftCards, dice: random.Random, rounds: int) -> Siege:
    """So many rounds, after which no PIN was compared in vain twice, nor is any in what the broker kept."""
    async with siege(config, cards, dice) as it:
        for _ in range(rounds):
            await it.round()
        twice = [candidate for (_, candidate), times in cards.wrong.items() if times > 1]
        assert not twice, "compared more than once"
    verify(config.audit_path)
    kept = b"".join(path.read_bytes() for path in config.state_dir.rglob("*") if path.is_file())
    assert not [pin for pin in it.given if pin in kept]
    return it


@pytest.mark.parametrize("kind", [SoftCards, PivCards, PivSlots], ids=["soft", "piv", "piv-slots"])
@pytest.mark.parametrize("seed", [int(os.environ.get("VMTOKEN_SEED", "20261126"))])
async def test_no_try_is_lost_twice_in_a_thousand_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[SoftCards], seed: int
) -> None:
    dice = random.Random(seed)
    config = broker_config(tmp_path, pin_reserve=RESERVE, drain=0.1)
    cards = kind(config.state_dir, dice)
    cards.watch(monkeypatch)
    it = await besieged(config, cards, dice, ROUNDS)
    assert len(cards.wrong) > 20, "the siege was one"
    assert set(it.done) == {action.__name__ for action in _ACTIONS}

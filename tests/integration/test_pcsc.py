"""What happens to cards in readers, on the real stack: pcscd with virtual readers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from dom0_broker.backends.base import Kept, Pins
from dom0_broker.backends.pcsc.backend import PcscBackend
from dom0_broker.backends.pcsc.settings import PcscdSettings
from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import ElementOptions
from dom0_broker.backends.software.vpcd import VirtualCard
from tests.fakes.slow_card import SlowCard
from tests.support.cards import NAME, PINS, SEALING_KEY, personalise
from tests.support.memory import PythonServer, python_context
from tests.support.pcsc import atr_of, pcsc_backend
from tests.support.pcscd import Pcscd, pcscd
from tests.support.piv import BOTH, SECRETS, personalised, piv_backend
from tests.support.pki import Identity, KeyKind, Usage, client_identity, pki, server_identity
from tests.support.processes import Child, ChildFailed
from tests.support.token_sessions import connect, start, talk
from tests.support.waiting import wait_until
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.piv_codes import Slot
from vmtoken.errors import Conflict, InvalidRequest, TokenNotReady, TokenUnavailable
from vmtoken.token import HandshakeToken

pytestmark = pytest.mark.pcsc

EXTENDED = ElementOptions(extended=True)
TIMEOUT = 2.0
"""Seconds after which a card counts as hung; none here needs as many milliseconds."""

HOLD_CARD = """
import sys
from smartcard.scard import *
check = lambda status: status == SCARD_S_SUCCESS or sys.exit(f"PC/SC status {status:08X}")
status, context = SCardEstablishContext(SCARD_SCOPE_SYSTEM)
check(status)
status, card, protocol = SCardConnect(context, sys.argv[1], SCARD_SHARE_SHARED, SCARD_PROTOCOL_ANY)
check(status)
print("HOLDS", flush=True)
sys.stdin.readline()
SCardDisconnect(card, SCARD_RESET_CARD)
print("GIVES BACK", flush=True)
"""
"""A program of somebody else that has the card in a reader until it is told a line."""


@dataclass
class Setting:
    """A pcscd of our own, our backend on it, and personalised elements by name."""

    directory: Path
    daemon: Pcscd
    backend: PcscBackend
    elements: SoftwareBackend

    def card(self, name: str, identity: Identity | None = None) -> SlowCard:
        """A new personalised card, in no reader yet."""
        self.elements.create(name, PINS)
        issuer = self.elements.open_issuer(name, PINS.operator)
        personalise(issuer, identity or client_identity())
        issuer.close()
        return SlowCard(self.elements.connect(name))

    def locator(self, name: str) -> str:
        return f"serial={self.elements.serial(name)}"

    def open(self, name: str) -> HandshakeToken:
        wait_until(lambda: self.backend.present(self.locator(name)))
        return self.backend.open(self.locator(name), PINS.user)

    def tries_left(self, name: str) -> int | None:
        return self.elements.pin_state(name).tries_left

    def program(self, reader: str) -> Child:
        """A program that has the card in a reader."""
        log = self.directory / "other.log"
        child = Child([sys.executable, "-c", HOLD_CARD, reader], log, environment=self.daemon.environment)
        try:
            child.wait_for("HOLDS")
        except ChildFailed:
            child.stop()
            raise
        return child


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    elements = SoftwareBackend(tmp_path / "elements", SEALING_KEY, options=EXTENDED)
    with pcscd(tmp_path, readers=4) as daemon:
        settings = PcscdSettings(str(daemon.socket_path), TIMEOUT, ("touch", str(tmp_path / "reset")))
        with pcsc_backend(settings) as backend:
            yield Setting(tmp_path, daemon, backend, elements)


ATR = atr_of(EXTENDED)


def test_card_pulled_in_the_middle_of_a_command_is_lost_at_once(setting: Setting) -> None:
    """vpcd calls that a success, with an answer of no octets."""
    card = setting.card("a")
    with setting.daemon.readers[0].holding(card, ATR) as slot:
        token = setting.open("a")
        card.hang()
        threading.Thread(target=lambda: card.hangs.wait(5) and slot.remove()).start()
        with pytest.raises(TokenUnavailable, match="'Virtual 00 00 00' was lost in the middle"):
            token.start(start(), lambda server: None)
        with pytest.raises(TokenUnavailable):
            token.abort()
        card.go_on()
        wait_until(lambda: not setting.backend.present(setting.locator("a")))
    with setting.daemon.readers[0].holding(card, ATR):
        setting.open("a").close()
    assert setting.tries_left("a") == 3


def test_card_that_is_taken_out_while_nothing_happens_is_missed(setting: Setting) -> None:
    changes = threading.Event()
    setting.backend.watch(changes.set)
    with setting.daemon.readers[0].holding(setting.card("a"), ATR) as slot:
        token = setting.open("a")
        changes.clear()
        slot.remove()
        wait_until(lambda: not setting.backend.present(setting.locator("a")))
        assert changes.is_set()
        with pytest.raises(TokenUnavailable, match="no card in the reader 'Virtual 00 00 00' any more"):
            token.abort()
        with pytest.raises(TokenUnavailable, match="is in no reader"):
            setting.backend.open(setting.locator("a"), PINS.user)


def test_card_is_found_again_in_another_reader(setting: Setting, tmp_path: Path) -> None:
    card = setting.card("a")
    for reader in setting.daemon.readers:
        with reader.holding(card, ATR):
            token = setting.open("a")
            talk(connect(token, python_context(tmp_path)))
            token.close()
        wait_until(lambda: not setting.backend.present(setting.locator("a")))


def test_cards_that_change_places_are_not_confused(setting: Setting, tmp_path: Path) -> None:
    names = ("a", "b")
    owners = {name: pki().intermediate.issue(f"{name}.example", usage=Usage.CLIENT) for name in names}
    cards = {name: setting.card(name, owners[name]) for name in names}
    left, right = setting.daemon.readers[:2]
    for order in (names, names[::-1], names):
        with left.holding(cards[order[0]], ATR), right.holding(cards[order[1]], ATR):
            for name in names:
                token = setting.open(name)
                session = connect(token, python_context(tmp_path))
                assert session.server.tls.getpeercert(binary_form=True) == owners[name].chain_der[0]
                token.close()
        wait_until(lambda: not any(setting.backend.present(setting.locator(name)) for name in names))


def test_card_that_is_replaced_behind_the_back_of_pcscd_gets_no_pin(setting: Setting) -> None:
    """pcscd looks every 0.4 seconds: who is faster is not noticed."""
    known, stranger = setting.card("a"), setting.card("b")
    reader = setting.daemon.readers[0]
    with reader.holding(known, ATR) as slot:
        setting.open("a").close()
        slot.remove()
        swapped = VirtualCard(stranger, ATR, reader.port)
        thread = threading.Thread(target=swapped.play)
        thread.start()

        def first_is_not_taken_for_second() -> None:
            with contextlib.suppress(TokenUnavailable):
                setting.backend.open(setting.locator("a"), PINS.user)
                pytest.fail("that is another card")

        wait_until(lambda: first_is_not_taken_for_second() or setting.backend.present(setting.locator("b")))
        wait_until(lambda: opens(setting, "b"))
        assert setting.tries_left("b") == 3
        swapped.remove()
        thread.join()


def test_two_cards_that_say_to_be_the_same_are_refused(setting: Setting) -> None:
    first = setting.card("a")
    left, right = setting.daemon.readers[:2]
    with left.holding(first, ATR), right.holding(setting.elements.connect("a"), ATR):
        wait_until(lambda: len([found for found in setting.backend.discover() if found.uri]) == 2)
        with pytest.raises(TokenUnavailable, match="'Virtual 00 00 00' and 'Virtual 00 00 01' all say"):
            setting.backend.open(setting.locator("a"), PINS.user)


def test_card_that_another_program_has_is_waited_for(setting: Setting) -> None:
    reader = setting.daemon.readers[0]
    with reader.holding(setting.card("a"), ATR):
        token = setting.open("a")
        token.close()
        program = setting.program(reader.name)
        with pytest.raises(TokenUnavailable, match="Another program uses the card in the reader"):
            setting.backend.open(setting.locator("a"), PINS.user)
        program.type("\n")
        program.wait_for("GIVES BACK")
        setting.open("a").close()
        program.stop()
    assert setting.tries_left("a") == 3


def test_card_that_came_while_another_program_took_it_is_read_when_it_is_free(tmp_path: Path) -> None:
    elements = SoftwareBackend(tmp_path / "elements", SEALING_KEY, options=EXTENDED)
    with pcscd(tmp_path) as daemon:
        reader = daemon.readers[0]
        elements.create("a", PINS)
        with reader.holding(elements.connect("a"), ATR):
            log = tmp_path / "other.log"
            program = Child(
                [sys.executable, "-c", HOLD_CARD, reader.name], log, environment=daemon.environment
            )
            program.wait_for("HOLDS")
            with pcsc_backend(PcscdSettings(str(daemon.socket_path))) as backend:
                wait_until(lambda: "Another program" in " ".join(each.problem for each in backend.discover()))
                program.type("\n")
                wait_until(lambda: backend.present(f"serial={elements.serial('a')}"))
            program.stop()


def test_no_other_program_gets_a_card_that_is_ours(setting: Setting) -> None:
    reader = setting.daemon.readers[0]
    with reader.holding(setting.card("a"), ATR):
        token = setting.open("a")
        with pytest.raises(AssertionError, match="8010000B"):
            setting.program(reader.name)
        token.abort()
        token.close()


def test_hung_card_is_left_alone_and_others_go_on(setting: Setting, tmp_path: Path) -> None:
    hung, well = setting.card("a"), setting.card("b")
    with (
        setting.daemon.readers[0].holding(hung, ATR) as slot,
        setting.daemon.readers[1].holding(well, ATR),
    ):
        token, other = setting.open("a"), setting.open("b")
        hung.hang()
        before = time.monotonic()
        with pytest.raises(TokenUnavailable, match="has not answered for 2 seconds"):
            token.start(start(), lambda server: None)
        assert time.monotonic() - before < 3 * TIMEOUT
        token.close()
        before = time.monotonic()
        with pytest.raises(TokenUnavailable, match="left alone until it is pulled out"):
            setting.backend.open(setting.locator("a"), PINS.user)
        assert time.monotonic() - before < TIMEOUT
        talk(connect(other, python_context(tmp_path)))
        found = {each.serial: each.problem for each in setting.backend.discover()}
        assert "has not answered" in found[setting.elements.serial("a")]
        assert not found[setting.elements.serial("b")]
        slot.remove()
        hung.go_on()
        wait_until(lambda: not setting.backend.present(setting.locator("a")))
    with setting.daemon.readers[0].holding(hung, ATR):
        wait_until(lambda: opens(setting, "a"))


def opens(setting: Setting, name: str) -> bool:
    try:
        setting.open(name).close()
    except TokenUnavailable:
        return False
    return True


def test_card_gets_more_time_for_a_key_pair(setting: Setting) -> None:
    card = setting.card("a")
    with setting.daemon.readers[0].holding(card, ATR):
        wait_until(lambda: setting.backend.present(setting.locator("a")))
        issuer = setting.backend.open_issuer(setting.locator("a"), PINS.operator)
        card.hang()
        threading.Timer(2 * TIMEOUT, card.go_on).start()
        assert issuer.generate_key(KeyAlgorithm.ECDSA_P256)
        issuer.close()


def test_card_that_answers_late_is_taken_back(setting: Setting) -> None:
    card = setting.card("a")
    with setting.daemon.readers[0].holding(card, ATR):
        token = setting.open("a")
        card.hang()
        with pytest.raises(TokenUnavailable):
            token.abort()
        card.go_on()
        wait_until(lambda: opens(setting, "a"))


def test_reset_of_a_card_that_listens_opens_it_anew(setting: Setting) -> None:
    with setting.daemon.readers[0].holding(setting.card("a"), ATR):
        setting.open("a").close()
        setting.backend.reset(setting.locator("a"))
        token = setting.open("a")
        setting.backend.reset(setting.locator("a"))
        with pytest.raises(TokenUnavailable, match="reset by the operator"):
            token.abort()
        token.close()
        setting.open("a").close()


def test_reset_of_a_hung_card_runs_the_operators_command(setting: Setting) -> None:
    card, wish = setting.card("a"), setting.directory / "reset"
    with setting.daemon.readers[0].holding(card, ATR) as slot:
        token = setting.open("a")
        card.hang()
        with pytest.raises(TokenUnavailable):
            token.abort()

        def reader_is_reset() -> None:
            wait_until(wish.exists)
            slot.remove()
            card.go_on()

        threading.Thread(target=reader_is_reset).start()
        setting.backend.reset(setting.locator("a"))
    with setting.daemon.readers[0].holding(card, ATR):
        setting.open("a").close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ((), "pull it out and put it in again, or give its pcscd a 'reset_command'"),
        (("false",), r"failed \(exit code 1\)"),
        (("/no/such/program",), r"failed \(No such file"),
        (("true",), "still hangs after the reset_command"),
    ],
)
def test_reset_that_does_not_help_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr("dom0_broker.backends.pcsc.daemon._AFTER_RESET", 0.2)
    elements = SoftwareBackend(tmp_path / "elements", SEALING_KEY, options=EXTENDED)
    elements.create("a", PINS)
    card = SlowCard(elements.connect("a"))
    with (
        pcscd(tmp_path) as daemon,
        pcsc_backend(PcscdSettings(str(daemon.socket_path), 0.3, command)) as backend,
        daemon.readers[0].holding(card, ATR),
    ):
        locator = f"serial={elements.serial('a')}"
        wait_until(lambda: backend.present(locator))
        card.hang()
        with pytest.raises(TokenUnavailable):
            backend.pin_state(locator)
        with pytest.raises(TokenUnavailable, match=said):
            backend.reset(locator)
        card.go_on()


@pytest.mark.parametrize("end", [Pcscd.stop, Pcscd.kill], ids=["stopped", "killed"])
def test_pcscd_that_ends_in_a_handshake_is_looked_for_until_it_is_back(setting: Setting, end: object) -> None:
    card = setting.card("a")
    with setting.daemon.readers[0].holding(card, ATR):
        token = setting.open("a")
        flight = token.start(start(), lambda server: None).client_flight
        records = PythonServer(python_context(setting.directory)).receive(flight)
        end(setting.daemon)  # type: ignore[operator]
        with pytest.raises(TokenUnavailable, match=r"pcscd does not answer|lost in the middle|no card"):
            token.process(records)
        token.close()
        wait_until(
            lambda: any("pcscd does not answer" in each.problem for each in setting.backend.discover())
        )
    setting.daemon.start()
    with setting.daemon.readers[0].holding(card, ATR):
        setting.open("a").close()
    assert setting.tries_left("a") == 3


def test_process_that_is_killed_is_started_again(setting: Setting) -> None:
    with setting.daemon.readers[0].holding(setting.card("a"), ATR):
        token = setting.open("a")
        pid = setting.backend._daemons[0]._process.pid
        assert pid is not None
        os.kill(pid, 9)
        with pytest.raises(TokenUnavailable):
            token.abort()
        token.close()
        wait_until(lambda: opens(setting, "a"), 20)


def test_missing_pcscd_is_said(tmp_path: Path) -> None:
    with pcsc_backend(PcscdSettings(str(tmp_path / "nobody"))) as backend:
        (found,) = backend.discover()
        assert found.problem == "pcscd does not answer; start it with 'systemctl start pcscd.socket'."
        with pytest.raises(TokenUnavailable, match=r"is in no reader.*pcscd does not answer"):
            backend.open("serial=00", None)


def test_cards_are_not_made_or_destroyed(setting: Setting) -> None:
    with pytest.raises(Conflict, match="not made or destroyed"):
        setting.backend.create("serial=00", Pins(PINS.user, PINS.operator))
    with pytest.raises(Conflict, match="not made or destroyed"):
        setting.backend.delete("serial=00")
    with pytest.raises(InvalidRequest, match="makes no sense"):
        setting.backend.open("0", None)


def test_pins_of_a_card_in_a_reader_are_changed_and_unblocked(setting: Setting) -> None:
    with setting.daemon.readers[0].holding(setting.card("a"), ATR):
        wait_until(lambda: setting.backend.present(setting.locator("a")))
        setting.backend.change_user_pin(setting.locator("a"), PINS.user, SECRETS.pin)
        setting.backend.open(setting.locator("a"), SECRETS.pin).close()
        setting.backend.unblock_user_pin(setting.locator("a"), PINS.operator, PINS.user)
        setting.open("a").close()
        assert setting.backend.pin_state(setting.locator("a")).tries_left == 3
        assert (
            setting.backend.pin_holder(setting.locator("a")) == f"pcsc:EAP-TLS {setting.elements.serial('a')}"
        )
    assert setting.backend.pin_holder("serial=00;slot=9c") == "pcsc:PIV 00"
    with pytest.raises(TokenUnavailable):
        setting.backend.pin_holder("serial=00")


def test_keys_of_one_piv_card_are_tokens_that_share_it(tmp_path: Path) -> None:
    elements = piv_backend(tmp_path / "elements", options=BOTH)
    owners = {
        "9a": personalised(elements, KeyKind.ECDSA_P256, Slot.AUTHENTICATION).identity,
        "9c": personalised(elements, KeyKind.RSA_2048, Slot.SIGNATURE).identity,
    }
    with (
        pcscd(tmp_path) as daemon,
        pcsc_backend(PcscdSettings(str(daemon.socket_path))) as backend,
        daemon.readers[0].holding(elements.connect(NAME)),
    ):
        wait_until(lambda: len(backend.discover()) == 3)
        uris = {each.uri[-2:]: each.uri.removeprefix("pcsc:") for each in backend.discover()}
        eap_tls = f"serial={elements.serial(NAME)}"
        tokens = {slot: backend.open(uris[slot], SECRETS.pin, kept(owners[slot])) for slot in owners}
        with pytest.raises(TokenUnavailable, match="in use by another token"):
            backend.open(eap_tls, PINS.user)
        with ThreadPoolExecutor() as pool:
            jobs = {
                slot: pool.submit(certificates_seen, token, tmp_path / slot, rounds=10)
                for slot, token in tokens.items()
            }
        for slot, job in jobs.items():
            assert job.result() == {owners[slot].chain_der[0]}
            tokens[slot].close()
        with pytest.raises(TokenNotReady, match="no identity yet"):
            backend.open(eap_tls, PINS.user)


def kept(identity: Identity) -> Kept:
    return Kept(tuple(identity.chain_der), (server_identity().root_der,))


def certificates_seen(token: HandshakeToken, directory: Path, rounds: int) -> set[bytes | None]:
    """What servers see of a token."""
    directory.mkdir()
    context = python_context(directory)
    return {connect(token, context).server.tls.getpeercert(binary_form=True) for _ in range(rounds)}


def test_piv_card_is_known_by_a_certificate_too(tmp_path: Path) -> None:
    elements = piv_backend(tmp_path / "elements")
    identity = personalised(elements, slot=Slot.KEY_MANAGEMENT).identity
    fingerprint = hashlib.sha256(identity.chain_der[0]).hexdigest()
    with (
        pcscd(tmp_path) as daemon,
        pcsc_backend(PcscdSettings(str(daemon.socket_path))) as backend,
        daemon.readers[0].holding(elements.connect(NAME)),
    ):
        for locator in (f"cert={fingerprint}", f"cert={fingerprint};slot=9d"):
            wait_until(lambda locator=locator: backend.present(locator))  # type: ignore[misc]
            token = backend.open(locator, SECRETS.pin, kept(identity))
            assert "9D" in token.describe().application
            token.close()
        with pytest.raises(TokenUnavailable, match="is in no reader"):
            backend.open(f"cert={fingerprint};slot=9a", SECRETS.pin)

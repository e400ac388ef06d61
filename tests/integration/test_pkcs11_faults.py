"""PKCS#11 modules that die, hang, break down or are not there; PINs that are wrong; many threads at once."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from dom0_broker.backends.pkcs11.key import Pkcs11Key
from tests.support.memory import PythonServer, python_context
from tests.support.pkcs11 import (
    LABEL,
    PIN,
    SOFTHSM,
    SPY,
    WRONG_PIN,
    Pkcs11Holder,
    Pkcs11Token,
    initialise,
    personalised,
    require,
    softhsm,
)
from tests.support.token_sessions import connect, start, talk
from tests.support.waiting import wait_until
from vmtoken.errors import InvalidRequest, PinRejected, TokenUnavailable, VmTokenError
from vmtoken.secret import SecretBytes
from vmtoken.token import HandshakeToken

pytestmark = pytest.mark.pkcs11

USER = SecretBytes(PIN)
Result = TypeVar("Result")

HEALED_WITHIN = 20.0
"""Seconds; the pauses between two starts of a process double from a quarter of a second."""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Pkcs11Holder]:
    with softhsm(tmp_path, (LABEL, "other")) as token:
        yield personalised(token)


def pid_of(holder: Pkcs11Holder) -> int:
    pid = holder.token_.backend.module_of(holder.locator).pid
    assert pid is not None
    return pid


def healed(opening: Callable[[], Result]) -> Result:
    """Open until it works, as a token's worker does."""
    deadline = time.monotonic() + HEALED_WITHIN
    while time.monotonic() < deadline:
        with suppress(TokenUnavailable):
            return opening()
        time.sleep(0.05)
    return opening()


def hang(pid: int) -> None:
    """Stop all threads of a process; the kernel takes its time."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(" T " in path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")))


def handshake(token: HandshakeToken) -> None:
    with closing(token), tempfile.TemporaryDirectory() as directory:
        talk(connect(token, python_context(Path(directory))))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "crashed"])
def test_module_that_ends_in_a_handshake_ends_that_one_only(
    holder: Pkcs11Holder, number: int, tmp_path: Path
) -> None:
    token = holder.token()
    server = PythonServer(python_context(tmp_path))
    answer = server.receive(token.start(start(), lambda server: None).client_flight)
    before = pid_of(holder)
    os.kill(before, number)
    wait_until(lambda: not Path(f"/proc/{before}").exists())
    with pytest.raises(TokenUnavailable, match=r"ended|opened anew"):
        token.process(answer)
    handshake(healed(holder.token))
    assert pid_of(holder) != before


def test_module_that_hangs_is_ended_in_time_and_heals(tmp_path: Path) -> None:
    with softhsm(tmp_path) as token:
        holder = personalised(token)
        backend = token.new_backend(timeout=1.0)
        with closing(backend.open_key(holder.locator, USER)) as key:
            pid = backend.module_of(holder.locator).pid
            assert pid is not None
            hang(pid)
            began = time.monotonic()
            with pytest.raises(TokenUnavailable, match="has not answered for 1 seconds"):
                key.sign(key.schemes[0], b"content")
            assert time.monotonic() - began < 3.0
        handshake(healed(lambda: backend.open(holder.locator, USER, holder.kept)))
        assert backend.module_of(holder.locator).pid != pid


def test_reset_loads_a_hung_module_anew_at_once(holder: Pkcs11Holder) -> None:
    hang(pid_of(holder))
    holder.token_.backend.reset(holder.locator)
    handshake(holder.token())


def test_handle_of_an_earlier_process_is_not_that_of_another_key(holder: Pkcs11Holder) -> None:
    other = personalised(holder.token_, name="another")
    with closing(holder.key()) as key:
        holder.token_.backend.reset(holder.locator)
        with closing(other.key()), pytest.raises(TokenUnavailable, match="opened anew"):
            key.sign(key.schemes[0], b"content")


def test_module_that_breaks_down_is_loaded_anew(tmp_path: Path) -> None:
    """SoftHSM without its directory says CKR_GENERAL_ERROR; when it is back, all is well."""
    with softhsm(tmp_path) as token:
        holder = personalised(token)
        backend = token.new_backend()
        (tmp_path / "tokens").rename(tmp_path / "away")
        with pytest.raises(TokenUnavailable, match="broke down"):
            backend.open(holder.locator, USER, holder.kept)
        (tmp_path / "away").rename(tmp_path / "tokens")
        handshake(healed(lambda: backend.open(holder.locator, USER, holder.kept)))


def test_library_that_is_no_module_is_said(holder: Pkcs11Holder) -> None:
    backend = holder.token_.backend
    with pytest.raises(TokenUnavailable, match=r"libz\.so.*broke down"):
        backend.open(f"{holder.locator}?module-path=/usr/lib/x86_64-linux-gnu/libz.so.1", USER)
    with pytest.raises(InvalidRequest, match="cannot be loaded"):
        backend.open(f"{holder.locator}?module-path=/usr/lib/x86_64-linux-gnu/nothing.so", USER)


# PINs ----------------------------------------------------------------------------------------------------


def test_wrong_pin_is_given_to_the_token_once(tmp_path: Path) -> None:
    """OpenSC's pkcs11-spy sits in between and writes down each call."""
    require(SPY)
    with softhsm(tmp_path) as token:
        holder = personalised(token)
        spied = spying(token, tmp_path / "spy.log")
        backend = spied.new_backend()
        wrong = SecretBytes(WRONG_PIN)
        for _ in range(5):
            with pytest.raises(PinRejected):
                backend.open(holder.locator, wrong, holder.kept)
        assert logins(tmp_path / "spy.log") == 1
        pid = backend.module_of(holder.locator).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        healed(lambda: backend.module_of(holder.locator))
        with pytest.raises(PinRejected, match="not tried again"):
            backend.open_issuer(holder.locator, None, wrong)
        with pytest.raises(PinRejected, match="not tried again"):
            backend.change_user_pin(holder.locator, wrong, USER)
        assert logins(tmp_path / "spy.log") == 1
        handshake(backend.open(holder.locator, USER, holder.kept))
        assert logins(tmp_path / "spy.log") == 2
        assert backend.module_of(holder.locator).pid != pid


def test_wrong_pin_of_many_at_once_is_given_once(tmp_path: Path) -> None:
    """As two tokens of one PIN file open at the same time."""
    require(SPY)
    with softhsm(tmp_path) as token:
        holder = personalised(token)
        backend = spying(token, tmp_path / "spy.log").new_backend()
        together = threading.Barrier(4)

        def open_it() -> None:
            together.wait()
            with pytest.raises(PinRejected):
                backend.open(holder.locator, SecretBytes(WRONG_PIN), holder.kept)

        with ThreadPoolExecutor() as pool:
            for job in [pool.submit(open_it) for _ in range(together.parties)]:
                job.result()
        assert logins(tmp_path / "spy.log") == 1


def test_operator_may_have_a_refused_pin_tried_again(holder: Pkcs11Holder) -> None:
    """The token may have got it since, by other hands."""
    backend, new = holder.token_.backend, SecretBytes(WRONG_PIN)
    with pytest.raises(PinRejected):
        backend.open(holder.locator, new)
    holder.token_.new_backend().change_user_pin(holder.locator, USER, new)
    with pytest.raises(PinRejected, match="vmtokenctl token reset"):
        backend.open(holder.locator, new)
    backend.reset(holder.locator)
    backend.open(holder.locator, new).close()


def test_wrong_pin_does_not_end_the_module(holder: Pkcs11Holder) -> None:
    before = pid_of(holder)
    with pytest.raises(PinRejected):
        holder.token_.backend.open(holder.locator, SecretBytes(WRONG_PIN))
    handshake(holder.token())
    assert pid_of(holder) == before


def test_wrong_pin_beside_one_that_is_logged_in_costs_no_try(tmp_path: Path) -> None:
    """And is not taken for right because the token is open already (CKR_USER_ALREADY_LOGGED_IN)."""
    require(SPY)
    with softhsm(tmp_path) as token:
        holder = personalised(token)
        other = personalised(token, name="another")
        backend = spying(token, tmp_path / "spy.log").new_backend()
        with closing(backend.open_key(holder.locator, USER)) as key:
            with pytest.raises(PinRejected):
                backend.open_key(other.locator, SecretBytes(WRONG_PIN))
            with closing(backend.open_key(other.locator, USER)) as second:
                assert second.sign(second.schemes[0], b"content")
            assert key.sign(key.schemes[0], b"content")
        assert logins(tmp_path / "spy.log") == 1


def test_no_pin_is_in_what_goes_wrong(holder: Pkcs11Holder) -> None:
    wrong = SecretBytes(b"very-secret-pin")
    with pytest.raises(VmTokenError) as refused:
        holder.token_.backend.open(holder.locator, wrong)
    shown = f"{refused.value!r} {refused.value.message} {refused.value.metadata}"
    assert "very-secret-pin" not in shown


def spying(token: Pkcs11Token, log: Path) -> Pkcs11Token:
    environment = {**token.environment, "PKCS11SPY": str(SOFTHSM), "PKCS11SPY_OUTPUT": str(log)}
    return replace(token, library=SPY, environment=environment)


def logins(log: Path) -> int:
    return log.read_text().count(": C_Login\n")


# Many at once -----------------------------------------------------------------------------------------------


def test_two_tokens_of_one_module_with_pins_of_their_own(holder: Pkcs11Holder) -> None:
    initialise(holder.token_, "second", b"8765")
    second = personalised(replace(holder.token_, label="second", pin=b"8765"))
    backend = holder.token_.backend
    with pytest.raises(PinRejected):
        backend.open_key(holder.locator, SecretBytes(b"8765"))
    with pytest.raises(PinRejected):
        backend.open_key(second.locator, USER)
    with closing(holder.key()) as one, closing(second.key()) as two:
        for _ in range(3):
            assert one.sign(one.schemes[0], b"content")
            assert two.sign(two.schemes[0], b"content")
        assert set(one.certificate_chain) != set(two.certificate_chain)


def test_threads_share_a_module_without_harm(holder: Pkcs11Holder) -> None:
    """python-pkcs11 initialises modules for one thread: two at once had CKR_GENERAL_ERROR before long."""
    keys = [holder.key(), personalised(holder.token_, name="another").key(), holder.key()]

    def sign_often(key: Pkcs11Key) -> None:
        for _ in range(300):
            key.sign(key.schemes[0], b"content")

    with ThreadPoolExecutor() as pool:
        for job in [pool.submit(sign_often, key) for key in keys]:
            job.result()
    for key in keys:
        key.close()


def test_login_ends_with_the_last_key(tmp_path: Path) -> None:
    require(SPY)
    with softhsm(tmp_path) as token:
        holder = personalised(token)
        backend = spying(token, tmp_path / "spy.log").new_backend()
        first, second = (backend.open_key(holder.locator, USER) for _ in range(2))
        first.close()
        assert second.sign(second.schemes[0], b"content")
        assert ": C_Logout\n" not in (tmp_path / "spy.log").read_text()
        second.close()
        assert (tmp_path / "spy.log").read_text().count(": C_Logout\n") == 1


def test_watch_tells_of_tokens_that_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dom0_broker.backends.pkcs11.backend._POLL", 0.1)
    changed = threading.Event()
    with softhsm(tmp_path) as token:
        holder = personalised(token)
        backend = token.new_backend()
        backend.watch(changed.set)
        assert not changed.wait(0.3)
        with suppress(TokenUnavailable):
            backend.pin_state(holder.locator)
        assert changed.wait(5.0)
        assert backend.present(holder.locator)
        assert not backend.present("token=elsewhere")


def test_what_is_present_is_told_without_waiting_for_a_module(holder: Pkcs11Holder) -> None:
    """It is asked where everybody else waits, so a module that hangs must not matter."""
    backend = holder.token_.backend
    hang(pid_of(holder))
    began = time.monotonic()
    assert backend.present(holder.locator)
    assert not holder.token_.new_backend().present(holder.locator)
    assert time.monotonic() - began < 5  # a call would take until its deadline of 25

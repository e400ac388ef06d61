from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from dom0_broker.sessions import ENOUGH_RESUMPTIONS, LONGEST_LIFETIME, Purpose, Session, Sessions, Summary
from tests.fakes.clock import FixedClock
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import CertificateMode, Resumption, ServerIdentity

A, B = uuid.UUID(int=1), uuid.UUID(int=2)
PURPOSE = Purpose("web", "server.example", 443, ("h2",), ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3)
SERVER = ServerIdentity("server.example", (b"\x01" * 32,), b"leaf")


def resumption(handle: bytes, *, single_use: bool = True, lifetime: int = 3600) -> Resumption:
    return Resumption(handle, SERVER, ProtocolVersion.TLS_1_3, lifetime, single_use)


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def sessions(clock: FixedClock) -> Sessions:
    return Sessions(per_vm=3, clock=clock, history=2)


def handles(sessions: Sessions, vm: uuid.UUID, purpose: Purpose = PURPOSE) -> list[bytes]:
    return [each.handle for each in sessions.candidates(vm, purpose)]


def test_newest_comes_first_and_is_gone_when_it_is_for_single_use(sessions: Sessions) -> None:
    sessions.keep(A, PURPOSE, resumption(b"1", single_use=False))
    sessions.keep(A, PURPOSE, resumption(b"2"))
    assert next(sessions.candidates(A, PURPOSE)).handle == b"2"
    assert handles(sessions, A) == [b"1"]
    assert handles(sessions, A) == [b"1"]


@pytest.mark.parametrize(
    "other",
    [
        Purpose("pay", "server.example", 443, ("h2",), PURPOSE.min_version, PURPOSE.max_version),
        Purpose("web", "other.example", 443, ("h2",), PURPOSE.min_version, PURPOSE.max_version),
        Purpose("web", "server.example", 8443, ("h2",), PURPOSE.min_version, PURPOSE.max_version),
        Purpose("web", "server.example", 443, (), PURPOSE.min_version, PURPOSE.max_version),
        Purpose("web", "server.example", 443, ("h2",), PURPOSE.max_version, PURPOSE.max_version),
    ],
)
def test_another_purpose_or_vm_does_not_resume(sessions: Sessions, other: Purpose) -> None:
    sessions.keep(A, PURPOSE, resumption(b"1"))
    assert handles(sessions, A, other) == []
    assert handles(sessions, B) == []
    assert handles(sessions, A) == [b"1"]


def test_expired_ones_are_dropped_and_no_lifetime_is_longer_than_ours(
    sessions: Sessions, clock: FixedClock
) -> None:
    sessions.keep(A, PURPOSE, resumption(b"short", lifetime=10))
    sessions.keep(A, PURPOSE, resumption(b"week", lifetime=7 * 86400))
    clock.seconds = 10
    assert handles(sessions, A) == [b"week"]
    sessions.keep(A, PURPOSE, resumption(b"week", lifetime=7 * 86400))
    clock.seconds += LONGEST_LIFETIME
    assert handles(sessions, A) == []


def test_each_vm_is_bounded_by_itself(sessions: Sessions) -> None:
    sessions.keep(B, PURPOSE, resumption(b"other"))
    for number in range(10):
        sessions.keep(A, PURPOSE, resumption(bytes([number])))
        sessions.begin(A, bytes([number]), Session(PURPOSE, b"s"))
    assert handles(sessions, A) == [b"\x09", b"\x08", b"\x07"]
    assert handles(sessions, B) == [b"other"]
    assert sessions.session(A, b"\x06") is None
    assert sessions.session(A, b"\x07") is not None


def test_tickets_of_a_session_are_for_its_vm_and_counted(sessions: Sessions) -> None:
    sessions.begin(A, b"id", Session(PURPOSE, b"s", tickets_left=1))
    assert sessions.session(B, b"id") is None
    session = sessions.session(A, b"id")
    assert session is not None
    session.tickets_left -= 1
    assert sessions.session(A, b"id") is None


def test_what_is_forgotten_is_gone(sessions: Sessions) -> None:
    for vm in (A, B):
        sessions.keep(vm, PURPOSE, resumption(b"1", single_use=False))
        sessions.begin(vm, b"id", Session(PURPOSE, b"s"))
    sessions.drop(A, PURPOSE, b"1")
    assert (handles(sessions, A), handles(sessions, B)) == ([], [b"1"])
    sessions.forget_vm(A)
    assert sessions.session(A, b"id") is None
    sessions.forget_token("other")
    assert sessions.session(B, b"id") is not None
    sessions.forget_token("web")
    assert (sessions.session(B, b"id"), handles(sessions, B)) == (None, [])


def test_history_is_bounded_newest_first_and_by_vm(sessions: Sessions, clock: FixedClock) -> None:
    for vm, name in ((A, "a"), (A, "b"), (B, "c")):
        summary = Summary(name.encode(), clock.now(), name, vm, "web", "server.example", 443, "complete")
        sessions.note(summary)
    assert [each.vm for each in sessions.history(10)] == ["c", "b"]
    assert [each.vm for each in sessions.history(1)] == ["c"]
    assert [each.vm for each in sessions.history(10, A)] == ["b"]


def test_no_more_sessions_are_wanted_than_can_be_of_use(clock: FixedClock) -> None:
    sessions = Sessions(per_vm=16, clock=clock)
    assert sessions.wanted(A, PURPOSE) == ENOUGH_RESUMPTIONS
    for number in range(ENOUGH_RESUMPTIONS):
        sessions.keep(A, PURPOSE, resumption(bytes([number])))
    assert sessions.wanted(A, PURPOSE) == 0
    next(sessions.candidates(A, PURPOSE))
    assert sessions.wanted(A, PURPOSE) == 1
    clock.seconds = 3600 / 2
    assert sessions.wanted(A, PURPOSE) == ENOUGH_RESUMPTIONS


def test_session_that_can_be_resumed_is_seen_and_stays(sessions: Sessions, clock: FixedClock) -> None:
    assert not sessions.resumable(A, PURPOSE)
    sessions.keep(A, replace(PURPOSE, certificate=CertificateMode.ALWAYS), resumption(b"1"))
    assert [sessions.resumable(A, PURPOSE) for _ in range(2)] == [True, True]
    assert not sessions.resumable(B, PURPOSE)
    assert not sessions.resumable(A, replace(PURPOSE, token="card-2"))
    clock.seconds += 3601
    assert not sessions.resumable(A, PURPOSE)

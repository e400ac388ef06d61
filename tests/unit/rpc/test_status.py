"""Errors cross the wire and come back as the same class with the same facts."""

from __future__ import annotations

import pytest

from vmtoken.errors import PinRejected, Reason, VmTokenError, rebuilt
from vmtoken.rpc.convert import error_from_pb, error_to_pb
from vmtoken.rpc.status import STATUS_CODES


def test_every_reason_has_a_status_code_and_a_class() -> None:
    assert set(STATUS_CODES) == set(Reason)
    assert {VmTokenError.for_reason(reason).reason for reason in Reason} == set(Reason)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.PIN_REJECTED])
def test_an_error_in_a_stream_comes_back_as_it_was(reason: Reason) -> None:
    sent = VmTokenError.for_reason(reason)("it went wrong.", retry_after=1.5, token="web01")
    received = error_from_pb(error_to_pb(sent))
    assert type(received) is type(sent)
    assert (received.message, received.metadata, received.retry_after) == (
        "it went wrong.",
        {"token": "web01"},
        1.5,
    )


def test_retries_left_survive() -> None:
    received = error_from_pb(error_to_pb(PinRejected("wrong PIN.", retries_left=2)))
    assert isinstance(received, PinRejected)
    assert received.retries_left == 2


def test_a_reason_that_we_do_not_know_is_an_internal_error() -> None:
    assert rebuilt("NEW_IN_VERSION_9", "?", {}, None).reason is Reason.INTERNAL

"""What is known of PINs, as the operator gets it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from dom0_broker.pin_records import is_kept
from dom0_broker.store import NO_PIN, PinRecord, PinRole
from vmtoken.v1 import admin_service_pb2 as pb

_ROLES = {PinRole.USER: pb.PIN_ROLE_USER, PinRole.OPERATOR: pb.PIN_ROLE_OPERATOR}


def convert_pins(pins: Mapping[PinRole, PinRecord]) -> Iterator[pb.PinStatus]:
    """One status a PIN of which anything is known."""
    for role, record in pins.items():
        if record != NO_PIN:
            yield _status(role, record)


def convert_roles(roles: Iterable[PinRole]) -> Iterator[pb.PinRole.ValueType]:
    """Which PINs."""
    return (_ROLES[role] for role in roles)


def _status(role: PinRole, record: PinRecord) -> pb.PinStatus:
    status = pb.PinStatus(
        role=_ROLES[role],
        condition=_condition(record),
        source=record.source,
        tries_left=record.tries_left,
        tries=record.tries,
    )
    if record.told_at is not None:
        told = Timestamp()
        told.FromNanoseconds(int(record.told_at * 1e9))
        status.told.CopyFrom(told)
    return status


def _condition(record: PinRecord) -> pb.PinCondition.ValueType:
    if record.presented is not None or (record.pending is not None and record.sealed is not None):
        return pb.PIN_CONDITION_IN_DOUBT
    if record.rejected:
        return pb.PIN_CONDITION_REJECTED
    if record.accepted:
        return pb.PIN_CONDITION_ACCEPTED
    return pb.PIN_CONDITION_UNTRIED if is_kept(record) else pb.PIN_CONDITION_UNSPECIFIED

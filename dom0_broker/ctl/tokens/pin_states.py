"""What is known of PINs, in words."""

from __future__ import annotations

import time
from datetime import UTC

from dom0_broker.ctl.output import Row, moment
from vmtoken.v1 import admin_service_pb2 as pb


def tries(pin: pb.PinStatus | None) -> str:
    """`2/3`: left, and of how many; empty when the token never told."""
    if pin is None or not pin.HasField("tries_left"):
        return ""
    return f"{pin.tries_left}/{pin.tries}" if pin.HasField("tries") else str(pin.tries_left)


def pin_line(pin: pb.PinStatus) -> str:
    """One PIN in a line."""
    left = f", {tries(pin)} tries, told {_age(pin)} ago" if pin.HasField("told") else ""
    source = f" from {pin.source}" if pin.source else ""
    return f"{_role(pin)} {_condition(pin)}{source}{left}"


def pin_row(pin: pb.PinStatus) -> Row:
    """One PIN, for a table."""
    return {
        "pin": _role(pin),
        "state": _condition(pin),
        "tries": tries(pin),
        "tries_left": pin.tries_left if pin.HasField("tries_left") else None,
        "told": moment(pin.told.ToDatetime(UTC)) if pin.HasField("told") else "",
        "source": pin.source,
    }


def alarms(token: pb.TokenStatus) -> list[str]:
    """What an operator should look at."""
    return [f"{token.name}: {pin_line(pin)}" for pin in token.pins if _is_alarming(pin)]


def _is_alarming(pin: pb.PinStatus) -> bool:
    """Rejected, or with fewer tries than a right PIN leaves."""
    fell = pin.HasField("tries_left") and pin.HasField("tries") and pin.tries_left < pin.tries
    return fell or pin.condition == pb.PIN_CONDITION_REJECTED


def _role(pin: pb.PinStatus) -> str:
    return "operator" if pin.role == pb.PIN_ROLE_OPERATOR else "user"


def _condition(pin: pb.PinStatus) -> str:
    if pin.condition == pb.PIN_CONDITION_UNSPECIFIED:
        return "not kept"
    return pb.PinCondition.Name(pin.condition).removeprefix("PIN_CONDITION_").lower().replace("_", " ")


def _age(pin: pb.PinStatus) -> str:
    seconds = max(0, round(time.time() - pin.told.ToNanoseconds() / 1e9))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"

"""What was found, as the operator gets it."""

from __future__ import annotations

from dom0_broker.backends.base import FoundToken
from dom0_broker.inventory import Token
from vmtoken.v1 import admin_service_pb2 as pb


def convert_found(found: FoundToken, token: Token | None) -> pb.FoundToken:
    """With the certificate that the token shows when it is open, where it is told under its PIN only."""
    return pb.FoundToken(
        uri=found.uri,
        place=found.place,
        atr=found.atr,
        application=found.application,
        serial=found.serial,
        capabilities=found.capabilities,
        certificate=found.certificate or (token is not None and token.leaf) or b"",
        pin_tries_left=found.pin.tries_left,
        problem=found.problem,
        token=token.name if token is not None else "",
    )

"""What a guest can say and hear, by the descriptors of the services that it can reach."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor

from vmtoken.v1 import admin_service_pb2, tls_service_pb2, token_service_pb2

_WORDS = {"pin", "pins", "puk", "passphrase", "password", "passcode"}


def fields_of(service: ServiceDescriptor) -> Iterator[FieldDescriptor]:
    """Every field that a call of the service can carry, in either direction."""
    seen: set[str] = set()
    todo = [each for method in service.methods for each in (method.input_type, method.output_type)]
    while todo:
        message: Descriptor = todo.pop()
        if message.full_name not in seen:
            seen.add(message.full_name)
            yield from message.fields
            todo += [field.message_type for field in message.fields if field.message_type]


def speaks_of_pins(field: FieldDescriptor) -> bool:
    return bool(_WORDS & set(field.name.split("_")))


@pytest.mark.parametrize(
    "service",
    [
        token_service_pb2.DESCRIPTOR.services_by_name["TokenService"],
        tls_service_pb2.DESCRIPTOR.services_by_name["TlsService"],
    ],
    ids=lambda service: service.name,
)
def test_nothing_in_the_guests_api_carries_a_pin(service: ServiceDescriptor) -> None:
    names = [field.full_name for field in fields_of(service)]
    assert len(names) > 20
    assert not [field.full_name for field in fields_of(service) if speaks_of_pins(field)]


def test_operators_api_shows_that_the_walk_finds_pins_and_that_they_are_redacted() -> None:
    service = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
    found = [field for field in fields_of(service) if speaks_of_pins(field)]
    carrying = {field.full_name for field in found if field.type == FieldDescriptor.TYPE_BYTES}
    assert len(carrying) >= 5
    assert all(field.GetOptions().debug_redact for field in found if field.full_name in carrying)

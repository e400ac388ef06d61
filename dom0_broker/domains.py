"""Who a caller is: a VM, known by its UUID."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from vmtoken.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class DomainIdentity:
    """A VM. The UUID decides; the name is for people and may change."""

    uuid: uuid.UUID
    name: str

    def __str__(self) -> str:
        return self.name


def checked_name(untrusted_name: str, what: str) -> str:
    """The name, if it is one: letters, digits, dots, hyphens, underscores, at most 63 octets.

    It becomes part of paths and of policy lines, so a name never looks like an option, a
    hidden file or a UUID. Raises `InvalidRequest`.
    """
    if not _NAME.fullmatch(untrusted_name):
        raise InvalidRequest(
            f"A {what} cannot have the name '{untrusted_name}'; use up to 63 letters, digits, dots, hyphens "
            "and underscores, beginning with a letter or digit."
        )
    if parsed_uuid(untrusted_name) is not None:
        raise InvalidRequest(f"A {what} cannot have a name of the form of a UUID.")
    return untrusted_name


def parsed_uuid(text: str) -> uuid.UUID | None:
    """The UUID that the text is in its usual form (RFC 9562 section 4), or None."""
    try:
        value = uuid.UUID(text)
    except ValueError:
        return None
    return value if text.lower() == str(value) else None

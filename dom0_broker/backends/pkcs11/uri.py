"""PKCS#11 URIs (RFC 7512): which token and which object in it, and where its PIN lies."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from vmtoken.errors import InvalidRequest

SCHEME: Final = "pkcs11"

_MAX_LENGTH: Final = 2048
"""Characters of a URI: every attribute of section 2.3 at its longest takes about half of them."""

_PATH_CHARACTERS: Final = ":[]@!$'()*+,=&"
"""`pk11-path-res-avail` (section 2.3), which needs no percent sign; unreserved characters neither."""

_QUERY_CHARACTERS: Final = ":[]@!$'()*+,=/?|"
"""`pk11-query-res-avail`."""

_UNRESERVED: Final = string.ascii_letters + string.digits + "-._~"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_VERSION: Final = re.compile(r"\d{1,3}(\.\d{1,3})?")
_SLOT_ID: Final = re.compile(r"\d{1,19}")

OBJECT_TYPES: Final = ("public", "private", "cert", "secret-key", "data")


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """The attributes that are there; None: not given, so anything matches (section 2.5)."""

    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    library_manufacturer: str | None = None
    library_version: str | None = None
    library_description: str | None = None
    object: str | None = None
    type: str | None = None
    id: bytes | None = None
    slot_manufacturer: str | None = None
    slot_description: str | None = None
    slot_id: str | None = None
    pin_source: str | None = None
    module_name: str | None = None
    module_path: str | None = None
    vendor: Mapping[str, str] = field(default_factory=dict)
    """Attributes of the path that no standard knows; they are kept, and mean nothing here."""

    vendor_query: tuple[tuple[str, str], ...] = ()
    """Those of the query, which may repeat (section 2.3)."""

    @classmethod
    def parse(cls, uri: str) -> Pkcs11Uri:
        """Raises `InvalidRequest` with a sentence that never shows a PIN."""
        scheme, colon, rest = uri.partition(":")
        if not colon or scheme.lower() != SCHEME:
            raise _wrong("it does not begin with 'pkcs11:'")
        if len(uri) > _MAX_LENGTH:
            raise _wrong(f"it is longer than {_MAX_LENGTH} characters")
        path, _, query = rest.partition("?")
        values: dict[str, Any] = {"vendor": {}, "vendor_query": ()}
        for name, value in _attributes(path, ";", _PATH_CHARACTERS):
            _put_path(values, name, value)
        for name, value in _attributes(query, "&", _QUERY_CHARACTERS):
            _put_query(values, name, value)
        return cls(**values)

    def __str__(self) -> str:
        """The URI again, in the order of section 2.3."""
        path = [*self._known(_PATH, _PATH_CHARACTERS), *_encoded(self.vendor.items(), _PATH_CHARACTERS)]
        query = [*self._known(_QUERY, _QUERY_CHARACTERS), *_encoded(self.vendor_query, _QUERY_CHARACTERS)]
        return f"{SCHEME}:{';'.join(path)}{'?' if query else ''}{'&'.join(query)}"

    @property
    def names_a_token(self) -> bool:
        """Whether label or serial number say which token is meant."""
        return self.token is not None or bool(self.serial)

    def matches_token(self, *, token: str, manufacturer: str, serial: str, model: str) -> bool:
        """Whether it may be this token: what is given must be equal (section 2.5)."""
        pairs = (
            (self.token, token),
            (self.manufacturer, manufacturer),
            (self.serial, serial),
            (self.model, model),
        )
        return all(wanted is None or wanted == found for wanted, found in pairs)

    def matches_library(self, *, manufacturer: str, description: str, version: tuple[int, int]) -> bool:
        """Whether it may be a token of this library; a version without minor number means any."""
        pairs = ((self.library_manufacturer, manufacturer), (self.library_description, description))
        if any(wanted is not None and wanted != found for wanted, found in pairs):
            return False
        if self.library_version is None:
            return True
        wanted = [int(number) for number in self.library_version.split(".")]
        return list(version[: len(wanted)]) == wanted

    def _known(self, names: Mapping[str, Any], free: str) -> Iterator[str]:
        for name in names:
            value = getattr(self, _field(name))
            if isinstance(value, bytes):  # an identifier is no text: every octet is encoded
                yield f"{name}={''.join(f'%{octet:02X}' for octet in value)}"
            elif value is not None:
                yield from _encoded([(name, value)], free)


def _put_path(values: dict[str, Any], name: str, value: bytes) -> None:
    _refuse_pin(name)
    if name in _QUERY:
        raise _wrong(f"the attribute '{name}' belongs behind a question mark")
    known = _PATH.get(name)
    if _field(name) in values or name in values["vendor"]:
        raise _wrong(f"the attribute '{name}' is there twice")
    if known is None:
        values["vendor"][name] = _text(name, value)
    else:
        values[_field(name)] = known(name, value)


def _put_query(values: dict[str, Any], name: str, value: bytes) -> None:
    _refuse_pin(name)
    known = _QUERY.get(name)
    if known is None:
        values["vendor_query"] += ((name, _text(name, value)),)
    elif _field(name) in values:
        raise _wrong(f"the attribute '{name}' is there twice")
    else:
        values[_field(name)] = known(name, value)


def _attributes(component: str, separator: str, free: str) -> Iterator[tuple[str, bytes]]:
    """Name and decoded value of each attribute of the path or the query."""
    if not component:
        return
    allowed = frozenset(_UNRESERVED + free + "%")
    for untrusted_attribute in component.split(separator):
        name, equals, value = untrusted_attribute.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise _wrong("an attribute is not NAME=VALUE")
        if not allowed.issuperset(value) or _BAD_PERCENT.search(value):
            raise _wrong(f"the value of '{name}' holds a character that has to be written as %XX")
        yield name, unquote_to_bytes(value)


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _wrong(f"the value of '{name}' is not UTF-8") from None


def _octets(name: str, value: bytes) -> bytes:
    return value


def _object_type(name: str, value: bytes) -> str:
    text = _text(name, value)
    if text not in OBJECT_TYPES:
        raise _wrong(f"'type' is none of {', '.join(OBJECT_TYPES)}")
    return text


def _matching(pattern: re.Pattern[str], meaning: str) -> Callable[[str, bytes], str]:
    def check(name: str, value: bytes) -> str:
        text = _text(name, value)
        if not pattern.fullmatch(text):
            raise _wrong(f"'{name}' is not {meaning}")
        return text

    return check


def _field(name: str) -> str:
    return name.replace("-", "_")


def _encoded(pairs: Any, free: str) -> list[str]:
    return [f"{name}={quote(value, safe=free)}" for name, value in pairs]


def _refuse_pin(name: str) -> None:
    if name == "pin-value":
        raise InvalidRequest(
            "A PIN does not belong into a PKCS#11 URI, where everybody reads it (pin-value): use pin-source, "
            "or 'vmtokenctl token pin set'."
        )


def _wrong(what: str) -> InvalidRequest:
    return InvalidRequest(f"The PKCS#11 URI is not one of RFC 7512: {what}.")


_PATH: Final[dict[str, Callable[[str, bytes], Any]]] = {
    "token": _text,
    "manufacturer": _text,
    "serial": _text,
    "model": _text,
    "library-manufacturer": _text,
    "library-version": _matching(_VERSION, "a version such as 2.40"),
    "library-description": _text,
    "object": _text,
    "type": _object_type,
    "id": _octets,
    "slot-manufacturer": _text,
    "slot-description": _text,
    "slot-id": _matching(_SLOT_ID, "a number"),
}

_QUERY: Final[dict[str, Callable[[str, bytes], Any]]] = {
    "pin-source": _text,
    "module-name": _text,
    "module-path": _text,
}

from __future__ import annotations

import pytest

from vmtoken.tls import errors
from vmtoken.tls.codes import AlertDescription, ExtensionType, HandshakeType, name_of
from vmtoken.tls.errors import (
    AlertReceived,
    LocalError,
    MissingExtension,
    PeerError,
    UnexpectedMessage,
    UnsupportedExtension,
)

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, PeerError | LocalError) and value is not PeerError
]


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_of_the_peer_names_its_alert(error: type[PeerError]) -> None:
    assert isinstance(error.alert, AlertDescription)
    assert error.alert != AlertDescription.CLOSE_NOTIFY


def test_what_came_and_what_was_expected() -> None:
    error = UnexpectedMessage(
        HandshakeType.FINISHED, [HandshakeType.CERTIFICATE, HandshakeType.CERTIFICATE_REQUEST]
    )
    assert str(error) == "FINISHED came, expected CERTIFICATE or CERTIFICATE_REQUEST"
    assert str(UnexpectedMessage(99)) == "0x0063 came"
    assert str(UnexpectedMessage("a second HelloRetryRequest")) == "a second HelloRetryRequest came"


def test_alerts_have_names() -> None:
    assert str(AlertReceived(2, 48)).endswith("alert UNKNOWN_CA")
    assert str(AlertReceived(2, 200)).endswith("alert 0x00c8")
    assert AlertReceived(2, 48).is_fatal
    assert AlertReceived(0, 48).is_fatal
    assert not AlertReceived(1, 90).is_fatal


def test_extensions_have_names() -> None:
    assert "COOKIE" in str(UnsupportedExtension(ExtensionType.COOKIE))
    assert "KEY_SHARE" in str(MissingExtension(ExtensionType.KEY_SHARE))
    assert name_of(ExtensionType, 0x1A1A) == "0x1a1a"

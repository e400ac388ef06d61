"""Sessions as values, and servers that do strange things to resumptions."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.fakes.tls_server import FakeServer12, FakeServer13
from tests.support.memory import Client, config, trust
from tests.support.pki import DAY, NOW, Authority, pki, server_identity
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import AlertDescription, CipherSuite, ExtensionType, HandshakeType, ProtocolVersion
from vmtoken.tls.config import TrustStore
from vmtoken.tls.errors import MalformedMessage, TlsError, UnexpectedMessage
from vmtoken.tls.extensions import Extensions, OfferedPsks, SelectedPsk, SessionTicket
from vmtoken.tls.key_schedule import EarlySecret
from vmtoken.tls.messages import (
    Certificate12,
    ClientHello,
    KeyUpdate,
    NewSessionTicket13,
    decode_message,
    encode_message,
)
from vmtoken.tls.tickets import MAX_LIFETIME, ResumableSession, ResumptionSecret
from vmtoken.tls.transcript import TranscriptBuffer

TLS12, TLS13 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3
A, H = AlertDescription, HandshakeType


def finished_client(server: FakeServer13 | FakeServer12, **changes: object) -> Client:
    client = Client(config(**changes))
    server.receive_hello(client.connection.data_to_send())
    answer = client.receive(server.whole_flight())
    if isinstance(server, FakeServer12) and server.session is None:
        server.receive_key_exchange(answer)
        client.receive(server.whole_flight())
    elif isinstance(server, FakeServer13):
        server.finish(answer)
    assert client.complete
    return client


def resumption(**changes: object) -> ResumptionSecret:
    found = finished_client(FakeServer13(), **changes).connection.resumption()
    assert found is not None
    return found


def ticket(**changes: object) -> bytes:
    fields = {"ticket_lifetime": 7200, "ticket_age_add": 2**32 - 1000, "ticket_nonce": b"\0", "ticket": b"t"}
    return encode_message(NewSessionTicket13(**(fields | changes)))


def session13(**changes: object) -> ResumableSession:
    session = resumption().session(ticket(**changes), NOW)
    assert session is not None
    return session


def session12() -> ResumableSession:
    session = finished_client(FakeServer12(ticket=b"ticket")).connection.session()
    assert session is not None
    return session


def hello_of(client: Client) -> tuple[ClientHello, bytes]:
    encoded = bytes(client.connection.data_to_send())[5:]
    hello = decode_message(encoded)
    assert isinstance(hello, ClientHello)
    return hello, encoded


def test_a_ticket_becomes_a_session() -> None:
    session = session13()
    assert session.version is TLS13
    assert session.single_use
    assert session.lifetime == 7200
    assert session.client_certificate_sent
    assert session.server.path == (*server_identity().chain_der, server_identity().root_der)


def test_a_lifetime_is_at_most_a_week() -> None:
    assert session13(ticket_lifetime=2**32 - 1).lifetime == MAX_LIFETIME


def test_a_ticket_without_lifetime_is_dropped() -> None:
    assert resumption().session(ticket(ticket_lifetime=0), NOW) is None


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (encode_message(KeyUpdate(0)), UnexpectedMessage),
        (ticket()[:-1], MalformedMessage),
        (ticket() + b"\0", MalformedMessage),
        (ticket(ticket=b""), MalformedMessage),
        (b"", MalformedMessage),
    ],
)
def test_what_is_no_ticket_is_refused(message: bytes, error: type[TlsError]) -> None:
    with pytest.raises(error):
        resumption().session(message, NOW)


def test_tickets_with_other_nonces_have_other_secrets() -> None:
    secret = resumption()
    first = secret.session(ticket(ticket_nonce=b"1"), NOW)
    second = secret.session(ticket(ticket_nonce=b"2"), NOW)
    assert first is not None
    assert second is not None
    assert first.secret != second.secret


def test_a_session_outlives_the_secret_that_made_it() -> None:
    secret = resumption()
    session = secret.session(ticket(), NOW)
    assert session is not None
    before = session.secret.reveal()
    secret.wipe()
    assert session.secret.reveal() == before
    assert len(secret.secret) == 0


def test_the_age_of_a_ticket_is_hidden() -> None:
    session = session13()
    later = NOW + timedelta(seconds=3, milliseconds=5)
    assert session.obfuscated_age(later) == (3005 + 2**32 - 1000) % 2**32


def test_secrets_do_not_print() -> None:
    for value in (session13(), session12(), resumption()):
        assert value.secret.reveal().hex() not in repr(value)
        assert "ticket'" not in repr(value)


# What is offered


def test_the_psk_is_last_and_its_binder_fits() -> None:
    session = session13()
    hello, encoded = hello_of(Client(config(session=session)))
    offered = hello.extensions.items[-1]
    assert isinstance(offered, OfferedPsks)
    assert offered.identities[0].identity == b"t"
    suite = resumption().suite
    digest = TranscriptBuffer().digest_with(suite, encoded[: -hello.binders_length])
    assert offered.binders == (EarlySecret(suite, session.secret.reveal()).binder(digest),)


def test_a_tls_1_2_ticket_goes_with_a_session_id() -> None:
    hello, _ = hello_of(Client(config(session=session12(), max_version=TLS12)))
    assert hello.extensions.find(SessionTicket) == SessionTicket(b"ticket")
    assert len(hello.legacy_session_id) == 32


NOT_USABLE = {
    "too old": lambda: {"time": NOW + timedelta(hours=2)},
    "of the future": lambda: {"time": NOW - timedelta(seconds=1)},
    "without the hash": lambda: {"cipher_suites": (CipherSuite.TLS_AES_256_GCM_SHA384,)},
    "without the version": lambda: {"max_version": TLS12},
    "other anchors": lambda: {"trust": TrustStore([Authority.self_signed().certificate_der])},
}


@pytest.mark.parametrize("case", NOT_USABLE, ids=str)
def test_a_session_that_does_not_hold_is_not_offered(case: str) -> None:
    client = Client(config(**({"session": session13()} | NOT_USABLE[case]())))
    assert ExtensionType.PRE_SHARED_KEY not in hello_of(client)[0].extensions


def test_a_session_does_not_outlive_the_certificates() -> None:
    session = session13(ticket_lifetime=2**32 - 1)
    expiry = session.server.valid_until
    session = replace(session, created=expiry - timedelta(seconds=10))
    assert session.is_usable(expiry, trust())
    assert not session.is_usable(expiry + timedelta(seconds=1), trust())


def test_a_session_is_for_its_server_name_alone() -> None:
    with pytest.raises(ValueError, match="is one with server"):
        config(session=session13(), server_name="localhost")


def test_a_session_without_our_certificate_does_not_do_where_it_is_required() -> None:
    session = replace(session13(), client_certificate_sent=False)
    client = Client(config(session=session, require_client_certificate=True))
    assert ExtensionType.PRE_SHARED_KEY not in hello_of(client)[0].extensions


# What servers make of it


@pytest.mark.parametrize(
    "suite", [CipherSuite.TLS_AES_128_GCM_SHA256, CipherSuite.TLS_CHACHA20_POLY1305_SHA256]
)
def test_a_psk_is_good_for_every_suite_with_its_hash(suite: CipherSuite) -> None:
    session = session13()
    complete = finished_client(FakeServer13(session=session, suite=suite), session=session).complete
    assert complete is not None
    assert complete.resumed
    assert complete.server is session.server


def refuses(server: FakeServer13 | FakeServer12, session: ResumableSession, alert: AlertDescription) -> None:
    with pytest.raises(TlsError) as caught:
        finished_client(server, session=session)
    assert getattr(caught.value, "alert", None) is alert


def test_a_psk_of_another_hash_is_refused() -> None:
    session = session13()
    server = FakeServer13(session=session, suite=CipherSuite.TLS_AES_256_GCM_SHA384)
    refuses(server, session, A.ILLEGAL_PARAMETER)


def test_a_psk_that_was_not_offered_is_refused() -> None:
    def choose_second(message):
        kept = tuple(item for item in message.extensions if not isinstance(item, SelectedPsk))
        return replace(message, extensions=Extensions((*kept, SelectedPsk(1))))

    session = session13()
    server = FakeServer13(session=session, changes={H.SERVER_HELLO: choose_second})
    refuses(server, session, A.ILLEGAL_PARAMETER)


def test_a_server_that_does_not_know_the_psk_is_refused() -> None:
    session = session13()
    wrong = replace(session, secret=SecretBytes(bytes(32)))
    with pytest.raises(TlsError):
        finished_client(FakeServer13(session=wrong), session=session)


def test_a_certificate_in_a_resumption_is_refused() -> None:
    session = session13()
    stray = Certificate12(())  # of either version: it is not its turn
    server = FakeServer13(session=session, changes={H.FINISHED: lambda m: [encode_message(stray), m]})
    with pytest.raises(TlsError):
        finished_client(server, session=session)


def test_tls_1_2_resumes_with_a_ticket_and_may_renew_it() -> None:
    session = session12()
    renewed = finished_client(
        FakeServer12(session=session, ticket=b"new"), session=session
    ).connection.session()
    assert renewed is not None
    assert renewed.ticket == b"new"
    assert renewed.created == session.created
    assert renewed.secret == session.secret


def test_tls_1_2_may_not_change_the_suite_of_a_session() -> None:
    session = session12()
    suite = CipherSuite.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
    refuses(FakeServer12(session=session, suite=suite), session, A.ILLEGAL_PARAMETER)


def test_a_tls_1_2_server_that_does_not_know_the_master_secret_is_refused() -> None:
    session = session12()
    wrong = replace(session, secret=SecretBytes(bytes(48)))
    refuses(FakeServer12(session=wrong), session, A.BAD_RECORD_MAC)


def test_a_tls_1_2_server_may_do_the_full_handshake_instead() -> None:
    client = finished_client(FakeServer12(ticket=b"fresh"), session=session12())
    assert client.complete is not None
    assert not client.complete.resumed


def test_a_hint_limits_the_lifetime_of_a_tls_1_2_session() -> None:
    assert session12().lifetime == 3600


def test_a_session_that_cannot_be_named_is_none() -> None:
    assert finished_client(FakeServer12()).connection.session() is None
    assert finished_client(FakeServer12(session_id=b"id")).connection.session() is not None


def test_a_revoked_anchor_ends_sessions() -> None:
    assert session13().is_usable(NOW, trust())
    others = TrustStore([Authority.self_signed().certificate_der, pki().intermediate.certificate_der])
    assert not session13().is_usable(NOW, others)
    assert not session13().is_usable(NOW + 8 * DAY, trust())

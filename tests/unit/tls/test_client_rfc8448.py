"""The connection in the place of the client of RFC 8448: what it sends is what the RFC shows, byte for byte.

The ClientHello is the one of the trace, since its extensions are not ours; everything behind it is the
engine's. Path validation is left out: the certificate has an RSA key of 1024 bits and no name.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.support.memory import config
from tests.support.pki import NOW
from tests.support.tls13_traces import Step, trace
from vmtoken.tls import signatures
from vmtoken.tls.certificates import CertificateVerifier, CertifiedKey, VerifiedPath
from vmtoken.tls.client import ClientConnection
from vmtoken.tls.codes import CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme
from vmtoken.tls.config import Credential
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.events import (
    Closed,
    DataReceived,
    HandshakeComplete,
    NeedData,
    ServerAuthenticated,
    SignatureNeeded,
    TicketReceived,
)
from vmtoken.tls.hello import ExpectServerHello
from vmtoken.tls.key_exchange import EcdhKeyExchange, KeyExchange, X25519KeyExchange
from vmtoken.tls.messages import Certificate13, CertificateVerify, ClientHello, decode_message
from vmtoken.tls.offer import Offer
from vmtoken.tls.suites import suite_of
from vmtoken.tls.transcript import TranscriptBuffer

TLS13 = ProtocolVersion.TLS_1_3
SUITE = suite_of(CipherSuite.TLS_AES_128_GCM_SHA256)
assert SUITE is not None


@pytest.fixture(autouse=True)
def _without_path_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(self: CertificateVerifier, chain: tuple[bytes, ...], staples: object) -> CertifiedKey:
        certificates = [x509.load_der_x509_certificate(certificate) for certificate in chain]
        return CertifiedKey(VerifiedPath.of(self.server_name, certificates))

    monkeypatch.setattr(CertificateVerifier, "verify", verify)
    monkeypatch.setattr(signatures, "MIN_RSA_BITS", 1024)


class Trace:
    """The steps of a trace, found by who and what."""

    def __init__(self, name: str) -> None:
        self.steps = trace(name)

    def find(self, side: str, action: str) -> list[Step]:
        return [step for step in self.steps if step.side == side and step.action.startswith(action)]

    def records(self, side: str) -> list[bytes]:
        return [step["complete record"] for step in self.find(side, "send ")]

    def secret(self, label: str) -> bytes:
        return next(
            step["expanded"] for step in self.steps if f'derive secret "tls13 {label}"' in step.action
        )


def share(step: Step) -> KeyExchange:
    private = step["private key"]
    if "x25519" in step.action:
        return X25519KeyExchange.of(X25519PrivateKey.from_private_bytes(private))
    key = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())
    return EcdhKeyExchange(NamedGroup.SECP256R1, key, step["public key"])


def connect(trace: Trace, credential: Credential | None = None) -> ClientConnection:
    """A connection that has sent the last ClientHello of the trace."""
    hellos = [step.message for step in trace.find("client", "construct a ClientHello")]
    hello = decode_message(hellos[-1])
    assert isinstance(hello, ClientHello)
    settings = config(server_name="server", min_version=TLS13, credential=credential)
    connection = ClientConnection(settings)
    connection.data_to_send()
    offer = replace(
        Offer.make(settings, bytes),
        random=hello.random,
        session_id=hello.legacy_session_id,
        shares=(share(trace.find("client", "create an ephemeral")[-1]),),
        retried=len(hellos) > 1 or not hello.legacy_session_id,
    )
    transcript = TranscriptBuffer()
    transcript.add(hellos[0])
    if len(hellos) > 1:
        transcript.replace_by_hash(SUITE)
        transcript.add(trace.find("server", "construct a ServerHello")[0].message)
        transcript.add(hellos[1])
    connection._state = ExpectServerHello(offer, transcript, SUITE if len(hellos) > 1 else None)
    return connection


def run(connection: ClientConnection, records: list[bytes], signature: bytes = b"") -> HandshakeComplete:
    authenticated = False
    for record in records:
        connection.receive_data(record)
    while not isinstance(event := connection.next_event(), HandshakeComplete):
        match event:
            case ServerAuthenticated():
                authenticated = True
            case SignatureNeeded(scheme):
                connection.provide_signature(scheme, signature)
            case NeedData():
                raise AssertionError("the trace is not enough")
    assert authenticated
    return event


def test_simple_1_rtt_with_ticket_data_and_close() -> None:
    """Section 3."""
    trace = Trace("simple-1-rtt")
    connection = connect(trace)
    hello, flight, ticket, data, close = trace.records("server")
    _, finished, client_data, client_close = trace.records("client")
    complete = run(connection, [hello, flight])
    assert complete.group is NamedGroup.X25519
    assert connection.data_to_send() == finished
    resumption, keys = connection.resumption(), connection.key_block()
    assert keys.client_secret.reveal() == trace.secret("c ap traffic")
    assert keys.server_secret.reveal() == trace.secret("s ap traffic")
    session = DelegatedConnection(keys)
    session.receive_data(ticket + data + close)
    received = session.next_event()
    assert isinstance(received, TicketReceived)
    assert resumption is not None
    resumable = resumption.session(received.message, NOW)
    assert resumable is not None
    assert resumable.secret.reveal() == trace.find("server", "generate resumption secret")[0]["expanded"]
    payload = trace.find("client", "send application_data")[0]["payload"]
    assert session.next_event() == DataReceived(trace.find("server", "send application_data")[0]["payload"])
    assert session.next_event() == Closed()
    session.send_data(payload)
    session.close()
    assert session.data_to_send() == client_data + client_close


def test_the_engine_goes_on_with_the_record_layer() -> None:
    """Section 3 again, without handing the keys over."""
    trace = Trace("simple-1-rtt")
    connection = connect(trace)
    records = trace.records("server")
    run(connection, records)  # what is behind the handshake may come with it
    _, finished, client_data, client_close = trace.records("client")
    assert isinstance(connection.next_event(), TicketReceived)
    assert isinstance(connection.next_event(), DataReceived)
    connection.send_data(trace.find("client", "send application_data")[0]["payload"])
    connection.close()
    assert connection.data_to_send() == finished + client_data + client_close


def test_hello_retry_request() -> None:
    """Section 5, from the second ClientHello on."""
    trace = Trace("hello-retry-request")
    connection = connect(trace)
    _, hello, flight, *_ = trace.records("server")
    complete = run(connection, [hello, flight])
    assert complete.group is NamedGroup.SECP256R1
    assert connection.data_to_send() == trace.records("client")[2]
    assert connection.key_block().client_secret.reveal() == trace.secret("c ap traffic")


def test_client_authentication() -> None:
    """Section 6, with the client's signature out of the trace."""
    trace = Trace("client-authentication")
    certificate = decode_message(trace.find("client", "construct a Certificate h")[0].message, TLS13)
    proof = decode_message(trace.find("client", "construct a CertificateVerify")[0].message, TLS13)
    assert isinstance(certificate, Certificate13)
    assert isinstance(proof, CertificateVerify)
    credential = Credential(certificate.chain, (SignatureScheme(proof.algorithm),))
    connection = connect(trace, credential)
    hello, flight, *_ = trace.records("server")
    assert run(connection, [hello, flight], proof.signature).client_certificate_sent
    assert connection.data_to_send() == trace.records("client")[1]


def test_compatibility_mode() -> None:
    """Section 7: a session id, and a change_cipher_spec before the client's flight."""
    trace = Trace("compatibility-mode")
    connection = connect(trace)
    hello, change_cipher_spec, flight, _ = trace.records("server")
    run(connection, [hello, change_cipher_spec, flight])
    assert connection.data_to_send() == b"".join(trace.records("client")[1:3])

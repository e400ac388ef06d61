"""The traces of RFC 8448, byte for byte: key schedule, messages, transcripts and records."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.support.tls13_traces import TRACES, Step, steps, trace
from vmtoken.tls.codes import CipherSuite, ContentType, HandshakeType, ProtocolVersion
from vmtoken.tls.errors import MalformedMessage
from vmtoken.tls.extensions import OfferedPsks
from vmtoken.tls.key_schedule import (
    EarlySecret,
    HandshakeSecret,
    MasterSecret,
    derive_secret,
    expand_label,
    finished_verify_data,
    ticket_psk,
    traffic_keys,
)
from vmtoken.tls.messages import ClientHello, HelloRetryRequest, decode_message, encode_message
from vmtoken.tls.record import Alert, NoProtection, RecordProtection, record_protection
from vmtoken.tls.suites import suite_of
from vmtoken.tls.transcript import TranscriptBuffer

SUITE = suite_of(CipherSuite.TLS_AES_128_GCM_SHA256)
assert SUITE is not None


def cases(*beginnings: str) -> list[object]:
    found = [pytest.param(step, id=name) for name, step in steps(*beginnings)]
    assert found
    return found


@pytest.mark.parametrize("step", cases("derive secret"))
def test_secret_is_derived(step: Step) -> None:
    assert derive_secret(SUITE, step["PRK"], step.label, step["hash"]) == step["expanded"]


@pytest.mark.parametrize("step", cases("derive write traffic keys", "derive read traffic keys"))
def test_traffic_keys_are_derived(step: Step) -> None:
    assert traffic_keys(SUITE, step["PRK"]) == (step["key expanded"], step["iv expanded"])


@pytest.mark.parametrize("step", cases("calculate finished", "calculate PSK binder"))
def test_finished_key_is_derived(step: Step) -> None:
    assert expand_label(SUITE, step["PRK"], b"finished", b"", 32) == step["expanded"]


@pytest.mark.parametrize("step", cases("construct"))
def test_message_is_decoded_and_encoded_again(step: Step) -> None:
    if lacks_binders(step.message):
        with pytest.raises(MalformedMessage, match="missing"):
            decode_message(step.message)
        return
    message = decode_message(step.message, ProtocolVersion.TLS_1_3)
    (name,) = step.values
    expected = "ServerHello" if isinstance(message, HelloRetryRequest) else type(message).__name__
    assert expected.removesuffix("13") == name
    assert encode_message(message) == step.message


def lacks_binders(message: bytes) -> bool:
    """RFC 8448 section 4 constructs the ClientHello before its binder."""
    return int.from_bytes(message[1:4], "big") > len(message) - 4


def test_ticket_gives_the_psk_of_the_resumption() -> None:
    (made,) = (step for step in trace("simple-1-rtt") if step.action.startswith("generate resumption"))
    psk = ticket_psk(SUITE, made["PRK"], made["hash"])
    assert psk == made["expanded"]
    early = next(step for step in trace("resumed-0-rtt") if step.action.startswith("extract"))
    assert psk == early["IKM"]


@pytest.mark.parametrize("name", TRACES)
def test_whole_trace(name: str) -> None:
    replay = Replay()
    done = [replay.take(step) for step in trace(name)]
    assert done.count("record") >= 6
    assert (done.count("stage"), done.count("secret")) == (3, 6)


@dataclass
class Replay:
    """Runs our classes along a trace and compares whatever the trace shows.

    0-RTT data is sent with the keys that the trace gives: we never send any.
    """

    buffer: TranscriptBuffer = field(default_factory=TranscriptBuffer)
    stage: EarlySecret | HandshakeSecret | MasterSecret | None = None
    after_server_finished: bytes = b""
    writing: dict[str, RecordProtection] = field(
        default_factory=lambda: {"client": NoProtection(), "server": NoProtection()}
    )
    installed: dict[str, RecordProtection] = field(default_factory=dict)
    handshake_secrets: dict[str, bytes] = field(default_factory=dict)

    def take(self, step: Step) -> str:
        action = step.action
        if action.startswith("construct"):
            return self.message(step)
        if action.startswith("extract"):
            return self.extract(step)
        if action.startswith("derive secret"):
            return self.secret(step)
        if action.startswith("calculate PSK binder"):
            return self.binder(step)
        if action.startswith("calculate finished"):
            return self.finished(step)
        if action.startswith("derive write traffic keys"):
            self.installed[step.side] = record_protection(SUITE, step["PRK"])
            return "keys"
        if action.startswith("derive read traffic keys"):
            writer = "client" if step.side == "server" else "server"
            self.installed[writer] = record_protection(SUITE, step["PRK"])
            return "keys"
        if action.startswith("send"):
            return self.record(step)
        return ""

    def message(self, step: Step) -> str:
        if step.message[0] == HandshakeType.NEW_SESSION_TICKET:
            return ""
        if lacks_binders(step.message):
            return ""  # what is sent holds them
        message = decode_message(step.message, ProtocolVersion.TLS_1_3)
        if isinstance(message, HelloRetryRequest):
            self.buffer.replace_by_hash(SUITE)
        self.buffer.add(step.message)
        if step.message[0] == HandshakeType.FINISHED and step.side == "server":
            self.after_server_finished = self.buffer.digest(SUITE)
        return "message"

    def extract(self, step: Step) -> str:
        if '"early"' in step.action:
            psk = step["IKM"]
            self.stage = EarlySecret(SUITE, psk if any(psk) else None)
        elif '"handshake"' in step.action:
            assert isinstance(self.stage, EarlySecret)
            self.stage = self.stage.handshake_secret(step["IKM"])
        else:
            assert isinstance(self.stage, HandshakeSecret)
            self.stage = self.stage.master_secret()
        assert self.stage._secret == step["secret"]
        return "stage"

    def secret(self, step: Step) -> str:
        label = step.label
        if label in (b"derived", b"c e traffic", b"e exp master"):
            return ""  # shown by the next stage, and early data that we never send
        if label in (b"c hs traffic", b"s hs traffic"):
            assert isinstance(self.stage, HandshakeSecret)
            side = "client" if label.startswith(b"c") else "server"
            derive = (
                self.stage.client_traffic_secret if side == "client" else self.stage.server_traffic_secret
            )
            digest = self.buffer.digest(SUITE)
            self.handshake_secrets[side] = derive(digest)
            assert (digest, self.handshake_secrets[side]) == (step["hash"], step["expanded"])
            return "secret"
        assert isinstance(self.stage, MasterSecret)
        derive, digest = {
            b"c ap traffic": (self.stage.client_traffic_secret, self.after_server_finished),
            b"s ap traffic": (self.stage.server_traffic_secret, self.after_server_finished),
            b"exp master": (self.stage.exporter_secret, self.after_server_finished),
            b"res master": (self.stage.resumption_secret, self.buffer.digest(SUITE)),
        }[label]
        assert (digest, derive(digest)) == (step["hash"], step["expanded"])
        return "secret"

    def binder(self, step: Step) -> str:
        assert isinstance(self.stage, EarlySecret)
        digest = self.buffer.digest_with(SUITE, step["ClientHello prefix"])
        assert (digest, self.stage.binder(digest)) == (step["binder hash"], step["finished"])
        return "binder"

    def finished(self, step: Step) -> str:
        transcript = self.buffer.transcript(SUITE)
        verify_data = finished_verify_data(SUITE, self.handshake_secrets[step.side], transcript.digest())
        assert verify_data == step["finished"]
        return "finished"

    def record(self, step: Step) -> str:
        if "change_cipher_spec" in step.action:
            return ""
        content_type = next(
            kind
            for word, kind in (
                ("handshake", ContentType.HANDSHAKE),
                ("application_data", ContentType.APPLICATION_DATA),
                ("alert", ContentType.ALERT),
            )
            if f"send {word}" in step.action
        )
        payload, expected = step["payload"], step["complete record"]
        self.note_sent_hello(payload, content_type)
        self.install(step.side, expected)
        protection = self.writing[step.side]
        before = protection.sequence
        assert protection.protect(content_type, payload) == expected
        self.read_back(protection, before, content_type, payload, expected)
        if content_type == ContentType.ALERT:
            assert Alert.decode(payload).encode() == payload
        return "record"

    def note_sent_hello(self, payload: bytes, content_type: ContentType) -> None:
        """The ClientHello with its binder, which only the record shows."""
        if content_type == ContentType.HANDSHAKE and payload[0] == HandshakeType.CLIENT_HELLO:
            hello = decode_message(payload)
            assert isinstance(hello, ClientHello)
            if hello.extensions.find(OfferedPsks):
                assert encode_message(hello) == payload
                self.buffer.add(payload)

    def install(self, side: str, record: bytes) -> None:
        """Keys derived since are those of the next record that is encrypted."""
        if record[0] == ContentType.APPLICATION_DATA and side in self.installed:
            self.writing[side] = self.installed.pop(side)

    def read_back(
        self, protection: RecordProtection, sequence: int, kind: ContentType, payload: bytes, record: bytes
    ) -> None:
        if isinstance(protection, NoProtection):
            assert protection.unprotect(record) == (kind, payload)
            return
        protection._sequence = sequence
        assert protection.unprotect(record) == (kind, payload)

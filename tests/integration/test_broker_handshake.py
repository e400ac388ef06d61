"""A broker with fake cards, called as agents call it: over the socket of a VM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from dom0_broker.app import App
from dom0_broker.audit import verify
from dom0_broker.config import BrokerConfig
from tests.fakes.token import ALERT, TICKET
from tests.support.broker_app import (
    WEB01,
    WEB02,
    Cards,
    Stream,
    agent_of,
    broker_config,
    populate,
    running,
)
from vmtoken.errors import TokenUnavailable
from vmtoken.rpc.status import from_rpc_error
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import Assurance
from vmtoken.v1 import token_pb2
from vmtoken.v1 import token_service_pb2 as pb


def records_of(config: BrokerConfig) -> list[dict[str, object]]:
    """The audit log of a broker that has stopped; its chain is whole."""
    verify(config.audit_path)
    return [json.loads(line) for line in config.audit_path.read_text().splitlines()]


def events_of(config: BrokerConfig) -> list[object]:
    """What the audit log says about handshakes."""
    return [record["event"] for record in records_of(config) if str(record["event"]).startswith("handshake")]


async def test_handshake_over_the_socket_of_a_vm(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, WEB02, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        hello = await stream.start("Server.Example.", alpn=["h2"])
        flight = await stream.records(b"server flight")
        answer = await stream.records(b"server finished")
        result = answer.result
        again = await stream.handshake()
    assert hello.flight.records == b"ClientHello server.example"
    assert flight.flight.records == b"client flight"
    assert result.key_block.client_secret == b"c" * 32
    assert (result.token, result.alpn, result.resumed) == ("web", "h2", False)
    assert result.assurance == token_pb2.ASSURANCE_SOFTWARE
    assert len(result.session_id) == 16
    assert (hello.cost.apdus, flight.cost.apdus, answer.cost.apdu_octets) == (1, 1, 100)
    assert again.result.session_id != result.session_id
    assert events_of(config) == ["handshake-allowed", "handshake-complete"] * 2
    complete = records_of(config)[2]
    assert complete["session"] == result.session_id.hex()
    assert complete["cipher_suite"] == "TLS_AES_128_GCM_SHA256"
    assert b"c" * 32 not in config.audit_path.read_bytes()


async def test_policy_is_asked_before_the_client_flight_leaves(tmp_path: Path) -> None:
    config = broker_config(tmp_path, policy="allow vm=web01 server=good.example")
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        await stream.start("evil.example")
        failure = (await stream.records(b"server flight")).failure
        allowed = await stream.handshake("good.example")
    assert (failure.error.reason, failure.error.metadata["rule"]) == ("POLICY_DENIED", "default")
    assert failure.records == ALERT
    assert allowed.HasField("result")
    assert events_of(config) == ["handshake-denied", "handshake-allowed", "handshake-complete"]


async def test_assurance_below_the_minimum_is_denied(tmp_path: Path) -> None:
    config = broker_config(tmp_path, policy="allow vm=* server=* assurance=card-signature")
    populate(config, WEB01, tokens={"web": [WEB01]})
    cards = Cards()
    async with running(config, cards) as app, agent_of(app, WEB01) as stub:
        denied = await Stream(stub).handshake()
        cards.script("web").assurance = Assurance.CARD_HANDSHAKE
        allowed = await Stream(stub).handshake()
    assert denied.failure.error.reason == "POLICY_DENIED"
    assert allowed.result.assurance == token_pb2.ASSURANCE_CARD_HANDSHAKE


async def test_token_that_does_not_ask_gives_no_key_block(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    cards = Cards()
    cards.script("web").asks = False
    async with running(config, cards) as app, agent_of(app, WEB01) as stub:
        answer = await Stream(stub).handshake()
    assert answer.failure.error.reason == "INTERNAL"
    assert events_of(config) == ["handshake-failed"]


async def test_two_vms_never_see_each_others_tokens(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, WEB02, tokens={"one": [WEB01], "two": [WEB02]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as web01, agent_of(app, WEB02) as web02:
        listed = [
            [token.name for token in (await stub.ListTokens(pb.ListTokensRequest())).tokens]
            for stub in (web01, web02)
        ]
        stolen = await Stream(web01).start(token="two")
        with pytest.raises(grpc.aio.AioRpcError) as chain:
            await web01.GetCertificateChain(pb.GetCertificateChainRequest(token="two"))
        session = (await Stream(web02).handshake()).result.session_id
        ticket = await Stream(web01).step(
            pb.HandshakeRequest(ticket=pb.SessionTicket(session_id=session, message=TICKET))
        )
    assert listed == [["one"], ["two"]]
    assert stolen.failure.error.reason == "TOKEN_NOT_FOUND"
    assert "two" not in stolen.failure.error.message.replace("no token 'two'", "")
    assert from_rpc_error(chain.value).reason == "TOKEN_NOT_FOUND"
    assert not ticket.ticket.accepted


@pytest.mark.parametrize("version", [ProtocolVersion.TLS_1_3, ProtocolVersion.TLS_1_2])
async def test_session_is_resumed_for_the_same_purpose_only(tmp_path: Path, version: ProtocolVersion) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, WEB02, tokens={"web": [WEB01, WEB02]})
    cards = Cards()
    cards.script("web").version = version
    async with running(config, cards) as app, agent_of(app, WEB01) as web01, agent_of(app, WEB02) as web02:
        stream = Stream(web01)
        first = (await stream.handshake(alpn=["h2"])).result
        if version is ProtocolVersion.TLS_1_3:
            ticket = pb.SessionTicket(session_id=first.session_id, message=TICKET)
            assert (await stream.step(pb.HandshakeRequest(ticket=ticket))).ticket.accepted
        others = [
            (await stream.handshake("other.example", alpn=["h2"])).result.resumed,
            (await stream.handshake(alpn=["http/1.1"])).result.resumed,
            (await stream.handshake(alpn=["h2"], no_resumption=True)).result.resumed,
            (await Stream(web02).handshake(alpn=["h2"])).result.resumed,
        ]
        resumed = [(await stream.handshake(alpn=["h2"])).result.resumed for _ in range(2)]
    assert others == [False] * 4
    assert resumed == [True, version is ProtocolVersion.TLS_1_2]  # a ticket of TLS 1.3 is for one use


async def test_session_that_policy_would_refuse_today_is_not_resumed(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    cards = Cards()
    async with running(config, cards) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        first = (await stream.handshake()).result
        ticket = pb.SessionTicket(session_id=first.session_id, message=TICKET)
        await stream.step(pb.HandshakeRequest(ticket=ticket))
        pin = "02" * 32
        (config.policy_dir / "05-no.policy").write_text(f"deny vm=* server=* ca=sha256:{pin}\n")
        await app.reload()
        cards.script("web").spki_sha256 = (b"\x01" * 32, b"\x09" * 32)  # the server has another CA now
        answer = await stream.handshake()
    assert answer.HasField("result")
    assert not answer.result.resumed
    assert "resumption-denied" in [record["event"] for record in records_of(config)]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"timeout": 0}, "timeout"),
        ({"server_name": ""}, "server name"),
        ({"server_name": "bücher.example"}, "server name"),
        ({"server_name": "a" * 300}, "server name"),
        ({"server_name": "*.example"}, "server name"),
        ({"alpn": [""]}, "ALPN"),
        ({"alpn": ["x" * 256]}, "ALPN"),
        ({"min_version": 772, "max_version": 771}, "version"),
    ],
)
async def test_start_that_makes_no_sense_is_refused_and_the_stream_goes_on(
    tmp_path: Path, fields: dict[str, object], word: str
) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    cards, begun = Cards(), []
    cards.script("web").before["start"] = lambda: begun.append("a handshake")
    async with running(config, cards) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        refused = await stream.start(**fields)  # type: ignore[arg-type]
        assert not begun
        assert (await stream.handshake()).HasField("result")
    assert refused.failure.error.reason == "INVALID_REQUEST"
    assert word in refused.failure.error.message


async def test_steps_out_of_order_end_the_stream(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        early = Stream(stub)
        with pytest.raises(grpc.aio.AioRpcError, match="no handshake is under way"):
            await early.records(b"server flight")
        twice = Stream(stub)
        await twice.start()
        with pytest.raises(grpc.aio.AioRpcError, match="A handshake is under way"):
            await twice.start()
        assert (await Stream(stub).handshake()).HasField("result")  # nothing held the token


async def test_handshake_that_the_agent_gives_up_frees_the_token(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        await stream.start()
        await stream.call.write(pb.HandshakeRequest(abort=pb.HandshakeAbort()))
        assert (await stream.handshake()).HasField("result")
        await stream.start()
        stream.call.cancel()
        assert (await Stream(stub).handshake(timeout=5)).HasField("result")
    outcomes = [
        record.get("outcome") for record in records_of(config) if record["event"] == "handshake-failed"
    ]
    assert outcomes == ["aborted", "aborted"]


async def test_handshake_without_progress_loses_the_token_at_its_deadline(tmp_path: Path) -> None:
    config = broker_config(tmp_path, token_hold=0.1)
    populate(config, WEB01, WEB02, tokens={"web": [WEB01, WEB02]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as web01, agent_of(app, WEB02) as web02:
        slow = Stream(web01)
        await slow.start(timeout=30)
        other = await Stream(web02).handshake(timeout=5)
        late = await slow.records(b"server flight")
        again = await slow.handshake()
    assert other.HasField("result")
    assert late.failure.error.reason == "DEADLINE_EXCEEDED"
    assert again.HasField("result")


async def test_waiting_past_the_deadline_is_refused_with_a_hint(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, WEB02, tokens={"web": [WEB01, WEB02]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as web01, agent_of(app, WEB02) as web02:
        holder = Stream(web01)
        await holder.start(timeout=30)
        refused = await Stream(web02).start(timeout=0.05)
        assert (await holder.records(b"server flight")).HasField("flight")
        assert (await holder.records(b"server finished")).HasField("result")
    assert refused.failure.error.reason == "TOKEN_BUSY"
    assert refused.failure.error.HasField("retry_after")


async def test_quota_of_a_vm_does_not_touch_another(tmp_path: Path) -> None:
    config = broker_config(tmp_path, vm_handshakes=3)
    populate(config, WEB01, WEB02, tokens={"one": [WEB01], "two": [WEB02]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as web01, agent_of(app, WEB02) as web02:
        streams = [Stream(web01) for _ in range(3)]
        await streams[0].start()
        waiting = [asyncio.create_task(stream.start()) for stream in streams[1:]]
        while app.waiting("one") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        refused = await Stream(web01).start()
        other = await Stream(web02).handshake()
        streams[0].call.cancel()
        first = await waiting[0]
        streams[1].call.cancel()
        await waiting[1]
    assert refused.failure.error.reason == "QUOTA_EXCEEDED"
    assert other.HasField("result")
    assert first.HasField("flight")


async def test_hung_card_of_one_vm_does_not_stall_another(tmp_path: Path) -> None:
    config = broker_config(tmp_path, card_timeout=0.2)
    populate(config, WEB01, WEB02, tokens={"one": [WEB01], "two": [WEB02]})
    cards, gate = Cards(), threading.Event()
    cards.script("one").before["start"] = gate.wait  # type: ignore[assignment]
    async with running(config, cards) as app, agent_of(app, WEB01) as web01, agent_of(app, WEB02) as web02:
        hung = asyncio.create_task(Stream(web01).start())
        for _ in range(5):
            assert (await Stream(web02).handshake()).HasField("result")
        answer = await hung
        (described,) = (await web01.ListTokens(pb.ListTokensRequest())).tokens
        gate.set()
        while not (await web01.ListTokens(pb.ListTokensRequest())).tokens[0].ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await Stream(web01).handshake()).HasField("result")
    assert answer.failure.error.reason == "TOKEN_UNAVAILABLE"
    assert not described.ready
    assert "not answered" in described.not_ready_because


async def test_card_that_is_lost_in_a_handshake_serves_the_next_one(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    cards = Cards()

    def lose() -> None:
        del cards.script("web").before["process"]
        raise TokenUnavailable("The card was pulled.")

    async with running(config, cards) as app, agent_of(app, WEB01) as stub:
        cards.script("web").before["process"] = lose
        lost = await Stream(stub).handshake()
        assert (await Stream(stub).handshake()).HasField("result")
    assert lost.failure.error.reason == "TOKEN_UNAVAILABLE"
    assert cards.script("web").opened == cards.script("web").closed == 2


async def test_two_hundred_at_once_all_end_in_a_result_or_a_clear_refusal(tmp_path: Path) -> None:
    config = broker_config(tmp_path, queue=150)
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        answers = await asyncio.gather(*(Stream(stub).handshake(timeout=20) for _ in range(200)))
        assert (await Stream(stub).handshake()).HasField("result")
    kinds = {answer.WhichOneof("step") for answer in answers}
    reasons = {answer.failure.error.reason for answer in answers if answer.HasField("failure")}
    assert kinds <= {"result", "failure"}
    assert reasons <= {"TOKEN_BUSY"}
    assert sum(answer.HasField("result") for answer in answers) >= 151
    complete = [event for event in events_of(config) if event == "handshake-complete"]
    assert len(complete) == sum(answer.HasField("result") for answer in answers) + 1


async def test_drain_lets_handshakes_end_and_begins_none(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    cards = Cards()
    async with running(config, cards) as app, agent_of(app, WEB01) as stub:
        under_way, idle = Stream(stub), Stream(stub)
        await under_way.start()
        assert (await idle.start(timeout=0.01)).failure.error.reason == "TOKEN_BUSY"
        stopping = asyncio.create_task(app.stop())
        refused = await idle.start()
        while refused.failure.error.reason != "SHUTTING_DOWN":
            refused = await idle.start(timeout=0.01)
        await under_way.records(b"server flight")
        finished = await under_way.records(b"server finished")
        await stopping
    assert refused.failure.error.HasField("retry_after")
    assert finished.HasField("result")
    assert cards.script("web").opened == cards.script("web").closed == 1
    assert records_of(config)[-1]["drained"] is True


async def test_drain_cuts_off_what_does_not_end(tmp_path: Path) -> None:
    config = broker_config(tmp_path, drain=0.05)
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        await Stream(stub).start()
        started = time.monotonic()
        await app.stop()
    assert time.monotonic() - started < 3
    assert records_of(config)[-1]["drained"] is False


async def test_broken_policy_denies_and_a_broken_reload_changes_nothing(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        (config.policy_dir / "20-broken.policy").write_text("alow vm=* server=*\n")
        with pytest.raises(Exception, match=r"20-broken\.policy:1"):
            await app.reload()
        assert (await Stream(stub).handshake()).HasField("result")
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        denied = await Stream(stub).handshake()
    assert denied.failure.error.reason == "POLICY_DENIED"
    assert "20-broken.policy:1" in denied.failure.error.metadata["rule"]


async def test_token_is_described_without_its_reader_or_serial(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01], "empty": [WEB01], "broken": [WEB01]})
    cards = Cards()
    cards.script("empty").certificate_chain = ()
    cards.script("broken").certificate_chain = (b"not a certificate",)
    async with running(config, cards) as app, agent_of(app, WEB01) as stub:
        broken, empty, web = (await stub.ListTokens(pb.ListTokensRequest())).tokens
        chain = await stub.GetCertificateChain(pb.GetCertificateChainRequest(token="web"))
    assert (web.ready, web.certificate_subject) == (True, "CN=web01")
    assert web.certificate_not_after > time.time()
    assert tuple(chain.certificates) == cards.script("web").certificate_chain
    assert (empty.ready, "no certificate" in empty.not_ready_because) == (False, True)
    assert (broken.ready, "cannot be read" in broken.not_ready_because) == (False, True)
    assert b"FAKE-1" not in web.SerializeToString()


@pytest.mark.parametrize("step", ["authorize", "complete"])
async def test_what_cannot_be_recorded_does_not_happen(tmp_path: Path, step: str) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        await stream.start()
        if step == "complete":
            await stream.records(b"server flight")
        with full_disk(app):
            refused = await stream.records(b"server finished" if step == "complete" else b"server flight")
        assert (await stream.handshake()).HasField("result")
    assert refused.failure.error.reason == "INTERNAL"
    assert "audit log" in refused.failure.error.message
    assert events_of(config)[-2:] == ["handshake-complete", "handshake-failed"]  # the latter was noted


@contextlib.contextmanager
def full_disk(app: App) -> Iterator[None]:
    """The disk of the audit log takes nothing more."""
    log = app.audit
    file, full = os.dup(log._file), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file)
    try:
        yield
    finally:
        os.dup2(file, log._file)
        os.close(file)
        os.close(full)

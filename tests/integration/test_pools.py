"""Several cards under one name: spread, passed over while they do not work, back when they do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc
import pytest

from dom0_broker.app import App
from dom0_broker.config import BrokerConfig
from dom0_broker.store import BindingRecord, Store
from tests.fakes.token import TICKET
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
from tests.support.pki import Usage, client_identity, pki
from vmtoken.errors import PinRejected, TokenUnavailable
from vmtoken.rpc.channel import unix_channel
from vmtoken.rpc.status import from_rpc_error
from vmtoken.v1 import admin_service_pb2 as admin
from vmtoken.v1 import token_service_pb2 as pb
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

SOME_TIME = 10.0
"""Seconds in which a probe has found out; the first comes after one to two."""


def same_identity() -> tuple[bytes, ...]:
    """Another certificate for another key, with the subject and names of the fakes' own."""
    return pki().intermediate.issue("web01", usage=Usage.CLIENT).chain_der


def gone() -> None:
    raise TokenUnavailable("The card is not in its reader.")


@contextlib.asynccontextmanager
async def pool(
    config: BrokerConfig, cards: Cards, tokens: Sequence[str] = ("card-1", "card-2")
) -> AsyncIterator[tuple[App, TokenServiceStub]]:
    """A broker with a VM that has these tokens as `web`, all of them open."""
    populate(config, WEB01, WEB02, tokens={token: [] for token in tokens})
    with contextlib.closing(Store(config.database)) as store:
        for token in tokens:
            store.bind(BindingRecord(WEB01.uuid, "web", token))
    async with running(config, cards) as app, agent_of(app, WEB01) as stub:
        await stub.ListTokens(pb.ListTokensRequest())
        yield app, stub


@contextlib.asynccontextmanager
async def admin_of(app: App) -> AsyncIterator[AdminServiceStub]:
    async with unix_channel(app.config.admin_socket) as channel:
        yield AdminServiceStub(channel)


def tokens_of(answers: Sequence[pb.HandshakeResponse]) -> list[str]:
    assert all(answer.HasField("result") for answer in answers), answers
    return [answer.result.token for answer in answers]


def events(config: BrokerConfig) -> list[str]:
    lines = map(json.loads, config.audit_path.read_text().splitlines())
    return [f"{line['event']} {line['token']}" for line in lines if line["event"].startswith("handshake")]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOME_TIME):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_handshakes_are_spread_over_the_cards(tmp_path: Path) -> None:
    async with pool(broker_config(tmp_path), Cards()) as (_, stub):
        one_after_another = [await Stream(stub).handshake() for _ in range(6)]
        streams = [Stream(stub) for _ in range(2)]
        under_way = [await stream.start() for stream in streams]
        await asyncio.gather(*(stream.records(b"server flight") for stream in streams))
        ended = await asyncio.gather(*(stream.records(b"server finished") for stream in streams))
    assert Counter(tokens_of(one_after_another)) == {"card-1": 3, "card-2": 3}
    assert all(answer.HasField("flight") for answer in under_way)
    assert set(tokens_of(ended)) == {"card-1", "card-2"}


async def test_vm_sees_one_token(tmp_path: Path) -> None:
    cards = Cards()
    async with pool(broker_config(tmp_path), cards) as (_, stub):
        (token,) = (await stub.ListTokens(pb.ListTokensRequest())).tokens
        chain = (await stub.GetCertificateChain(pb.GetCertificateChainRequest(token="web"))).certificates
    assert (token.name, token.ready, token.certificate_subject) == ("web", True, "CN=web01")
    assert tuple(chain) == client_identity().chain_der


async def test_card_that_is_gone_is_passed_over_and_nobody_notices(tmp_path: Path) -> None:
    config, cards = broker_config(tmp_path), Cards()
    async with pool(config, cards) as (app, stub):
        cards.script("card-1").before["start"] = gone
        served = tokens_of([await Stream(stub).handshake() for _ in range(6)])
        (token,) = (await stub.ListTokens(pb.ListTokensRequest())).tokens
        async with admin_of(app) as operator:
            states = (await operator.ListAllTokens(admin.ListAllTokensRequest())).tokens
    assert served == ["card-2"] * 6
    assert token.ready
    assert [state.failed for state in states] == [1, 0]
    assert events(config).count("handshake-moved card-1") == 1
    assert events(config).count("handshake-complete card-2") == 6


async def test_card_that_works_again_is_back_without_a_handshake_that_tried_it(tmp_path: Path) -> None:
    cards = Cards()
    async with pool(broker_config(tmp_path), cards) as (app, stub):
        script = cards.script("card-1")
        script.before |= {"start": gone, "open": gone}
        await Stream(stub).handshake()
        await Stream(stub).handshake()
        (broken, _) = app._desk.inventory.tokens()
        tried = script.opened
        await until(lambda: script.opened > tried)
        assert broken.problem is not None
        script.before.clear()
        await until(lambda: broken.problem is None)
        assert broken.failed == 1
        served = tokens_of([await Stream(stub).handshake() for _ in range(4)])
    assert Counter(served) == {"card-1": 2, "card-2": 2}


async def test_rejected_pin_is_not_probed(tmp_path: Path) -> None:
    def rejected() -> None:
        raise PinRejected("The card refused the PIN.", retries_left=2)

    cards = Cards()
    cards.script("card-1").before["open"] = rejected
    async with pool(broker_config(tmp_path), cards) as (_, stub):
        await asyncio.sleep(2.5)  # two looks of the probes
        served = tokens_of([await Stream(stub).handshake() for _ in range(4)])
    assert served == ["card-2"] * 4
    assert cards.script("card-1").opened == 1


async def test_those_who_wait_move_when_their_card_fails(tmp_path: Path) -> None:
    config, cards = broker_config(tmp_path), Cards()
    async with pool(config, cards) as (app, stub):
        holders = [Stream(stub) for _ in range(2)]
        held = dict(zip(("card-1", "card-2"), holders, strict=True))
        for stream in holders:
            await stream.start()
        waiting = [asyncio.create_task(Stream(stub).handshake()) for _ in range(10)]
        await until(lambda: app.waiting("card-1") == app.waiting("card-2") == 10)
        cards.script("card-1").before |= {"process": gone, "open": gone}
        answers = [await stream.records(b"server flight") for stream in held.values()]
        failed = [answer for answer in answers if answer.HasField("failure")]
        (alive,) = [stream for stream, each in zip(holders, answers, strict=True) if each not in failed]
        assert (await alive.records(b"server finished")).result.token == "card-2"
        served = tokens_of(await asyncio.gather(*waiting))
    assert [answer.failure.error.reason for answer in failed] == ["TOKEN_UNAVAILABLE"]
    assert served == ["card-2"] * 10


async def test_handshake_that_has_begun_is_not_moved(tmp_path: Path) -> None:
    config, cards = broker_config(tmp_path), Cards()
    async with pool(config, cards) as (_, stub):
        for card in ("card-1", "card-2"):
            cards.script(card).before["process"] = gone
        answer = await Stream(stub).handshake()
    assert answer.failure.error.reason == "TOKEN_UNAVAILABLE"
    assert len(events(config)) == 1


async def test_when_no_card_works_each_is_tried_once_and_the_guest_is_told(tmp_path: Path) -> None:
    cards = Cards()
    async with pool(broker_config(tmp_path), cards) as (app, stub):
        for card in ("card-1", "card-2"):
            cards.script(card).before["start"] = gone
        answer = await Stream(stub).handshake()
        (token,) = (await stub.ListTokens(pb.ListTokensRequest())).tokens
        failed = [each.failed for each in app._desk.inventory.tokens()]
    assert answer.failure.error.reason == "TOKEN_UNAVAILABLE"
    assert failed == [1, 1]
    assert token.ready  # the list opened them again: they fail in handshakes only


async def test_card_that_does_not_begin_in_time_is_left_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("handshake", "inventory"):
        monkeypatch.setattr(f"dom0_broker.{module}.OVERDUE", 0.2)
    cards, goes_on = Cards(), threading.Event()
    async with pool(broker_config(tmp_path), cards) as (app, stub):
        cards.script("card-1").before["start"] = lambda: goes_on.wait(20)
        served = tokens_of([await Stream(stub).handshake() for _ in range(4)])
        (hung, _) = app._desk.inventory.tokens()
        assert hung.problem is not None
        goes_on.set()
        await until(lambda: hung.problem is None)
        later = tokens_of([await Stream(stub).handshake() for _ in range(4)])
    assert served == ["card-2"] * 4
    assert Counter(later) == {"card-1": 2, "card-2": 2}


async def with_ticket(stub: TokenServiceStub) -> str:
    """A handshake whose ticket the token takes; the token's name."""
    stream = Stream(stub)
    result = (await stream.handshake()).result
    ticket = pb.SessionTicket(session_id=result.session_id, message=TICKET)
    answer = await stream.step(pb.HandshakeRequest(ticket=ticket))
    assert answer.ticket.accepted
    return result.token


async def test_session_is_resumed_by_the_card_that_has_it(tmp_path: Path) -> None:
    async with pool(broker_config(tmp_path), Cards(), ("card-1", "card-2", "card-3")) as (_, stub):
        await Stream(stub).handshake("other.example")
        holder = await with_ticket(stub)
        await with_ticket_elsewhere(stub)
        resumed = (await Stream(stub).handshake()).result
        full = (await Stream(stub).handshake(no_resumption=True)).result
    assert (resumed.token, resumed.resumed) == (holder, True)
    assert not full.resumed


async def with_ticket_elsewhere(stub: TokenServiceStub) -> None:
    """More handshakes, so that the holder of the ticket is not the one that is free for the longest."""
    for _ in range(2):
        await Stream(stub).handshake("other.example")


async def test_full_handshake_elsewhere_is_better_than_a_long_queue(tmp_path: Path) -> None:
    async with pool(broker_config(tmp_path), Cards()) as (app, stub):
        holder = await with_ticket(stub)
        async with agent_of(app, WEB02) as neighbour, admin_of(app) as operator:
            await operator.Bind(admin.BindRequest(vm="web02", token=holder))
            busy = Stream(neighbour)
            await busy.start()
            others = [asyncio.create_task(Stream(neighbour).handshake()) for _ in range(3)]
            await until(lambda: app.waiting(holder) == 3)
            answer = (await Stream(stub).handshake()).result
            assert (answer.token != holder, answer.resumed) == (True, False)
            await busy.records(b"server flight")
            await busy.records(b"server finished")
            await asyncio.gather(*others)


async def test_token_of_another_identity_is_not_let_in(tmp_path: Path) -> None:
    cards = Cards()
    cards.script("card-2").certificate_chain = same_identity()
    cards.script("stranger").certificate_chain = client_identity(name="web02").chain_der
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"card-1": [], "card-2": [], "stranger": []})
    async with running(config, cards) as app, admin_of(app) as operator:
        for token in ("card-1", "card-2"):
            await operator.Bind(admin.BindRequest(vm="web01", token=token, name="web"))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await operator.Bind(admin.BindRequest(vm="web01", token="stranger", name="web"))
        (vm,) = (await operator.ListVms(admin.ListVmsRequest())).vms
        await operator.Unbind(admin.UnbindRequest(vm="web01", name="web", token="card-1"))
        (after,) = (await operator.ListVms(admin.ListVmsRequest())).vms
    error = from_rpc_error(refusal.value)
    assert error.reason == "CONFLICT"
    assert "'stranger' is CN=web02 (web02), but token 'card-1', 'card-2'" in error.message
    assert [(each.name, each.token) for each in vm.bindings] == [("web", "card-1"), ("web", "card-2")]
    assert [each.token for each in after.bindings] == ["card-2"]


async def test_token_without_a_certificate_is_let_in_and_used_once_it_matches(tmp_path: Path) -> None:
    cards = Cards()
    fresh = cards.script("card-2")
    fresh.certificate_chain = ()
    async with pool(broker_config(tmp_path), cards) as (app, stub):
        without = tokens_of([await Stream(stub).handshake() for _ in range(4)])
        (_, token) = app._desk.inventory.tokens()
        for chain in (client_identity(name="web02").chain_der, same_identity()):
            fresh.certificate_chain = chain
            await token.worker.run_closed(lambda: None)
            await token.state()
            without += tokens_of([await Stream(stub).handshake() for _ in range(4)])
    assert without[:8] == ["card-1"] * 8
    assert Counter(without[8:]) == {"card-1": 2, "card-2": 2}


async def test_stranger_that_nobody_had_seen_is_not_used_when_it_is_opened(tmp_path: Path) -> None:
    """Out of its reader when it was bound, and of another identity when it comes."""
    cards = Cards()
    cards.script("card-1").before["start"] = gone
    stranger = cards.script("card-2")
    stranger.before["open"] = gone
    async with pool(broker_config(tmp_path), cards) as (app, stub):
        stranger.before.clear()
        stranger.certificate_chain = client_identity(name="web02").chain_der
        (_, token) = app._desk.inventory.tokens()
        await until(lambda: token.problem is None)
        answer = await Stream(stub).handshake()
    assert answer.failure.error.reason == "TOKEN_UNAVAILABLE"
    assert token.completed == 0


async def test_stranger_that_is_opened_while_another_card_fails_is_not_used(tmp_path: Path) -> None:
    cards, goes_on = Cards(), threading.Event()

    def fail_later() -> None:
        goes_on.wait(20)
        gone()

    cards.script("card-1").before["start"] = fail_later
    stranger = cards.script("card-2")
    stranger.before["open"] = gone
    async with pool(broker_config(tmp_path), cards) as (app, stub):
        handshake = asyncio.create_task(Stream(stub).handshake())
        stranger.before.clear()
        stranger.certificate_chain = client_identity(name="web02").chain_der
        (_, token) = app._desk.inventory.tokens()
        await until(lambda: token.problem is None)
        goes_on.set()
        answer = await handshake
    assert answer.failure.error.reason == "TOKEN_UNAVAILABLE"
    assert (token.completed, token.failed) == (0, 0)


async def test_quota_and_deadline_hold_for_a_pool_as_for_a_token(tmp_path: Path) -> None:
    config = broker_config(tmp_path, vm_handshakes=3)
    async with pool(config, Cards()) as (_, stub):
        for stream in [Stream(stub) for _ in range(2)]:
            await stream.start()
        late = asyncio.create_task(Stream(stub).start(timeout=0.3))
        await asyncio.sleep(0.1)
        over = await Stream(stub).start()
        answer = await late
    assert over.failure.error.reason == "QUOTA_EXCEEDED"
    assert answer.failure.error.reason == "TOKEN_BUSY"
    assert "'card-1' or 'card-2' was not free" in answer.failure.error.message

"""Metrics of a broker that runs: over the admin socket, and in a file for node_exporter."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from dom0_broker.app import App
from dom0_broker.config import MetricsConfig
from tests.support.broker_app import WEB01, Cards, Stream, agent_of, broker_config, populate, running
from vmtoken.errors import TokenUnavailable
from vmtoken.rpc.channel import unix_channel
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub


def values(text: str, name: str) -> dict[tuple[str, ...], float]:
    """Samples of a name by the values of their labels, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(each.labels.items())): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
        if each.name == name
    }


async def read(app: App) -> str:
    async with unix_channel(app.config.admin_socket) as channel:
        parts = AdminServiceStub(channel).Metrics(pb.MetricsRequest())
        return b"".join([part.text async for part in parts]).decode()


async def test_metrics_say_what_was_done_and_what_is_wrong(tmp_path: Path) -> None:
    config, cards = broker_config(tmp_path), Cards()
    populate(config, WEB01, tokens={"web": [WEB01], "gone": []})

    def gone() -> None:
        raise TokenUnavailable("no card")

    cards.script("gone").before["open"] = gone
    async with running(config, cards) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        for name in ("server.example", "server.example", "other.example"):
            assert (await stream.handshake(name)).HasField("result")
        assert (await stream.start("server.example", token="nothing")).HasField("failure")
        await app.idle()
        text = await read(app)
    complete = ("software", "complete", "false", "web", "web01")
    refused = ("", "TOKEN_NOT_FOUND", "", "", "web01")
    assert values(text, "vmtoken_handshakes_total") == {complete: 3, refused: 1}
    assert values(text, "vmtoken_token_ready") == {("gone",): 0, ("web",): 1}
    assert values(text, "vmtoken_token_problem") == {("TOKEN_UNAVAILABLE", "gone"): 1}
    assert values(text, "vmtoken_handshake_duration_seconds_count") == {("web",): 3}
    assert "server.example" not in text


async def test_text_of_many_tokens_fits_through_the_admin_socket(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    names = [f"{'x' * 55}{number:03}" for number in range(300)]
    populate(config, WEB01, tokens={name: [] for name in names})
    async with running(config, Cards()) as app:
        app._desk.tally.durations.update({name: app._desk.tally.durations["one"].copy() for name in names})
        text = await read(app)
    assert len(text) > 1 << 20  # more than one message holds
    assert len(values(text, "vmtoken_token_ready")) == 300


async def test_file_is_replaced_while_the_broker_runs_and_gone_after(tmp_path: Path) -> None:
    path = tmp_path / "vmtoken.prom"
    config = replace(broker_config(tmp_path), metrics=MetricsConfig(textfile=str(path), interval=1))
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        first = path.stat()
        assert first.st_mode & 0o777 == 0o644
        assert values(path.read_text(), "vmtoken_vms") == {(): 1}
        while path.stat().st_ino == first.st_ino:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert app.config.metrics.textfile == str(path)
    assert not [each for each in os.listdir(tmp_path) if "prom" in each]


async def test_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    textfile = str(tmp_path / "missing/vmtoken.prom")
    config = replace(broker_config(tmp_path), metrics=MetricsConfig(textfile=textfile))
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, contextlib.AsyncExitStack() as stack:
        stub = await stack.enter_async_context(agent_of(app, WEB01))
        assert (await Stream(stub).handshake()).HasField("result")

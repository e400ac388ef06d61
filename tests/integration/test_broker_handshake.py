"""A broker with fake cards, called as agents call it: over the socket of a VM."""

from __future__ import annotations

from pathlib import Path

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
from vmtoken.v1 import token_pb2


async def test_handshake_over_the_socket_of_a_vm(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, WEB02, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        hello = await stream.start(alpn=["h2"])
        flight = await stream.records(b"server flight")
        result = (await stream.records(b"server finished")).result
    assert hello.flight.records == b"ClientHello server.example"
    assert flight.flight.records == b"client flight"
    assert result.key_block.client_secret == b"c" * 32
    assert (result.token, result.alpn, result.resumed) == ("web", "h2", False)
    assert result.assurance == token_pb2.ASSURANCE_SOFTWARE
    assert len(result.session_id) == 16

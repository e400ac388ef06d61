"""A tunnel through the agent with data in both directions at once, against real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pki import SERVER_NAME, KeyKind
from tests.support.servers import PROGRAMS, TLS_1_2, TLS_1_3, Program, ServerOptions
from tests.support.stack_client import StackClient
from vmtoken.v1 import tls_service_pb2 as pb

pytestmark = pytest.mark.interop

CHUNK = bytes(range(256)) * 256
COUNT = 128
"""Chunks of 64 KiB: 8 MiB in all."""

ECHOING = [PROGRAMS[name] for name in ("python-ssl", "go", "node")]
"""Those that read and write at the same time, and answer a half-close."""


@pytest.mark.parametrize("program", ECHOING, ids=lambda program: program.name)
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_data_in_both_directions_at_once_then_half_close(
    program: Program, version: str, stack_client: StackClient, tmp_path: Path
) -> None:
    with program.serve(tmp_path, ServerOptions(minimum=version, maximum=version)) as server:
        responses = stack_client.service.Tunnel(requests(server.port), timeout=60)
        assert next(responses).HasField("session")
        *data, end = responses
    assert end.HasField("end")
    greeting, _, echo = b"".join(response.data for response in data).partition(b"\n")
    assert b'"client"' in greeting
    assert echo == CHUNK * COUNT


def requests(port: int) -> Iterator[pb.TunnelRequest]:
    """gRPC takes them from a thread of its own; their end is the half-close."""
    connect = pb.ConnectRequest(
        host="127.0.0.1", port=port, server_name=SERVER_NAME, token=KeyKind.ECDSA_P256.value
    )
    yield pb.TunnelRequest(connect=connect)
    yield from [pb.TunnelRequest(data=CHUNK)] * COUNT

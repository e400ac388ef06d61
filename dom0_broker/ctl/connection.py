"""The way to the broker: its admin socket."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from dom0_broker.config import BrokerConfig, located
from vmtoken.errors import BrokerUnavailable
from vmtoken.rpc.channel import unix_channel
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub

if TYPE_CHECKING:
    from vmtoken.v1.admin_service_pb2_grpc import AdminServiceAsyncStub

DEFAULT_CONFIG = Path("/etc/vmtoken/broker.toml")


def config_of(arguments: argparse.Namespace) -> BrokerConfig:
    """The broker's configuration; the defaults when there is no file at the default place."""
    path: Path = arguments.config
    if path == DEFAULT_CONFIG and not path.exists():
        return BrokerConfig()
    return located(path)


@contextlib.asynccontextmanager
async def admin(arguments: argparse.Namespace) -> AsyncIterator[AdminServiceAsyncStub]:
    """A stub for the admin service. Raises `BrokerUnavailable` when there is no socket to try."""
    async with unix_channel(_socket(arguments)) as channel:
        stub: AdminServiceAsyncStub = AdminServiceStub(channel)
        yield stub


def _socket(arguments: argparse.Namespace) -> Path:
    path: Path = arguments.socket or config_of(arguments).admin_socket
    if not path.exists():
        raise BrokerUnavailable(f"There is no broker at {path}; check that vmtoken-broker runs.")
    if not os.access(path, os.W_OK):
        raise BrokerUnavailable(f"The socket {path} is for the broker's own user and root; use sudo.")
    return path

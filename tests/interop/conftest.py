"""The clients that the table of cases runs with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.clients import Client
from tests.support.engine_client import EngineClient
from tests.support.stack import ALGORITHMS, Stack
from tests.support.stack_client import StackClient


@pytest.fixture(params=["engine", "stack"])
def client(request: pytest.FixtureRequest) -> Client:
    """The engine alone; and application, agent, broker and card in processes of their own."""
    if request.param == "engine":
        return EngineClient()
    return request.getfixturevalue("stack_client")


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """One for all cases, with a card of every kind."""
    with Stack.running(tuple(ALGORITHMS)) as running:
        yield running


@pytest.fixture(scope="session")
def stack_client(stack: Stack) -> Iterator[StackClient]:
    with StackClient.of(stack) as client:
        yield client

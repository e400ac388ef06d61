"""A module's process as the broker uses it: one call at a time, and which silence means that it hangs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from dom0_broker.backends.pkcs11.module import Module
from dom0_broker.backends.process import NoAnswer
from vmtoken.errors import TokenUnavailable

LIBRARY = Path("/usr/lib/fake.so")


class FakeProcess:
    """Answers `quick` at once, `slow` when it is let go, and `hang` never."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.given_up = 0
        self.at_work = 0
        self.tokens = "quick"

    def call(self, lane: str, method: str, *arguments: Any, timeout: float) -> str:
        method = self.tokens if method == "tokens" else method
        self.at_work += 1
        assert self.at_work == 1, "two calls at once"
        try:
            if method == "hang":
                raise NoAnswer("The process has not answered.")
            if method == "broken":
                error = TokenUnavailable("The module broke down.")
                error.metadata["broken"] = "module"
                raise error
            if method == "slow":
                self.entered.set()
                assert self.let_go.wait(10)
            return method
        finally:
            self.at_work -= 1

    def give_up(self) -> None:
        self.given_up += 1


@pytest.fixture
def process() -> FakeProcess:
    return FakeProcess()


@pytest.fixture
def module(process: FakeProcess) -> Module:
    module = Module(LIBRARY, timeout=0.05, pin_reserve=1, environment={})
    module._process = process  # type: ignore[assignment]
    return module


def test_module_that_is_busy_is_not_ended_by_who_waits(module: Module, process: FakeProcess) -> None:
    """A key pair takes a TPM or a card a minute; the handshakes of its other tokens wait, and are told so."""
    answers: list[str] = []
    worker = threading.Thread(target=lambda: answers.append(module.call("slow", timeout=10.0)))
    worker.start()
    assert process.entered.wait(5)
    module.last_seen = seen = (object(),)  # type: ignore[assignment]
    for call in (lambda: module.call("quick"), module.tokens):
        with pytest.raises(TokenUnavailable, match="busy with other tokens"):
            call()
    assert module.last_seen is seen
    process.let_go.set()
    worker.join()
    assert answers == ["slow"]
    assert process.given_up == 0
    assert module.call("quick") == "quick"


@pytest.mark.parametrize("method", ["hang", "broken"])
def test_module_that_hangs_or_breaks_down_is_ended(module: Module, process: FakeProcess, method: str) -> None:
    with pytest.raises(TokenUnavailable):
        module.call(method)
    assert process.given_up == 1
    assert module.call("quick") == "quick"


def test_module_that_does_not_answer_shows_no_tokens(module: Module, process: FakeProcess) -> None:
    module.last_seen = (object(),)  # type: ignore[assignment]
    process.tokens = "hang"
    with pytest.raises(TokenUnavailable):
        module.tokens()
    assert module.last_seen == ()

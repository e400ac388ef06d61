"""Both doctors as programs: against a broker and an agent that run, and against none."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from dom0_broker.config import BrokerConfig
from tests.support.agent import AgentUnderTest, running_agent
from tests.support.broker_app import WEB01, Cards, broker_config, populate, running
from tests.support.directories import short_directory
from vmtoken.version import VERSION


async def _doctor(module: str, *words: str) -> tuple[int | None, list[dict[str, Any]]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert output, errors.decode()
    return process.returncode, json.loads(output)


async def _of_agent(agent: AgentUnderTest) -> tuple[int | None, list[dict[str, Any]]]:
    config = agent.home / "agent.toml"
    config.write_text(f'[broker]\nlink = "unix:{agent.broker_socket}"\n')
    words = ("doctor", "--json", "--socket", str(agent.socket), "--config", str(config))
    return await _doctor("guest_agent.cli", *words)


def _verdicts(findings: list[dict[str, Any]], check: str) -> list[str]:
    return [finding["verdict"] for finding in findings if finding["check"] == check]


async def test_agent_and_broker_in_order() -> None:
    async with running_agent() as agent:
        agent.broker.version = VERSION
        code, findings = await _of_agent(agent)
    assert code == 0, findings
    assert (
        _verdicts(findings, "agent")
        == _verdicts(findings, "broker")
        == _verdicts(findings, "token")
        == ["good"]
    )


async def test_versions_of_both_ends_are_told_apart() -> None:
    async with running_agent() as agent:
        agent.broker.version = "0.0.1"
        _, findings = await _of_agent(agent)
    assert _verdicts(findings, "version") == ["good", "warning"]
    assert any("The broker is 0.0.1" in finding["text"] for finding in findings)


async def test_agent_without_its_broker() -> None:
    async with running_agent(with_broker=False, connect_timeout=0.2) as agent:
        code, findings = await _of_agent(agent)
    assert (code, _verdicts(findings, "broker")) == (1, ["wrong"])


async def test_broker_in_order_and_then_with_a_card_that_does_not_work(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    cards = Cards()
    populate(config, WEB01, tokens={"card": [WEB01]})
    file = _written(config, tmp_path)
    async with running(config, cards):
        code, findings = await _doctor("dom0_broker.ctl", "--config", str(file), "doctor", "--json")
        assert code == 0, findings
        assert _verdicts(findings, "token") == ["good"]
    cards.script("card").certificate_chain = ()
    async with running(replace(config, runtime_dir=short_directory()), cards) as app:
        file = _written(app.config, tmp_path)
        code, findings = await _doctor("dom0_broker.ctl", "--config", str(file), "doctor", "--json")
    assert (code, _verdicts(findings, "token")) == (1, ["wrong"])


async def test_broker_that_does_not_run(tmp_path: Path) -> None:
    file = _written(broker_config(tmp_path), tmp_path)
    code, findings = await _doctor("dom0_broker.ctl", "--config", str(file), "doctor", "--json")
    assert (code, _verdicts(findings, "broker")) == (1, ["wrong"])


async def test_broker_s_configuration_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text("stat_dir = 'x'\n")
    code, findings = await _doctor(
        "dom0_broker.ctl", "--config", str(tmp_path / "broker.toml"), "doctor", "--json"
    )
    assert code == 1
    assert [finding["check"] for finding in findings] == ["configuration"]


def _written(config: BrokerConfig, directory: Path) -> Path:
    """The configuration as a file, for a program of its own."""
    path = directory / "broker.toml"
    names = ("state_dir", "runtime_dir", "policy_dir")
    path.write_text("".join(f'{name} = "{getattr(config, name)}"\n' for name in names))
    return path

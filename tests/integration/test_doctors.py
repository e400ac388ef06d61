"""Both doctors as programs: against a broker and an agent that run, and against none."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.support.agent import running_agent
from tests.support.broker_app import WEB01, broker_config, populate, running
from vmtoken.version import VERSION


async def _doctor(module: str, *words: str) -> tuple[int | None, list[dict[str, Any]]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert output, errors.decode()
    return process.returncode, json.loads(output)


def _verdicts(findings: list[dict[str, Any]], check: str) -> list[str]:
    return [finding["verdict"] for finding in findings if finding["check"] == check]



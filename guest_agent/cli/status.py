"""`vmtoken status` and `vmtoken list`: is everything there that a session needs."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guest_agent.client import AgentClient
from vmtoken.errors import VmTokenError
from vmtoken.v1 import token_pb2

_TIMEOUT = 10.0
"""Seconds until somebody who asks for the state wants to know that there is none."""

_ASSURANCES = {
    token_pb2.ASSURANCE_SOFTWARE: "software",
    token_pb2.ASSURANCE_CARD_SIGNATURE: "card-signature",
    token_pb2.ASSURANCE_CARD_HANDSHAKE: "card-handshake",
}


async def status(options: argparse.Namespace) -> int:
    """Say how things are; 0 when a session could be opened now, 1 when not."""
    findings = await _findings(options.socket)
    if options.json:
        print(json.dumps(findings))
    else:
        print(f"agent   {'serving' if findings['agent'] else findings['because']}")
        if findings["agent"]:
            print(f"broker  {'answers' if findings['broker'] else findings['because']}")
        for token in findings["tokens"]:
            print(f"token   {token['name']}: {'ready' if token['ready'] else token['not_ready_because']}")
        if findings["broker"] and not findings["tokens"]:
            print("token   none is bound to this machine")
    return 0 if any(token["ready"] for token in findings["tokens"]) else 1


async def list_tokens(options: argparse.Namespace) -> int:
    """Print the tokens of this machine."""
    async with AgentClient(options.socket) as agent:
        tokens = [_token(token) for token in await agent.tokens(_TIMEOUT)]
    if options.json:
        print(json.dumps(tokens))
        return 0
    rows = [("NAME", "ASSURANCE", "READY", "CERTIFICATE", "VALID UNTIL")]
    rows += [
        (
            token["name"],
            token["assurance"],
            "yes" if token["ready"] else f"no: {token['not_ready_because']}",
            token["certificate_subject"] or "-",
            token["certificate_not_after"] or "-",
        )
        for token in tokens
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


async def _findings(socket: Path) -> dict[str, Any]:
    findings: dict[str, Any] = {"agent": False, "broker": False, "because": "", "tokens": []}
    async with AgentClient(socket) as agent:
        try:
            findings["agent"] = await agent.is_serving(_TIMEOUT)
            findings["tokens"] = [_token(token) for token in await agent.tokens(_TIMEOUT)]
            findings["broker"] = True
        except VmTokenError as error:
            findings["because"] = error.message
    return findings


def _token(token: token_pb2.TokenDescriptor) -> dict[str, Any]:
    not_after = token.certificate_not_after
    return {
        "name": token.name,
        "assurance": _ASSURANCES.get(token.assurance, "unknown"),
        "ready": token.ready,
        "not_ready_because": token.not_ready_because,
        "certificate_subject": token.certificate_subject,
        "certificate_not_after": f"{datetime.fromtimestamp(not_after, UTC):%Y-%m-%d}" if not_after else "",
    }

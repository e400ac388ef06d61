"""`vmtoken doctor`: what a person gets wrong in a guest, and what to do about it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography import x509

from guest_agent.client import AgentClient
from guest_agent.config import DEFAULT_PATH, AgentConfig, VchanLink, load_config, parse_link
from vmtoken.doctor import common, xen
from vmtoken.doctor.finding import Check, Finding, as_json, as_text, examine, exit_code, good, warning, wrong
from vmtoken.doctor.machine import Account, Machine
from vmtoken.errors import VmTokenError
from vmtoken.settings import SettingsError
from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1 import token_pb2
from vmtoken.version import VERSION

USER = "vmtoken-agent"
"""Whom the packages run the agent as."""

_PATIENCE = 15.0
"""Seconds for agent and broker together."""


async def doctor(options: argparse.Namespace) -> int:
    """Print all findings; 0 when nothing is wrong, 1 otherwise."""
    findings = await diagnose(options.socket, options.config, Machine(), Account.of(USER))
    print((as_json if options.json else as_text)(findings))
    return exit_code(findings)


async def diagnose(socket: Path, path: Path, machine: Machine, user: Account) -> list[Finding]:
    """All findings, whatever is broken: what cannot be asked is a finding too."""
    try:
        config = _config(path)
    except SettingsError as error:
        return [wrong("configuration", str(error), "Correct it; vmtoken-agent --check-config says the same.")]
    findings = examine(_checks_of_machine(config, machine))
    if isinstance(parse_link(config.broker.link), VchanLink):
        findings += await xen.everything(machine, xen.AGENT_DEVICES, user)
    return [*findings, *await _agent(socket, machine.now)]


def _config(path: Path) -> AgentConfig:
    """The agent's configuration; the defaults when there is no file at the default place."""
    return AgentConfig() if path == DEFAULT_PATH and not path.exists() else load_config(path)


def _checks_of_machine(config: AgentConfig, machine: Machine) -> Iterator[Check]:
    yield partial(common.clock, machine)
    if config.broker.enrolment is not None:
        for path in (config.broker.enrolment.certificate, config.broker.enrolment.ca):
            yield partial(_enrolment, path, machine.now)


def _enrolment(path: Path, now: datetime) -> Iterator[Finding]:
    """The certificates of a link over TCP."""
    cure = "Have new ones made in dom0: vmtokenctl vm enroll NAME DIRECTORY"
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        yield wrong("certificate", f"{path} holds no certificates in PEM.", cure)
        return
    for certificate in certificates:
        before, after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        yield common.certificate_dates(str(path), after, now, cure, before)


async def _agent(socket: Path, now: datetime) -> list[Finding]:
    """Agent and broker, as the agent tells."""
    async with AgentClient(socket) as agent:
        try:
            if not await agent.is_serving(_PATIENCE):
                return [
                    warning("agent", "The agent is about to stop.", "Wait until it has, then look again.")
                ]
        except VmTokenError as error:
            cure = "Start it: systemctl start vmtoken-agent; it says why not: journalctl -u vmtoken-agent"
            return [wrong("agent", error.message, cure)]
        serving = good("agent", f"The agent serves at {socket}.")
        try:
            listing = await agent.listing(_PATIENCE)
        except VmTokenError as error:
            return [serving, wrong("broker", error.message, "In dom0: vmtokenctl doctor, vmtokenctl vm list")]
    return [serving, *listing_findings(listing, VERSION, now)]


def listing_findings(listing: pb.ListAgentTokensResponse, installed: str, now: datetime) -> Iterator[Finding]:
    """Versions of both ends, and every token."""
    yield common.versions("vmtoken-agent", listing.agent_version, installed)
    yield good("broker", "The broker answers.")
    if listing.broker_version != listing.agent_version:
        yield warning(
            "version",
            f"The broker is {listing.broker_version or 'older'}, and the agent {listing.agent_version}.",
            "Install the same version in dom0 and here: the broker first.",
        )
    if not listing.tokens:
        cure = "In dom0: vmtokenctl vm bind VM TOKEN"
        yield wrong("token", "No token is bound to this machine.", cure)
    for token in listing.tokens:
        yield from _token(token, now)


def _token(token: token_pb2.TokenDescriptor, now: datetime) -> Iterator[Finding]:
    if token.ready:
        yield good("token", f"Token {token.name} is ready.")
    else:
        because = token.not_ready_because
        yield wrong("token", f"Token {token.name} is not ready: {because}", "In dom0: vmtokenctl doctor")
    if token.certificate_not_after:
        not_after = datetime.fromtimestamp(token.certificate_not_after, UTC)
        cure = "Have it renewed in dom0: vmtokenctl token renew TOKEN --csr FILE"
        yield common.certificate_dates(f"token {token.name}", not_after, now, cure)

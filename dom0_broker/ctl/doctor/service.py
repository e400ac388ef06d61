"""Checks of the broker itself: does it run, in which version, and how are its tokens."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509

from dom0_broker.config import BrokerConfig
from dom0_broker.ctl.tokens.pin_states import alarms
from vmtoken.doctor import common
from vmtoken.doctor.finding import Finding, good, warning, wrong
from vmtoken.doctor.machine import Machine
from vmtoken.errors import VmTokenError
from vmtoken.v1 import admin_service_pb2 as pb

UNIT = "vmtoken-broker.service"


def unreachable(machine: Machine, error: VmTokenError) -> Finding:
    """Nobody answers at the admin socket: what systemd knows of that."""
    state = (machine.output(["systemctl", "show", UNIT, "--property=ActiveState", "--value"]) or "").strip()
    text = f"{error.message} systemd says that it is {state}." if state else error.message
    cure = "Run this as root; else: systemctl status vmtoken-broker, journalctl -u vmtoken-broker"
    return wrong("broker", text, cure)


def network(config: BrokerConfig, machine: Machine) -> Iterator[Finding]:
    """The unit has no network until links over TCP are wanted."""
    if not config.tcp.listen:
        return
    private = machine.output(["systemctl", "show", UNIT, "--property=PrivateNetwork", "--value"])
    if private is not None and private.strip() == "yes":
        yield wrong(
            "network",
            f"broker.toml wants links at {config.tcp.listen}, and the unit gives the broker no network.",
            "Install the drop-in /usr/share/doc/vmtoken-broker/examples/tcp.conf, which says how.",
        )
    else:
        yield good("network", f"The broker can listen at {config.tcp.listen}.")


def running(status: pb.StatusResponse, installed: str, now: datetime) -> Iterator[Finding]:
    """What the broker says of itself."""
    yield common.versions("vmtoken-broker", status.version, installed)
    if status.draining:
        yield warning("broker", "The broker is about to stop.", "Wait until it has, then look again.")
    if status.policy_error:
        cure = "Correct it, then: vmtokenctl reload"
        yield wrong("policy", f"The broker denies everything: {status.policy_error}", cure)
    if not status.vms:
        cure = "Make one known: vmtokenctl vm add NAME --uuid UUID"
        yield warning("broker", "The broker knows no VM.", cure)
    for token in status.tokens:
        yield from token_findings(token, now)


def token_findings(token: pb.TokenStatus, now: datetime) -> Iterator[Finding]:
    """One token: is it ready, are its certificates valid, its PINs in order."""
    if token.ready:
        yield good("token", f"Token {token.name} is ready.")
    else:
        cure = f"Look at it: vmtokenctl token show {token.name}"
        yield wrong("token", f"Token {token.name} is not ready: {token.not_ready.message}", cure)
    renew = f"Have a new one made: vmtokenctl token renew {token.name} --csr FILE"
    for der in token.certificates:
        certificate = x509.load_der_x509_certificate(der)
        subject = certificate.subject.rfc4514_string()
        yield common.certificate_dates(
            f"{token.name} ({subject})",
            certificate.not_valid_after_utc,
            now,
            renew,
            certificate.not_valid_before_utc,
        )
    for alarm in alarms(token):
        cure = f"vmtokenctl token pin status {token.name}; set the right one with: vmtokenctl token pin set"
        yield wrong("pin", f"{alarm}.", cure)
    for pin in token.pins:
        if pin.source:
            yield pin_source(token.name, Path(pin.source))


def pin_source(token: str, path: Path) -> Finding:
    """A file with a PIN: there, and its owner's alone."""
    try:
        status = path.stat()
    except OSError as error:
        cure = f"Put it there, or name another: vmtokenctl token pin source {token} FILE"
        return wrong("pin", f"The PIN source {path} of {token} cannot be read: {error.strerror}.", cure)
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        cure = f"Run: chmod 0600 {path}"
        return wrong("pin", f"The PIN source {path} of {token} is open to others (mode {mode:04o}).", cure)
    return good("pin", f"The PIN source {path} of {token} is its owner's alone.")

"""Checks of files: configuration, policy, state, modules."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from dom0_broker.backends.pkcs11.libraries import checked_library
from dom0_broker.config import BrokerConfig
from dom0_broker.policy import PolicyError, read_policy
from vmtoken.doctor import common
from vmtoken.doctor.finding import Finding, good, warning, wrong
from vmtoken.doctor.machine import Account
from vmtoken.errors import InvalidRequest

_READ = 0o4
_READ_AND_ENTER = 0o5
_SECRETS = ("sealing.key", "sealing.cred", "broker.sqlite")
"""Files of the state that are nobody else's."""


def configuration(config: BrokerConfig, user: Account) -> Iterator[Finding]:
    """broker.toml could be read, or we would not be here; can the broker's user read the policy too?"""
    if not config.policy_dir.is_dir():
        cure = (
            f"Make it, with the rules of the package: install -d {config.policy_dir}; or correct policy_dir."
        )
        yield wrong("configuration", f"There is no directory {config.policy_dir} for the policy.", cure)
        return
    for path in (config.policy_dir, *sorted(config.policy_dir.glob("*.policy"))):
        status = path.stat()
        bits = _READ_AND_ENTER if path.is_dir() else _READ
        if not user.may(status, bits):
            cure = f"Run: chmod go+r{'x' if path.is_dir() else ''} {path}"
            yield wrong("configuration", f"{user.name} may not read {path}.", cure)
    yield good("configuration", "The configuration of the broker is in order.")


def policy(config: BrokerConfig) -> Iterator[Finding]:
    """Rules that can be parsed, and that nobody but root and the broker can write."""
    if not config.policy_dir.is_dir():
        return  # the configuration is wrong, and is told so
    for path in (config.policy_dir, *sorted(config.policy_dir.glob("*.policy"))):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o022:
            text = f"{path} can be written by others (mode {mode:04o}), who could allow themselves anything."
            yield wrong("policy", text, f"Run: chmod go-w {path}")
    try:
        rules = len(read_policy(config.policy_dir).rules)
    except PolicyError as error:
        cure = "Correct it, then: vmtokenctl reload; until then earlier rules hold, or none."
        yield wrong("policy", str(error), cure)
        return
    if rules:
        yield good("policy", f"{rules} rules in {config.policy_dir}.")
    else:
        cure = "Write some, docs/policy.md says how, then: vmtokenctl reload"
        yield warning("policy", f"There are no rules in {config.policy_dir}, so everything is denied.", cure)


def state(config: BrokerConfig, user: Account) -> Iterator[Finding]:
    """The directory with keys and PINs, and what is in it."""
    directory = config.state_dir
    if not directory.is_dir():
        cure = "Start the broker once, or: systemd-tmpfiles --create vmtoken-broker.conf"
        yield wrong("state", f"There is no directory {directory}.", cure)
        return
    yield common.private("state", directory, user, 0o700)
    for name in _SECRETS:
        if (directory / name).exists():
            yield common.private("state", directory / name, user, 0o600)


def room(config: BrokerConfig) -> Iterator[Finding]:
    """Space for state and audit log, which may be on disks of their own."""
    places = {existing(config.state_dir), existing(config.audit_path.parent)}
    for place in sorted({place.stat().st_dev: place for place in places}.values()):
        yield from common.room(place)


def existing(path: Path) -> Path:
    """The path, or what there is of it."""
    return next(each for each in (path, *path.parents) if each.exists())


def pkcs11_modules(config: BrokerConfig) -> Iterator[Finding]:
    """Libraries that are there, and that others cannot change."""
    for module in config.pkcs11.modules:
        try:
            checked_library(module)
        except InvalidRequest as error:
            yield wrong("pkcs11", error.message, "Correct [pkcs11] modules in broker.toml, or the library.")
        else:
            yield good("pkcs11", f"The module {module} can be loaded.")

"""The command: asks the broker, looks at the machine, makes every check."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import grpc

from dom0_broker.config import BrokerConfig
from dom0_broker.ctl.connection import admin, config_of
from dom0_broker.ctl.doctor import files, readers, service
from vmtoken.doctor import common, xen
from vmtoken.doctor.finding import Check, Finding, as_json, as_text, examine, exit_code, wrong
from vmtoken.doctor.machine import Account, Machine
from vmtoken.errors import VmTokenError
from vmtoken.rpc.status import from_rpc_error
from vmtoken.settings import SettingsError
from vmtoken.transport import libxenvchan
from vmtoken.transport.vchan import on_xen
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.version import VERSION

USER = "vmtoken"
"""Whom the packages run the broker as."""

_PATIENCE = 30.0
"""Seconds for the broker, which asks every card how it is."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor", help="what is wrong here, and what to do; exit code 1 if anything is"
    )
    parser.set_defaults(run=_doctor)


async def _doctor(arguments: argparse.Namespace) -> int:
    findings = await diagnose(arguments, Machine(), Account.of(USER))
    print((as_json if arguments.json else as_text)(findings))
    return exit_code(findings)


async def diagnose(arguments: argparse.Namespace, machine: Machine, user: Account) -> list[Finding]:
    """All findings, whatever is broken: what cannot be asked is a finding too."""
    try:
        config = config_of(arguments)
    except SettingsError as error:
        return [
            wrong("configuration", str(error), "Correct it; vmtoken-broker --check-config says the same.")
        ]
    status: pb.StatusResponse | VmTokenError = await _status(arguments)
    findings = examine(_checks_of_machine(config, machine, user))
    if _wants_vchan(config):
        findings += await xen.everything(machine, xen.BROKER_DEVICES, user, [_grants(config, status)])
    if isinstance(status, VmTokenError):
        return [*findings, service.unreachable(machine, status)]
    cards = sum(token.uri.startswith("pcsc:") for token in status.tokens)
    room = partial(readers.room, cards, len(config.pcsc), machine)
    return [*findings, *examine([room, partial(service.running, status, VERSION, machine.now)])]


async def _status(arguments: argparse.Namespace) -> pb.StatusResponse | VmTokenError:
    try:
        async with admin(arguments) as broker:
            return await broker.Status(pb.StatusRequest(), timeout=_PATIENCE)
    except VmTokenError as error:
        return error
    except grpc.RpcError as error:
        return from_rpc_error(error)


def _checks_of_machine(config: BrokerConfig, machine: Machine, user: Account) -> Iterator[Check]:
    yield partial(common.clock, machine)
    yield partial(files.configuration, config, user)
    yield partial(files.policy, config)
    yield partial(files.state, config, user)
    yield partial(files.room, config)
    yield partial(files.pkcs11_modules, config)
    yield partial(service.network, config, machine)
    for pcscd in config.pcsc:
        yield partial(readers.pcscd, pcscd, machine, user)


def _grants(config: BrokerConfig, status: pb.StatusResponse | VmTokenError) -> Check:
    vms = status.vms if isinstance(status, pb.StatusResponse) else 0
    pages = libxenvchan.pages(config.vchan.read_ring, config.vchan.write_ring)
    return partial(xen.grants, vms, pages, libxenvchan.grant_limit())


def _wants_vchan(config: BrokerConfig) -> bool:
    return config.vchan.enabled is True or (config.vchan.enabled == "auto" and on_xen())

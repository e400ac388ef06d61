"""`vmtokenctl vm ...`: which VMs there are, how they come in, and which tokens they have."""

from __future__ import annotations

import argparse
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.domains import domain_states, read_domain_config, state
from dom0_broker.ctl.files import pem, read_request, write_private
from dom0_broker.ctl.output import Row, say, show_facts, show_rows
from vmtoken.errors import InvalidRequest
from vmtoken.v1 import admin_service_pb2 as pb


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    group = commands.add_parser("vm", help="VMs, their links and their tokens").add_subparsers(
        required=True, metavar="COMMAND"
    )
    add = group.add_parser("add", help="make a VM known")
    add.add_argument("name", nargs="?", default="", help="not needed with --from-config")
    known = add.add_mutually_exclusive_group()
    known.add_argument("--uuid", default="", help="UUID of the domain; a new one if not given")
    known.add_argument(
        "--from-config", type=Path, metavar="FILE", help="take UUID and name from the domain's configuration"
    )
    add.set_defaults(run=_add)
    group.add_parser("list", help="all VMs").set_defaults(run=_list)
    remove = group.add_parser("remove", help="forget a VM, its bindings and its enrolment")
    remove.add_argument("vm", help="name or UUID")
    remove.set_defaults(run=_remove)
    _register_links(group)
    _register_enroll(group)
    bind = group.add_parser(
        "bind",
        help="let a VM use a token",
        description="Several tokens with the same subject and alternative names can be bound under one name. "
        "The VM sees one token, and each handshake takes the first of them that is free and works.",
    )
    bind.add_argument("vm", help="name or UUID")
    bind.add_argument("token")
    bind.add_argument(
        "--as", dest="name", default="", help="the name that the VM sees; the token's own if not given"
    )
    bind.set_defaults(run=_bind)
    unbind = group.add_parser("unbind", help="take a token away from a VM")
    unbind.add_argument("vm", help="name or UUID")
    unbind.add_argument("name", help="the name that the VM sees")
    unbind.add_argument("--token", default="", help="only this one of a pool; all of the name if not given")
    unbind.set_defaults(run=_unbind)


def _register_links(group: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    unlink = group.add_parser(
        "unlink",
        help="end the vchan of a VM before 'xl save' or 'xl migrate'",
        description="Linux does not get over being saved with an open vchan: the agent would be lost until "
        "the VM is rebooted. The domain that is restored has a link again, sessions that are open go on.",
    )
    unlink.add_argument("vm", help="name or UUID")
    unlink.set_defaults(run=_unlink)
    link = group.add_parser("link", help="open it again: the domain was not saved after all")
    link.add_argument("vm", help="name or UUID")
    link.set_defaults(run=_link)


def _register_enroll(group: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    enroll = group.add_parser(
        "enroll",
        help="make the VM's certificate for a link over TCP",
        description="With --request the VM keeps its key to itself: only the certificates are written. "
        "Without, a key is made here and has to be carried into the VM. An earlier certificate of the VM "
        "is of no use afterwards.",
    )
    enroll.add_argument("vm", help="name or UUID")
    enroll.add_argument(
        "directory", type=Path, help="where enrolment.pem, ca.pem and perhaps enrolment.key go"
    )
    enroll.add_argument("--request", type=Path, metavar="FILE", help="PKCS#10 request made in the VM")
    enroll.set_defaults(run=_enroll)


async def _add(arguments: argparse.Namespace) -> None:
    name, number = arguments.name, arguments.uuid
    if arguments.from_config is not None:
        config = read_domain_config(arguments.from_config)
        name, number = name or config.name, config.uuid
    if not name:
        raise InvalidRequest("Say how the VM is called: a name, or --from-config and its configuration.")
    async with admin(arguments) as broker:
        response = await broker.AddVm(pb.AddVmRequest(name=name, uuid=number))
    show_facts(_row(response.vm, await domain_states()), as_json=arguments.json)
    if not number and (response.vm.domains_watched or arguments.from_config is not None):
        _demand_uuid(response.vm, arguments.from_config)


async def _list(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.ListVms(pb.ListVmsRequest())
    columns = ("name", "uuid", "domain", "agent", "tokens", "handshakes", "enrolled", "socket")
    states = await domain_states()
    rows = [_row(vm, states) for vm in response.vms]
    show_rows(
        rows, columns, as_json=arguments.json, nothing="No VMs; 'vmtokenctl vm add NAME' makes one known."
    )


async def _remove(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        await broker.RemoveVm(pb.RemoveVmRequest(vm=arguments.vm))
    say(f"VM '{arguments.vm}' is forgotten.")


async def _unlink(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        await broker.UnlinkVm(pb.UnlinkVmRequest(vm=arguments.vm))
    say(f"VM '{arguments.vm}' has no vchan now, and can be saved; its next domain has one again.")


async def _link(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        await broker.LinkVm(pb.LinkVmRequest(vm=arguments.vm))
    say(f"VM '{arguments.vm}' has its vchan again as soon as its domain runs.")


async def _enroll(arguments: argparse.Namespace) -> None:
    key = None if arguments.request else ec.generate_private_key(ec.SECP256R1())
    request = read_request(arguments.request) if key is None else _request(key, arguments.vm)
    async with admin(arguments) as broker:
        answer = await broker.EnrollVm(pb.EnrollVmRequest(vm=arguments.vm, certificate_request=request))
    _write(arguments.directory, answer, key)
    say(f"VM '{arguments.vm}' is enrolled; its files are in {arguments.directory}.")


async def _bind(arguments: argparse.Namespace) -> None:
    request = pb.BindRequest(vm=arguments.vm, token=arguments.token, name=arguments.name)
    async with admin(arguments) as broker:
        await broker.Bind(request)
    say(f"VM '{arguments.vm}' may use token '{arguments.token}'.")


async def _unbind(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        await broker.Unbind(pb.UnbindRequest(vm=arguments.vm, name=arguments.name, token=arguments.token))
    one = f"'{arguments.token}' as " if arguments.token else ""
    say(f"VM '{arguments.vm}' has no token {one}'{arguments.name}' any more.")


def _demand_uuid(vm: pb.Vm, config: Path | None) -> None:
    where = f"{config}: add this line" if config else "Add this line to the configuration of its domain"
    say(f'{where}, or the domain has another UUID at each start and is not known: uuid = "{vm.uuid}"')


def _row(vm: pb.Vm, states: dict[int, str]) -> Row:
    return {
        "name": vm.name,
        "uuid": vm.uuid,
        "domain": state(vm, states),
        "domid": vm.domid if vm.HasField("domid") else None,
        "agent": vm.agent_connected,
        "tokens": _bindings(vm),
        "handshakes": vm.handshakes,
        "enrolled": bool(vm.certificate_sha256),
        "certificate_sha256": vm.certificate_sha256.hex(),
        "socket": vm.socket,
    }


def _bindings(vm: pb.Vm) -> list[str]:
    """`web`, or `login (web)`, or `login (card-1, card-2)` for a pool."""
    pools: dict[str, list[str]] = {}
    for each in vm.bindings:
        pools.setdefault(each.name, []).append(each.token)
    return [name if tokens == [name] else f"{name} ({', '.join(tokens)})" for name, tokens in pools.items()]


def _request(key: ec.EllipticCurvePrivateKey, vm: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, vm)])
    return x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256()).public_bytes(Encoding.DER)


def _write(directory: Path, answer: pb.EnrollVmResponse, key: ec.EllipticCurvePrivateKey | None) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if key is not None:
        octets = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(directory / "enrolment.key", octets)
    (directory / "enrolment.pem").write_bytes(pem(answer.certificate))
    (directory / "ca.pem").write_bytes(pem(answer.ca_certificate))

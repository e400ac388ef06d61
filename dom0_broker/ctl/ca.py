"""`vmtokenctl ca ...`: a CA for trials and labs. Its key is in a file: trust it nowhere else."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from dom0_broker.ctl.arguments import number_to
from dom0_broker.ctl.files import UnusableFile, read_certificates, read_request
from dom0_broker.ctl.lab_ca import LONGEST_CA, LONGEST_LEAF, REASONS, Issued, LabCa
from dom0_broker.ctl.output import Row, moment, say, show_rows

DEFAULT_DAYS = 90
"""Of a leaf: long enough for a trial, and past the first month in which no warning should be heard."""

CRL_DAYS = 7


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    group = commands.add_parser(
        "ca",
        help="a CA for trials and labs, not for production",
        description="Its key is in a file of DIRECTORY, and it signs whatever it is given.",
    ).add_subparsers(required=True, metavar="COMMAND")
    init = _in_directory(group, "init", "make a CA: DIRECTORY/ca.pem and ca.key", _init)
    init.add_argument("--name", default="vmtoken", help="part of its name (default: %(default)s)")
    add_days(init, 365, LONGEST_CA)
    sign = _in_directory(
        group, "sign", "sign a client's certificate request; the certificate goes to standard output", _sign
    )
    sign.add_argument("request", type=Path, help="PKCS#10, PEM or DER")
    add_days(sign, DEFAULT_DAYS, LONGEST_LEAF)
    server = _in_directory(
        group, "server", "make key and certificate of a trial server, server.key and server.pem", _server
    )
    server.add_argument("names", nargs="+", metavar="NAME", help="DNS name or IP address")
    add_days(server, DEFAULT_DAYS, LONGEST_LEAF)
    _register_revocation(group)


def _register_revocation(group: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _in_directory(group, "list", "what it has issued", _list)
    revoke = _in_directory(group, "revoke", "revoke a certificate, and write crl.pem and crl.der", _revoke)
    revoke.add_argument("certificate", help="its serial number in hexadecimal, or a file with it")
    revoke.add_argument("--reason", choices=list(REASONS), default="unspecified")
    add_days(revoke, CRL_DAYS, LONGEST_LEAF, "until the next CRL is due")
    crl = _in_directory(group, "crl", "write crl.pem and crl.der anew, before the last ones expire", _crl)
    add_days(crl, CRL_DAYS, LONGEST_LEAF, "until the next CRL is due")


def add_days(parser: argparse.ArgumentParser, default: int, most: int, what: str = "of validity") -> None:
    """The option that says for how long."""
    parser.add_argument(
        "--days",
        type=lambda text: days(number_to(most)(text)),
        default=days(default),
        metavar="N",
        help=f"days {what}, {most} at most (default: {default})",
    )


def days(number: int) -> timedelta:
    """So many."""
    return timedelta(days=number)


def revoked(directory: Path, serial: int, reason: str, validity: timedelta) -> Issued:
    """Revoke a certificate of a lab CA, and write its CRL."""
    ca, now = LabCa.load(directory), datetime.now(UTC)
    line = ca.revoke(serial, REASONS[reason], now)
    ca.publish_crl(now, validity)
    return line


async def _init(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.directory
    LabCa.create(directory, arguments.name, datetime.now(UTC), arguments.days)
    say(f"A lab CA is in {directory}; trust {directory / 'ca.pem'} for trials only.")


async def _sign(arguments: argparse.Namespace) -> None:
    ca, request = LabCa.load(arguments.directory), read_request(arguments.request)
    certificate = ca.sign(request, datetime.now(UTC), arguments.days)
    print(certificate.public_bytes(Encoding.PEM).decode("ascii"), end="")


async def _server(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.directory
    LabCa.load(directory).issue_server(arguments.names, datetime.now(UTC), arguments.days)
    say(f"{directory / 'server.pem'} and server.key are for {', '.join(arguments.names)}.")


async def _list(arguments: argparse.Namespace) -> None:
    rows = [_row(each) for each in LabCa.load(arguments.directory).issued()]
    columns = ("serial", "subject", "not_after", "revoked", "reason")
    show_rows(rows, columns, as_json=arguments.json, nothing="This CA has issued nothing.")


async def _revoke(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.directory
    line = revoked(directory, _serial(arguments.certificate), arguments.reason, arguments.days)
    say(f"Certificate {line.serial} ({line.subject}) is revoked; servers need {directory / 'crl.pem'}.")


async def _crl(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.directory
    crl = LabCa.load(directory).publish_crl(datetime.now(UTC), arguments.days)
    until = f"{crl.next_update_utc:%Y-%m-%d %H:%M} UTC"
    say(f"{directory / 'crl.pem'} and crl.der name {len(list(crl))} certificates, and hold until {until}.")


def _in_directory(
    group: argparse._SubParsersAction[argparse.ArgumentParser], command: str, what: str, run: object
) -> argparse.ArgumentParser:
    parser = group.add_parser(command, help=what)
    parser.add_argument("directory", type=Path)
    parser.set_defaults(run=run)
    return parser


def _serial(certificate: str) -> int:
    path = Path(certificate)
    if path.exists():
        return x509.load_der_x509_certificate(read_certificates(path)[0]).serial_number
    try:
        return int(certificate.replace(":", ""), 16)
    except ValueError as error:
        raise UnusableFile(f"{certificate}: is neither a serial number nor a file.") from error


def _row(issued: Issued) -> Row:
    return {
        "serial": issued.serial,
        "subject": issued.subject,
        "not_after": moment(issued.not_after),
        "revoked": moment(issued.revoked) if issued.revoked else "",
        "reason": issued.reason,
    }

"""What the broker does and did: `status`, `metrics`, `reload`, `session`, `policy test`, `audit verify`."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC
from pathlib import Path

from dom0_broker.audit import verify
from dom0_broker.ctl.arguments import number_to
from dom0_broker.ctl.connection import admin, config_of
from dom0_broker.ctl.files import read_certificates
from dom0_broker.ctl.output import Row, moment, say, show_facts, show_rows
from dom0_broker.ctl.tokens.listing import warnings
from dom0_broker.ctl.tokens.pin_states import alarms
from vmtoken.rpc.convert import assurance_from_pb
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import token_pb2


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    commands.add_parser("status", help="what runs, and what is wrong").set_defaults(run=_status)
    commands.add_parser("reload", help="read configuration and policy again").set_defaults(run=_reload)
    metrics = commands.add_parser("metrics", help="metrics, in the text format of Prometheus")
    metrics.set_defaults(run=_metrics)
    group = commands.add_parser("session", help="handshakes").add_subparsers(required=True, metavar="COMMAND")
    latest = group.add_parser("list", help="the latest handshakes, newest first")
    latest.add_argument("--vm", default="", help="only of this VM")
    latest.add_argument("--limit", type=number_to(1000), default=50, help="how many at most (default: 50)")
    latest.set_defaults(run=_list)
    group = commands.add_parser("policy", help="rules").add_subparsers(required=True, metavar="COMMAND")
    test = group.add_parser("test", help="which rule decides; exit code 1 when it denies")
    test.add_argument("vm", help="name or UUID")
    test.add_argument("server", metavar="HOST:PORT")
    test.add_argument("--token", default="", help="as the VM calls it; not needed when it has only one")
    test.add_argument(
        "--certificate", type=Path, metavar="FILE", help="the server's chain, PEM, leaf first, root last"
    )
    test.set_defaults(run=_test)
    group = commands.add_parser("audit", help="the audit log").add_subparsers(
        required=True, metavar="COMMAND"
    )
    check = group.add_parser("verify", help="is the chain of records whole?")
    check.add_argument("log", type=Path, nargs="?", help="the log; that of broker.toml if not given")
    check.set_defaults(run=_verify)


async def _status(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        status = await broker.Status(pb.StatusRequest())
    facts: Row = {
        "version": status.version,
        "started": moment(status.started.ToDatetime(UTC)),
        "state": "draining" if status.draining else "serving",
        "vms": status.vms,
        "tokens": [f"{each.name} ({'ready' if each.ready else 'not ready'})" for each in status.tokens],
        "pin_alarms": [alarm for each in status.tokens for alarm in alarms(each)],
        "warnings": warnings(status.tokens),
        "policy": status.policy_error or f"{status.policy_rules} rules",
        "tcp": status.tcp_address,
        "vchan": status.vchan,
        "audit_log": status.audit_path,
        "audit_records": status.audit_sequence,
        "audit_head": status.audit_head.hex(),
    }
    show_facts(facts, as_json=arguments.json)


async def _reload(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.Reload(pb.ReloadRequest())
    say(f"{response.policy_rules} rules are in force.")
    if response.needs_restart:
        say(f"These options need a restart of the broker: {', '.join(response.needs_restart)}.")


async def _metrics(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        async for part in broker.Metrics(pb.MetricsRequest()):
            sys.stdout.buffer.write(part.text)


async def _list(arguments: argparse.Namespace) -> None:
    request = pb.ListHandshakesRequest(limit=arguments.limit, vm=arguments.vm)
    async with admin(arguments) as broker:
        response = await broker.ListHandshakes(request)
    columns = ("started", "vm", "token", "server", "outcome", "suite", "group", "resumed", "ms", "rule")
    rows = [_handshake(each) for each in response.handshakes]
    show_rows(rows, columns, as_json=arguments.json, nothing="No handshakes since the broker started.")


async def _test(arguments: argparse.Namespace) -> int:
    host = arguments.server.rpartition(":")[0] or arguments.server
    request = pb.TestPolicyRequest(
        vm=arguments.vm,
        server_name=host.strip("[]"),
        token=arguments.token,
        certificates=read_certificates(arguments.certificate) if arguments.certificate else [],
    )
    async with admin(arguments) as broker:
        response = await broker.TestPolicy(request)
    rows = [_outcome(each) for each in response.outcomes]
    show_rows(rows, ("decision", "rule", "text", "if"), as_json=arguments.json, nothing="")
    return 0 if any(each.allow for each in response.outcomes) else 1


async def _verify(arguments: argparse.Namespace) -> None:
    log: Path = arguments.log or config_of(arguments).audit_path
    verified = verify(log)
    facts: Row = {
        "log": str(log),
        "files": verified.files,
        "records": verified.records,
        "first": verified.first,
        "last": verified.head.sequence,
        "head": verified.head.digest,
        "verdict": "whole" if verified.first == 1 else f"whole from record {verified.first} on",
    }
    show_facts(facts, as_json=arguments.json)


def _handshake(each: pb.HandshakeSummary) -> Row:
    known = each.assurance != token_pb2.ASSURANCE_UNSPECIFIED
    return {
        "session_id": each.session_id.hex(),
        "started": moment(each.started.ToDatetime(UTC)),
        "vm": each.vm,
        "token": each.token,
        "server": f"{each.server_name}:{each.port}",
        "outcome": each.outcome,
        "rule": each.rule,
        "version": _version(each.version),
        "suite": each.cipher_suite,
        "group": each.group,
        "resumed": each.resumed,
        "assurance": assurance_from_pb(each.assurance).value if known else "",
        "ms": round(each.total_microseconds / 1000, 1),
        "queue_ms": round(each.queue_microseconds / 1000, 1),
        "token_ms": round(each.token_microseconds / 1000, 1),
        "server_certificate_sha256": each.server_certificate_sha256.hex(),
    }


def _version(version: token_pb2.TlsVersion.ValueType) -> str:
    """`1.3`; empty when the handshake did not complete."""
    return token_pb2.TlsVersion.Name(version)[len("TLS_VERSION_") :].replace("_", ".") if version else ""


def _outcome(each: pb.PolicyOutcome) -> Row:
    return {
        "decision": "allow" if each.allow else "deny",
        "rule": each.rule,
        "text": each.text,
        "if": each.condition,
    }

"""`vmtokenctl doctor`: each thing that a person gets wrong in dom0, broken here."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec.structs import replace

from dom0_broker.config import BrokerConfig, PcscConfig, Pkcs11Config, TcpConfig
from dom0_broker.ctl.doctor import files, readers, service
from tests.support.machines import NOON, STRANGER, complaints, machine, owner, put
from tests.support.pki import client_identity
from vmtoken.doctor.finding import Verdict
from vmtoken.doctor.machine import Account
from vmtoken.errors import BrokerUnavailable
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import error_pb2

WARNING, WRONG = Verdict.WARNING, Verdict.WRONG
ANYBODY = Account("vmtoken", 54321, frozenset())


@pytest.fixture
def config(tmp_path: Path) -> BrokerConfig:
    """A broker whose files are in order."""
    put(tmp_path, "policy.d/10-site.policy", "allow vm=web01 server=localhost\n")
    (tmp_path / "state").mkdir(mode=0o700)
    return BrokerConfig(
        state_dir=tmp_path / "state", runtime_dir=tmp_path / "run", policy_dir=tmp_path / "policy.d"
    )


# Files ---------------------------------------------------------------------------------------------


def test_files_in_order(config: BrokerConfig) -> None:
    user = owner(config.state_dir)
    found = [*files.configuration(config, ANYBODY), *files.policy(config), *files.state(config, user)]
    assert complaints(found) == []


def test_policy_directory_is_missing(config: BrokerConfig) -> None:
    broken = replace(config, policy_dir=config.policy_dir / "nowhere")
    assert complaints(list(files.configuration(broken, ANYBODY))) == [("configuration", WRONG)]
    assert list(files.policy(broken)) == []


def test_policy_that_the_broker_may_not_read(config: BrokerConfig) -> None:
    (config.policy_dir / "10-site.policy").chmod(0o600)
    (finding, _) = files.configuration(config, ANYBODY)
    assert (finding.verdict, finding.cure) == (WRONG, f"Run: chmod go+r {config.policy_dir}/10-site.policy")


@pytest.mark.parametrize("path", [".", "10-site.policy"])
def test_policy_that_others_can_write(config: BrokerConfig, path: str) -> None:
    place = config.policy_dir / path
    place.chmod(place.stat().st_mode | 0o020)
    assert complaints(list(files.policy(config))) == [("policy", WRONG)]


def test_policy_with_an_error_names_the_line(config: BrokerConfig) -> None:
    put(config.policy_dir, "20-typo.policy", "alow vm=web01 server=localhost\n")
    (finding,) = files.policy(config)
    assert finding.verdict is WRONG
    assert "20-typo.policy:1" in finding.text


def test_policy_without_rules(config: BrokerConfig) -> None:
    put(config.policy_dir, "10-site.policy", "# nothing yet\n")
    assert complaints(list(files.policy(config))) == [("policy", WARNING)]


def test_state_that_is_missing_open_or_somebody_else_s(config: BrokerConfig) -> None:
    user = owner(config.state_dir)
    missing = replace(config, state_dir=config.state_dir / "nowhere")
    assert complaints(list(files.state(missing, user))) == [("state", WRONG)]
    assert complaints(list(files.state(config, STRANGER))) == [("state", WRONG)]
    config.state_dir.chmod(0o750)
    assert complaints(list(files.state(config, user))) == [("state", WRONG)]


def test_sealing_key_that_others_may_read(config: BrokerConfig) -> None:
    user = owner(config.state_dir)
    owner(put(config.state_dir, "sealing.key", mode=0o640))
    (_, finding) = files.state(config, user)
    assert (finding.verdict, finding.cure) == (WRONG, f"Run: chmod 0600 {config.state_dir}/sealing.key")


def test_room_is_looked_for_where_the_files_will_be(config: BrokerConfig, tmp_path: Path) -> None:
    missing = replace(config, state_dir=tmp_path / "not/yet")
    (finding,) = files.room(missing)
    assert str(tmp_path) in finding.text


def test_modules(config: BrokerConfig, tmp_path: Path) -> None:
    config = replace(config, pkcs11=Pkcs11Config(modules=(tmp_path / "lib.so",)))
    assert complaints(list(files.pkcs11_modules(config))) == [("pkcs11", WRONG)]
    put(tmp_path, "lib.so").chmod(0o666)
    assert complaints(list(files.pkcs11_modules(config))) == [("pkcs11", WRONG)]


# pcscd ---------------------------------------------------------------------------------------------

_SAYS = {"pcscd --version": "pcsc-lite version 1.9.9.\nCopyright (C) 1999-2002 by David Corcoran\n"}


def test_pcscd_in_order(tmp_path: Path) -> None:
    put(tmp_path, "/run/pcscd/pcscd.comm", mode=0o666)
    (finding,) = readers.pcscd(PcscConfig(), machine(tmp_path, _SAYS), STRANGER)
    assert "1.9.9 takes 16 readers at most" in finding.text


def test_pcscd_of_many_readers(tmp_path: Path) -> None:
    put(tmp_path, "/run/pcscd/pcscd.comm", mode=0o666)
    new = machine(tmp_path, {"pcscd --version": "pcsc-lite version 2.5.0."})
    (finding,) = readers.pcscd(PcscConfig(), new, STRANGER)
    assert finding.text == "pcscd 2.5.0 is there."


@pytest.mark.parametrize(
    ("version", "cards", "pcscds", "expected"),
    [
        ("1.9.9", 16, 1, []),
        ("1.9.9", 17, 1, [("pcscd", WRONG)]),
        ("1.9.9", 32, 2, []),
        ("2.5.0", 99, 1, []),
    ],
)
def test_cards_need_readers(
    tmp_path: Path, version: str, cards: int, pcscds: int, expected: list[tuple[str, Verdict]]
) -> None:
    looked_at = machine(tmp_path, {"pcscd --version": f"pcsc-lite version {version}."})
    assert complaints(list(readers.room(cards, pcscds, looked_at))) == expected


@pytest.mark.parametrize(("socket", "expected"), [("", WARNING), ("/run/second/pcscd.comm", WRONG)])
def test_pcscd_is_missing(tmp_path: Path, socket: str, expected: Verdict) -> None:
    found = list(readers.pcscd(PcscConfig(socket=socket), machine(tmp_path, _SAYS), STRANGER))
    assert complaints(found) == [("pcscd", expected)]


def test_pcscd_that_the_broker_may_not_open(tmp_path: Path) -> None:
    put(tmp_path, "/run/pcscd/pcscd.comm", mode=0o600)
    found = list(readers.pcscd(PcscConfig(), machine(tmp_path, _SAYS), STRANGER))
    assert complaints(found) == [("pcscd", WRONG)]


def test_pcscd_that_says_no_version(tmp_path: Path) -> None:
    put(tmp_path, "/run/pcscd/pcscd.comm", mode=0o666)
    assert complaints(list(readers.pcscd(PcscConfig(), machine(tmp_path), STRANGER))) == [("pcscd", WARNING)]


def test_polkit_without_a_rule_for_the_broker(tmp_path: Path) -> None:
    put(tmp_path, "/run/pcscd/pcscd.comm", mode=0o666)
    put(tmp_path, "/usr/share/polkit-1/actions/org.debian.pcsc-lite.policy")
    found = list(readers.pcscd(PcscConfig(), machine(tmp_path, _SAYS), STRANGER))
    assert complaints(found) == [("pcscd", WRONG)]
    put(tmp_path, "/usr/share/polkit-1/rules.d/70-vmtoken-broker.rules")
    assert complaints(list(readers.pcscd(PcscConfig(), machine(tmp_path, _SAYS), STRANGER))) == []


# The broker ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "private", "expected"),
    [("", "yes", []), ("0.0.0.0:8441", "no", []), ("0.0.0.0:8441", "yes", [("network", WRONG)])],
)
def test_links_over_tcp_need_a_network(
    tmp_path: Path, listen: str, private: str, expected: list[tuple[str, Verdict]]
) -> None:
    config = BrokerConfig(tcp=TcpConfig(listen=listen))
    found = list(service.network(config, machine(tmp_path, {"PrivateNetwork": f"{private}\n"})))
    assert complaints(found) == expected


def test_broker_that_does_not_answer(tmp_path: Path) -> None:
    finding = service.unreachable(machine(tmp_path, {"ActiveState": "failed\n"}), BrokerUnavailable("Gone."))
    assert complaints([finding]) == [("broker", WRONG)]
    assert "failed" in finding.text


def test_broker_in_order() -> None:
    assert complaints(list(service.running(_status(), "1.0", NOON))) == []


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({"version": "0.9"}, ("version", WARNING)),
        ({"draining": True}, ("broker", WARNING)),
        ({"policy_error": "10-site.policy:1: what is this?"}, ("policy", WRONG)),
        ({"vms": 0}, ("broker", WARNING)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_the_broker_says_of_itself(broken: dict[str, object], expected: tuple[str, Verdict]) -> None:
    status = _status()
    for name, value in broken.items():
        setattr(status, name, value)
    assert complaints(list(service.running(status, "1.0", NOON))) == [expected]


def test_token_that_is_not_ready() -> None:
    token = pb.TokenStatus(name="card", not_ready=error_pb2.ErrorDetail(message="There is no card."))
    assert complaints(list(service.token_findings(token, NOON))) == [("token", WRONG)]


@pytest.mark.parametrize(("day", "expected"), [(-20, WARNING), (1, WRONG)])
def test_token_whose_certificate_ends(day: int, expected: Verdict) -> None:
    identity = client_identity()
    now = identity.certificate.not_valid_after_utc + timedelta(days=day)
    token = pb.TokenStatus(name="card", ready=True, certificates=identity.chain_der[:1])
    assert complaints(list(service.token_findings(token, now))) == [("certificate", expected)]


def test_pin_that_was_refused() -> None:
    pin = pb.PinStatus(role=pb.PIN_ROLE_USER, condition=pb.PIN_CONDITION_REJECTED, tries_left=1)
    pin.told.CopyFrom(Timestamp())
    token = pb.TokenStatus(name="card", ready=True, pins=[pin])
    assert complaints(list(service.token_findings(token, NOON))) == [("pin", WRONG)]


def test_pin_source_that_is_missing_or_open_to_others(tmp_path: Path) -> None:
    path = tmp_path / "card.pin"
    token = pb.TokenStatus(name="card", ready=True, pins=[pb.PinStatus(source=str(path))])
    assert complaints(list(service.token_findings(token, NOON))) == [("pin", WRONG)]
    path.write_text("123456\n")
    os.chmod(path, 0o644)
    assert complaints(list(service.token_findings(token, NOON))) == [("pin", WRONG)]
    os.chmod(path, 0o600)
    assert complaints(list(service.token_findings(token, NOON))) == []


def _status() -> pb.StatusResponse:
    return pb.StatusResponse(version="1.0", vms=1, tokens=[pb.TokenStatus(name="card", ready=True)])

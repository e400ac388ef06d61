"""`vmtoken doctor`: each thing that a person gets wrong in a guest, broken here."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from guest_agent.cli import doctor
from tests.support.machines import NOON, STRANGER, complaints, machine, put
from tests.support.pki import client_identity
from vmtoken.doctor.finding import Verdict
from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1 import token_pb2

WARNING, WRONG = Verdict.WARNING, Verdict.WRONG


def _listing() -> pb.ListAgentTokensResponse:
    ends = int((NOON + timedelta(days=365)).timestamp())
    token = token_pb2.TokenDescriptor(name="web", ready=True, certificate_not_after=ends)
    return pb.ListAgentTokensResponse(tokens=[token], agent_version="1.0", broker_version="1.0")


def test_everything_in_order() -> None:
    assert complaints(list(doctor.listing_findings(_listing(), "1.0", NOON))) == []


@pytest.mark.parametrize(("agent", "broker"), [("0.9", "0.9"), ("1.0", "0.9"), ("1.0", "")])
def test_versions_that_differ(agent: str, broker: str) -> None:
    listing = _listing()
    listing.agent_version, listing.broker_version = agent, broker
    assert complaints(list(doctor.listing_findings(listing, "1.0", NOON))) == [("version", WARNING)]


def test_no_token_is_bound() -> None:
    listing = _listing()
    del listing.tokens[:]
    assert complaints(list(doctor.listing_findings(listing, "1.0", NOON))) == [("token", WRONG)]


def test_token_that_is_not_ready() -> None:
    listing = _listing()
    listing.tokens[0].ready = False
    listing.tokens[0].not_ready_because = "There is no card."
    assert complaints(list(doctor.listing_findings(listing, "1.0", NOON))) == [("token", WRONG)]


@pytest.mark.parametrize(("days", "expected"), [(350, WARNING), (366, WRONG)])
def test_certificate_that_ends(days: int, expected: Verdict) -> None:
    found = list(doctor.listing_findings(_listing(), "1.0", NOON + timedelta(days=days)))
    assert complaints(found) == [("certificate", expected)]


async def test_configuration_with_an_error(tmp_path: Path) -> None:
    path = put(tmp_path, "agent.toml", "[broker]\nlinc = 'vchan:'\n")
    found = await doctor.diagnose(tmp_path / "agent.sock", path, machine(tmp_path), STRANGER)
    assert complaints(found) == [("configuration", WRONG)]


async def test_agent_that_does_not_run(tmp_path: Path) -> None:
    path = put(tmp_path, "agent.toml", "[broker]\nlink = 'unix:/run/vmtoken/broker.sock'\n")
    found = await doctor.diagnose(tmp_path / "agent.sock", path, machine(tmp_path), STRANGER)
    assert complaints(found) == [("agent", WRONG)]


async def test_link_over_vchan_without_xen(tmp_path: Path) -> None:
    path = put(tmp_path, "agent.toml", "[broker]\nlink = 'vchan:'\n")
    found = await doctor.diagnose(tmp_path / "agent.sock", path, machine(tmp_path), STRANGER)
    assert complaints(found) == [("xen", WRONG), ("agent", WRONG)], "what follows from it is not worth a word"


async def test_enrolment_whose_certificate_has_ended(tmp_path: Path) -> None:
    identity = client_identity()
    certificate = put(tmp_path, "vm.pem", identity.chain_pem.decode())
    late = identity.certificate.not_valid_after_utc + timedelta(days=1)
    finding, *_ = doctor._enrolment(certificate, late)
    assert complaints([finding]) == [("certificate", WRONG)]
    (finding,) = doctor._enrolment(put(tmp_path, "empty.pem"), late)
    assert complaints([finding]) == [("certificate", WRONG)]

"""What `vmtokenctl vm` reads of domains: their configurations, and the list of xl."""

from __future__ import annotations

from pathlib import Path

import pytest

from dom0_broker.ctl.domains import DomainConfig, parse_list, read_domain_config, state
from dom0_broker.ctl.files import UnusableFile
from vmtoken.v1 import admin_service_pb2 as pb

UUID = "6f3c1e7a-0b1d-4f5e-9a44-1c2d3e4f5a6b"

LISTING = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0  1536     2     r-----     964.6
d2                                           2   512     1     -b----     132.6
a long name                                  3   512     1     --p---      16.1
(null)                                       4     0     1     --ps-d      16.1
new                                          5   512     1     ------       0.0
failed                                       6   512     1     ---sc-       0.0
"""
"""Of xl 4.17, but for the states of the last four."""


@pytest.mark.parametrize(
    ("text", "config"),
    [
        (f'name = "web01"\nuuid = "{UUID}"\n', DomainConfig("web01", UUID)),
        (f"# uuid='none'\nuuid='{UUID}'\nname='web01' # ours\nmemory=512", DomainConfig("web01", UUID)),
        ('name="web01"; memory = 512\ndisk = [ "name=x,uuid=y" ]', DomainConfig("web01", "")),
        ('name="first"\nname="web01"', DomainConfig("web01", "")),
        (f'memory = 1; uuid = "{UUID}"\n;name="web01"', DomainConfig("web01", UUID)),
        (f"name='web01' # '; uuid='{UUID}'\nextra=\"; uuid='{UUID}'\"", DomainConfig("web01", "")),
    ],
)
def test_name_and_uuid_are_found(tmp_path: Path, text: str, config: DomainConfig) -> None:
    path = tmp_path / "web01.cfg"
    path.write_text(text)
    assert read_domain_config(path) == config


@pytest.mark.parametrize(("content", "why"), [(b"memory = 512", "has no line name"), (b"\xff", "not UTF-8")])
def test_what_is_no_configuration(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "web01.cfg"
    path.write_bytes(content)
    with pytest.raises(UnusableFile, match=why):
        read_domain_config(path)


def test_the_list_of_xl_is_read() -> None:
    assert parse_list(LISTING) == {
        0: "running",
        2: "running",
        3: "paused",
        4: "dying",
        5: "running",
        6: "crashed",
    }
    assert parse_list("") == {}


@pytest.mark.parametrize(
    ("vm", "shown"),
    [
        (pb.Vm(), "unknown"),
        (pb.Vm(domains_watched=True), "gone"),
        (pb.Vm(domains_watched=True, domid=3), "paused"),
        (pb.Vm(domains_watched=True, domid=9), "unknown"),
        (pb.Vm(domains_watched=True, domid=3, unlinked=True), "paused, unlinked"),
    ],
)
def test_a_vm_is_shown_as_broker_and_xl_know_it(vm: pb.Vm, shown: str) -> None:
    assert state(vm, parse_list(LISTING)) == shown

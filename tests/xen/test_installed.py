"""The installed product makes TLS sessions in the lab, with a software element and a server of OpenSSL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from xenlab import Lab

from tests.xen.stage import Stage


@pytest.fixture(scope="module")
def stage(booted_lab: Lab) -> Iterator[Stage]:
    with Stage.running(booted_lab.dom0) as stage:
        stage.personalise("web01")
        yield stage


@pytest.mark.parametrize("version", ["1_2", "1_3"])
def test_session_from_dom0_over_a_unix_socket(lab: Lab, stage: Stage, version: str) -> None:
    with stage.agent(lab.dom0, "web01"):
        session, page = stage.connect(lab.dom0, f"--tls{version}")
    assert session["client_certificate_sent"]
    assert session["protocol"] == f"TLSv{version.replace('_', '.')}"
    assert "Subject: CN=web01" in page


def test_session_from_a_domu_over_tcp_is_made_and_resumed(lab: Lab, stage: Stage) -> None:
    web01 = lab.domu("web01")
    stage.enroll(web01)
    with stage.agent(web01, "web01"):
        session, page = stage.connect(web01, "--resume")
    assert session["resumed"]
    assert "Subject: CN=web01" in page

"""The installed product makes TLS sessions in the lab as people ask for them, with `vmtoken connect`."""

from __future__ import annotations

import pytest
from xenlab import Lab

from tests.xen.residents import Residents, Seen
from tests.xen.stage import Link, Stage

pytestmark = pytest.mark.long


def test_sessions_from_dom0_over_a_unix_socket(lab: Lab, stage: Stage) -> None:
    with stage.agent(lab.dom0, "web01", Link.UNIX):
        for option, version in (("--tls1_2", "TLSv1.2"), ("--tls1_3", "TLSv1.3")):
            session, page = stage.connect(lab.dom0, option)
            assert session["client_certificate_sent"]
            assert session["protocol"] == version
            assert Seen.on(page).client == "web01"


def test_session_from_a_domu_over_tcp_is_made_and_resumed(lab: Lab, residents: Residents) -> None:
    web02, stage = lab.domu("web02"), residents.stage
    residents.move_out("web02")
    stage.enroll(web02)
    with stage.agent(web02, "web02", Link.TCP):
        session, page = stage.connect(web02, "--resume")
    assert session["resumed"]
    assert Seen.on(page).client == "web02"

"""What the project promises, on a real Xen: two VMs with an identity each, over vchan.

Each server sees the right certificate; nothing in a VM's memory, and nothing that root in another VM tries,
gives its identity to somebody else; sessions go on whatever happens to the broker.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from xenlab import DomU, Lab

from tests.support.session_secrets import sorted_out
from tests.xen.links import DOM0, HOME, LINK_PORT, Broker, nodes
from tests.xen.memory import GuestMemory, Tap, kept_by
from tests.xen.nginx import PORT as NGINX
from tests.xen.residents import Application, Residents, Seen
from tests.xen.stage import SERVER_PORT as OPENSSL
from vmtoken.transport import libxenvchan
from vmtoken.transport.vchan import READ_RING, WRITE_RING

VERSIONS = ("1.2", "1.3")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("server", [OPENSSL, NGINX], ids=["openssl", "nginx"])
def test_servers_see_the_certificate_of_the_vm_that_connects(
    applications: dict[str, Application], server: int, version: str
) -> None:
    for name, application in applications.items():
        full = application.open(server, version, no_resumption=True)
        assert application.seen(full) == Seen(name, f"TLSv{version}", resumed=False)
        application.close(full)
        resumed = application.open(server, version)
        assert application.seen(resumed) == Seen(name, f"TLSv{version}", resumed=True)
        application.close(resumed)


@pytest.mark.long
def test_a_guests_memory_holds_the_keys_of_its_open_sessions_and_no_other_secret(
    lab: Lab, residents: Residents, applications: dict[str, Application], tmp_path: Path
) -> None:
    web01, other = applications["web01"], applications["web02"]
    for application in (web01, other):  # the token is open: what it derives from now on belongs to sessions
        application.close(application.open(NGINX))
    mine = Tap(lab.dom0, tmp_path)
    opened = [_full_and_resumed(web01, version) for version in VERSIONS]
    key_blocks = sorted_out(mine.derived())[1]
    others = Tap(lab.dom0, tmp_path)
    for version in VERSIONS:
        _full_and_resumed(other, version)
    key_blocks_of_the_other = sorted_out(others.derived())[1]
    secrets = sorted_out(mine.derived())[0]
    assert len(key_blocks) >= 4 * len(opened)
    assert len(secrets) > 50

    keys, pins = kept_by(residents.stage, "web01-card")
    tokens = json.loads(residents.stage.broker.control("token", "list", "--json"))
    assert len(pins) == 2 * len(tokens)
    must_stay = {*secrets, *key_blocks_of_the_other, *keys, *pins}
    memory = GuestMemory.of(lab.domu("web01"), {*must_stay, *key_blocks})
    assert key_blocks <= memory.found, "the search does not find what is there"
    assert not must_stay & memory.found
    assert memory.searched > 64 << 20, "a guest that runs uses more"


def test_another_user_of_dom0_cannot_open_the_socket_of_a_vm(lab: Lab, broker: Broker) -> None:
    source = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except OSError as error:
    print(type(error).__name__)
"""
    assert lab.dom0.python(source, f"{HOME}/run/vms/web01/broker.sock").strip() == "PermissionError"


@pytest.mark.parametrize("end", [pytest.param("stopped", marks=pytest.mark.long), "killed"])
def test_sessions_outlive_the_broker_which_is_found_again(
    lab: Lab, broker: Broker, applications: dict[str, Application], end: str
) -> None:
    sessions = [
        (application, application.open(NGINX, version), name, f"TLSv{version}")
        for name, application in applications.items()
        for version in VERSIONS
    ]

    def assert_seen() -> None:
        for application, session, name, version in sessions:
            seen = application.seen(session)
            assert (seen.client, seen.version) == (name, version)

    broker.process.stop() if end == "stopped" else broker.process.kill()
    assert broker.process.has_ended
    left = {str(lab.domu(name).domid) for name in applications} & set(nodes(lab.dom0))
    assert len(left) == (len(applications) if end == "killed" else 0), "one that stops removes its nodes"
    assert_seen()
    broker.start()
    assert_seen()
    for name, application in applications.items():
        assert application.do("tokens") == {"tokens": ["identity"]}
        assert application.seen(application.open(NGINX)).client == name


def test_root_in_another_vm_cannot_use_the_token_by_any_way_tried(
    lab: Lab, residents: Residents, applications: dict[str, Application]
) -> None:
    web01, web02 = lab.domu("web01"), lab.domu("web02")
    session = applications["web01"].open(NGINX)
    residents.move_out("web02")
    attempts = _attempts(web02, _known_of(lab, web01, session))

    assert attempts.pop("done")
    assert attempts.pop("its own tokens") == ["identity"]
    assert attempts.pop("handshake with 'identity'") == "flight", "the control: its own token works"
    mapped = attempts.pop("grants of dom0 that it can map")
    assert mapped == libxenvchan.pages(READ_RING, WRITE_RING), "those of its own channel"
    for attempt, outcome in attempts.items():
        assert outcome in _expected(attempt), f"{attempt}: {outcome}"
    assert applications["web01"].seen(session).client == "web01"


def _full_and_resumed(application: Application, version: str) -> list[dict[str, Any]]:
    """Two open sessions with data behind them, the second on the ticket of a third."""
    full = application.open(NGINX, version, no_resumption=True)
    application.close(application.open(NGINX, version, no_resumption=True))
    resumed = application.open(NGINX, version)
    assert [application.seen(each).resumed for each in (full, resumed)] == [False, True]
    return [full, resumed]


def _known_of(lab: Lab, victim: DomU, session: dict[str, Any]) -> dict[str, Any]:
    nodes = f"/local/domain/0/data/vmtoken/{victim.domid}"
    grant, port = lab.dom0.sh(f"xenstore-read {nodes}/ring-ref {nodes}/event-channel").split()
    return {
        "domid": victim.domid,
        "uuid": str(victim.uuid),
        "vm": victim.name,
        "token": f"{victim.name}-card",
        "session": session["session_id"],
        "grant": int(grant),
        "port": int(port),
        "tcp": [DOM0, LINK_PORT],
    }


def _attempts(domain: DomU, victim: dict[str, Any]) -> dict[str, Any]:
    program = (Path(__file__).parent / "intruder.py").read_text()
    printed = domain.python(program, json.dumps(victim), seconds=240)
    return dict(json.loads(line) for line in printed.splitlines())


def _expected(attempt: str) -> tuple[object, ...]:
    """What may come of an attempt."""
    match attempt.split()[0]:
        case "certificate":
            return ("NOT_FOUND", "INVALID_ARGUMENT")
        case "handshake":
            return ("TOKEN_NOT_FOUND", "INVALID_REQUEST")
        case "metadata":
            return ("CN=web02",)
        case "ticket":
            return ("accepted False", "SESSION_NOT_FOUND")
        case "administration":
            return ("UNIMPLEMENTED",)
        case "xenstore":
            return ("refused",)
        case "TCP":
            return ("closed", "SSLError", "ConnectionResetError")
    return {
        "the other's channel": ("Permission denied",),
        "the other's grant": (False,),
        "the other's event channel": ("Invalid argument",),
    }[attempt]

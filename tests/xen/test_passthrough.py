"""A service domain that has the card reader: docs/install-xen.md, with a USB controller passed through.

The reader and the driver are nobody's here: QEMU's CCID reader, Debian's pcscd and libccid in the domain. The
card in the reader is a software element on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from xenlab import DomU, Lab, images
from xenlab.qemu import USB_CONTROLLER
from xenlab.suite import RESULTS

from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import ElementOptions
from tests.fakes.card import RecordingCard
from tests.support.cards import NAME, PINS, SEALING_KEY
from tests.xen.installing import APT_WITHIN, PACKAGES, Operator, make_bare, put_packages
from tests.xen.links import DOM0, HOME, READY_WITHIN
from tests.xen.stage import SERVER_NAME, SERVER_PORT, server_command
from tests.xen.usb_card import card_in_reader
from vmtoken.iso7816.atr import AnswerToReset

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

PRODUCT = ("vmtoken-common", "vmtoken-broker")
TOKEN = "web01-card"

_AS_DEBIAN_WOULD = "modprobe -a xen-pcifront xhci-pci; systemctl unmask --quiet pcscd.socket"
"""The lab's domUs see to devices of few kinds when they boot, and have units masked."""


@pytest.fixture(scope="module")
def booted_lab() -> Iterator[Lab]:
    """One with an IOMMU and a reader, which has ended before the lab of the other tests begins."""
    with Lab.boot(images.build(), RESULTS / "passthrough", reader=True) as lab:
        yield lab


@dataclass(frozen=True)
class CardInReader:
    """An EAP-TLS card of the factory: it has PINs and nothing else."""

    serial: str
    connection: RecordingCard


@pytest.fixture
def card(lab: Lab, tmp_path: Path) -> Iterator[CardInReader]:
    """It is in the host's reader."""
    elements = SoftwareBackend(tmp_path, SEALING_KEY, options=ElementOptions(t0=True))
    elements.create(NAME, PINS)
    connection = RecordingCard(elements.connect(NAME))
    with card_in_reader(lab.reader, connection, AnswerToReset.of_card(t0=True).encode()):
        yield CardInReader(elements.serial(NAME), connection)


def test_vm_proves_its_identity_with_a_card_of_the_service_domain(lab: Lab, card: CardInReader) -> None:
    passed_through = {"pci": [USB_CONTROLLER]}
    keys = lab.define("keys", systemd=True, persistent=True, memory=448, config=passed_through)
    web01 = lab.define("web01", systemd=True, memory=448)
    operator = Operator(lab.dom0, keys)
    put_packages(lab.dom0, PRODUCT)
    operator.follow("A service domain", "in dom0")
    for domain in (keys, web01):
        domain.create()
    keys.wait_until_up()
    make_bare(keys, *PRODUCT)
    keys.sh(_AS_DEBIAN_WOULD)
    (found,) = operator.follow("A service domain", "in the service domain")
    assert f"pcsc:serial={card.serial}" in found
    _personalise(lab, keys, card.serial)
    _admit(keys, web01)

    web01.wait_until_up()
    web01.sh("apt purge --yes vmtoken-broker", seconds=APT_WITHIN)  # its rule for /dev/xen would hold
    web01.run(["systemctl", "start", "vmtoken-agent"], seconds=READY_WITHIN)
    web01.wait_until("vmtoken list", READY_WITHIN)
    before = len(card.connection.exchanges)
    with lab.dom0.start(server_command(), directory=HOME) as server:
        server.wait_for("ACCEPT", READY_WITHIN)
        connect = ["vmtoken", "connect", "--servername", SERVER_NAME, f"{DOM0}:{SERVER_PORT}"]
        page = web01.run(connect, stdin="GET / HTTP/1.0\r\n\r\n", seconds=READY_WITHIN).stdout
    assert "Subject: CN=web01" in page
    assert len(card.connection.exchanges) > before


def _personalise(lab: Lab, keys: DomU, serial: str) -> None:
    """A key made in the card, and the certificate for it, by the CA that the server believes."""
    dom0 = lab.dom0
    dom0.sh(f"mkdir -p {HOME}; cd {HOME}; vmtokenctl ca init ca; vmtokenctl ca server ca {SERVER_NAME}")
    keys.write(f"{PACKAGES}/ca.pem", dom0.read(f"{HOME}/ca/ca.pem"))
    pins = b"\n".join((PINS.user.reveal(), PINS.operator.reveal(), b"")).decode()
    _control(keys, "token", "create", TOKEN, "--uri", f"pcsc:serial={serial}", stdin=pins)
    dom0.write(f"{HOME}/web01.csr", _control(keys, "token", "csr", TOKEN, "--subject", "CN=web01"))
    keys.write(f"{PACKAGES}/web01.pem", dom0.sh(f"cd {HOME}; vmtokenctl ca sign ca web01.csr"))
    _control(keys, "token", "install-cert", TOKEN, "web01.pem", "--trust", "ca.pem")


def _admit(keys: DomU, vm: DomU) -> None:
    _control(keys, "vm", "add", vm.name, "--uuid", str(vm.uuid))
    _control(keys, "vm", "bind", vm.name, TOKEN)
    keys.write("/etc/vmtoken/policy.d/20-site.policy", f"allow vm={vm.name} server={SERVER_NAME}\n")
    _control(keys, "reload")


def _control(machine: DomU, *arguments: str, stdin: str = "") -> str:
    command = ["vmtokenctl", *arguments]
    return machine.run(command, stdin=stdin, directory=PACKAGES, seconds=READY_WITHIN).stdout

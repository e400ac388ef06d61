"""Software cards in virtual readers: vpcd's protocol and `vmtokenctl softcard serve`, judged by OpenSC."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0_broker.backends.software.element import ElementOptions
from dom0_broker.backends.software.vpcd import VirtualCard
from dom0_broker.ctl.__main__ import main
from tests.support.cards import bare_element
from tests.support.pcscd import Pcscd, VirtualReader, pcscd
from tests.support.processes import Child, running
from tests.support.waiting import wait_until
from vmtoken.cards.codes import AID
from vmtoken.errors import TokenUnavailable
from vmtoken.iso7816.apdu import CommandApdu
from vmtoken.iso7816.atr import AnswerToReset

pytestmark = pytest.mark.pcsc

SELECT = CommandApdu(0x00, 0xA4, 0x04, 0x00, AID, 256).encode()
VMTOKENCTL = Path(sys.executable).parent / "vmtokenctl"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pcscd]:
    with pcscd(tmp_path_factory.mktemp("pcscd")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def reader(daemon: Pcscd) -> VirtualReader:
    return daemon.readers[0]


def opensc_tool(daemon: Pcscd, reader: VirtualReader, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Let OpenSC, which nobody here wrote, use the card in a reader."""
    command = ["opensc-tool", "--card-driver", "default", "--reader", reader.name, *arguments]
    environment = {**os.environ, **daemon.environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    "options", [ElementOptions(), ElementOptions(extended=True), ElementOptions(t0=True)]
)
def test_card_in_a_virtual_reader_answers_a_program(
    daemon: Pcscd, reader: VirtualReader, tmp_path: Path, options: ElementOptions
) -> None:
    atr = AnswerToReset.of_card(t0=options.t0, extended=options.extended).encode()
    select = SELECT[:-1] if options.t0 else SELECT
    with reader.holding(bare_element(tmp_path, options), atr):
        assert opensc_tool(daemon, reader, "--atr").stdout.strip() == atr.hex(":")
        answer = opensc_tool(daemon, reader, "--send-apdu", select.hex())
    assert re.search(r"SW1=0x(90|61)", answer.stdout), answer


def test_removed_card_is_gone_and_may_come_back(daemon: Pcscd, reader: VirtualReader, tmp_path: Path) -> None:
    element = bare_element(tmp_path)
    for _ in range(2):
        with reader.holding(element) as card:
            assert opensc_tool(daemon, reader, "--atr").returncode == 0
            card.remove()
            wait_until(lambda: opensc_tool(daemon, reader, "--atr").returncode != 0)


def test_second_card_for_a_slot_and_a_missing_reader_are_refused(
    reader: VirtualReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dom0_broker.backends.software.vpcd._FIRST_WORD", 0.5)
    element = bare_element(tmp_path)
    with reader.holding(element), pytest.raises(TokenUnavailable, match="another one is in it"):
        VirtualCard(element, b"\x3b\x00", reader.port).play()
    with pytest.raises(TokenUnavailable, match="install pcscd and vsmartcard-vpcd"):
        VirtualCard(element, b"\x3b\x00", 1).play()


@contextlib.contextmanager
def served(reader: VirtualReader, directory: Path, *arguments: str, pins: str = "") -> Iterator[Child]:
    command = [VMTOKENCTL, "softcard", "serve", "--port", str(reader.port), "--directory", directory]
    with running([*command, *arguments], directory.with_suffix(".log")) as child:
        child.type(pins)
        yield child


def test_served_softcard_is_made_once_and_waits_for_its_reader(tmp_path: Path) -> None:
    with pcscd(tmp_path) as daemon:
        reader, cards = daemon.readers[0], tmp_path / "cards"
        with served(reader, cards, pins="123456\n87654321\n") as child:
            serial = child.wait_for(r"as pcsc:serial=([0-9a-f]{16});")[1]
            assert opensc_tool(daemon, reader, "--atr").returncode == 0
            daemon.stop()
            seen = child.wait_for("the card waits for it").end()
            daemon.start()
            child.wait_for(rf"as pcsc:serial={serial};", start=seen)
        with served(reader, cards) as child:
            child.wait_for(rf"as pcsc:serial={serial};")
    assert "123456" not in child.log


def test_served_piv_card_is_one_for_other_programs(
    daemon: Pcscd, reader: VirtualReader, tmp_path: Path
) -> None:
    pins = f"123456\n87654321\n{'00' * 32}\n"
    with served(reader, tmp_path / "cards", "--applications", "eap-tls,piv", pins=pins) as child:
        child.wait_for("as pcsc:serial=")
        command = ["opensc-tool", "--reader", reader.name, "--name"]
        environment = {**os.environ, **daemon.environment}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert told.stdout.strip() == "Personal Identity Verification Card", told


@pytest.mark.parametrize(
    ("arguments", "pins", "said"),
    [
        (["--port", "1"], "1234\n87654321\n", "install pcscd and vsmartcard-vpcd"),
        (["--port", "1"], "\n", "run this in a terminal, or give user PIN and operator PIN"),
        (["--applications", "gsm"], "", "'gsm' is none of eap-tls, piv"),
        (["--applications", "piv"], "123456\n87654321\n00\n", "has 16, 24 or 32 octets"),
        (["--applications", "piv"], "123456\n87654321\nxx\n", "not in hexadecimal digits"),
        (["--port", "1"], "1\n2\n", "A PIN has 4 to 8"),
        (["--port", "65536"], "", "'65536' is not a number from 1 to 65535"),
        (["--atr", "3B"], "", "'3B' is no answer to reset"),
    ],
)
def test_what_stops_a_softcard_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    pins: str,
    said: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pins.encode())))
    with contextlib.suppress(SystemExit):  # wrong usage
        assert main(["softcard", "serve", "--directory", str(tmp_path / "cards"), *arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("inner", ["", "elements"])
def test_directory_of_a_broker_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], inner: str
) -> None:
    (tmp_path / "broker.sqlite").touch()
    assert main(["softcard", "serve", "--directory", str(tmp_path / inner)]) == 1
    assert "is a broker's" in capsys.readouterr().err

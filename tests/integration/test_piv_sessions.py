"""A VM with a PIV card: agent, broker and pcscd in processes of their own, OpenSSL as the server."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.pcscd import pcscd
from tests.support.piv import SECRETS, PivHolder, management_key, personalised, piv_backend
from tests.support.pki import server_identity
from tests.support.servers import PROGRAMS, TLS_1_2, TLS_1_3, ServerOptions
from tests.support.stack import VM, Stack, give_identity
from tests.support.stack_client import StackClient
from vmtoken.cards import piv_pins
from vmtoken.cards.piv_codes import Slot
from vmtoken.v1 import admin_service_pb2 as admin
from vmtoken.v1 import token_pb2

pytestmark = pytest.mark.pcsc

ALGORITHMS = {
    "9a": admin.KEY_ALGORITHM_P256,
    "9c": admin.KEY_ALGORITHM_RSA2048,
    "82": admin.KEY_ALGORITHM_P384,
}


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> PivHolder:
    """A card with a key in slot 9D, for which somebody else had a certificate issued."""
    backend = piv_backend(tmp_path_factory.mktemp("elements"))
    return personalised(backend, slot=Slot.KEY_MANAGEMENT)


@pytest.fixture(scope="module")
def serial(issued: PivHolder) -> str:
    card = issued.key()
    card.close()
    return card.serial


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, issued: PivHolder, serial: str) -> Iterator[Stack]:
    """The keys in three slots of the card are three tokens of the VM, made as the operator makes them."""
    with pcscd(tmp_path_factory.mktemp("pcscd"), readers=1) as daemon:
        settings = f'[[pcsc]]\nsocket = "{daemon.socket_path}"\n'
        with (
            daemon.readers[0].holding(issued.connect()),
            Stack.running((), broker_settings=settings) as stack,
        ):
            for slot, algorithm in ALGORITHMS.items():
                make_token(stack, slot, f"pcsc:serial={serial};slot={slot}", algorithm)
            yield stack


def make_token(stack: Stack, slot: str, uri: str, algorithm: admin.KeyAlgorithm) -> None:
    with stack.administration() as operator:
        token = admin.CreateTokenRequest(
            name=slot,
            uri=uri,
            algorithm=algorithm,
            existing=True,
            user_pin=SECRETS.pin.reveal(),
            operator_pin=management_key().reveal(),
        )
        give_identity(operator, token)
        operator.Bind(admin.BindRequest(vm=VM, token=slot))


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_vm_has_sessions_with_all_keys_of_one_card(stack: Stack, tmp_path: Path, version: str) -> None:
    options = ServerOptions(minimum=version, maximum=version)
    with StackClient.of(stack) as client, PROGRAMS["openssl"].serve(tmp_path, options) as server:
        for resumed in (False, True):
            for slot in ALGORITHMS:
                session = client.connect_to(server.port, token=slot, server_name=server.server_name)
                conversation = server.talk(session)
                assert conversation.seen().client == VM
                conversation.echo(b"question")
                assert session.resumed is resumed
                assert session.client_certificate_sent or resumed
                assert session.info.assurance == token_pb2.ASSURANCE_SOFTWARE
                session.close()


def test_card_of_somebody_else_needs_no_management_key(
    stack: Stack, issued: PivHolder, serial: str, tmp_path: Path
) -> None:
    token, uri = "issued", f"pcsc:serial={serial};slot=9d"
    with stack.administration() as operator:
        operator.AddToken(admin.AddTokenRequest(name=token, uri=uri, user_pin=SECRETS.pin.reveal()))
        chain, anchors = issued.identity.chain_der, [server_identity().root_der]
        operator.InstallCertificate(admin.InstallCertificateRequest(name=token, certificates=chain))
        operator.InstallTrust(admin.InstallTrustRequest(name=token, anchors=anchors))
        operator.Bind(admin.BindRequest(vm=VM, token=token))
    with StackClient.of(stack) as client, PROGRAMS["openssl"].serve(tmp_path, ServerOptions()) as server:
        session = client.connect_to(server.port, token=token, server_name=server.server_name)
        conversation = server.talk(session)
        assert conversation.seen().client == VM
        conversation.echo(b"question")
        session.close()


def test_another_key_of_the_card_is_added_without_a_pin(stack: Stack, serial: str) -> None:
    def ctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dom0_broker.ctl", "--socket", str(stack.admin_socket), *arguments]
        return subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=True)

    added = ctl("token", "add", "retired-2", f"pcsc:serial={serial};slot=83")
    assert "It has the user and operator PIN of token '82', '9a', '9c'" in added.stderr
    shown = json.loads(ctl("--json", "token", "show", "retired-2").stdout)
    assert set(ALGORITHMS) <= set(shown["shares_pins_with"])
    status = json.loads(ctl("--json", "token", "pin", "status", "retired-2").stdout)
    assert [(each["pin"], each["state"]) for each in status] == [
        ("user", "accepted"),
        ("operator", "accepted"),
    ]
    ctl("token", "remove", "retired-2")
    assert "retired-2" not in json.loads(ctl("--json", "token", "show", "9a").stdout)["shares_pins_with"]


def test_pin_that_is_changed_through_one_key_is_that_of_all(
    stack: Stack, issued: PivHolder, serial: str, tmp_path: Path
) -> None:
    """All of them are open, with the earlier PIN in memory."""
    with stack.administration() as operator:
        tokens = {each.name: each for each in operator.ListAllTokens(admin.ListAllTokensRequest()).tokens}
        certificate = hashlib.sha256(issued.identity.chain_der[0]).hexdigest()
        for uri in (f"pcsc:serial={serial};slot=9e", f"pcsc:cert={certificate}"):
            found = operator.FindPinSharers(admin.FindPinSharersRequest(uri=uri))
            assert set(ALGORITHMS) <= set(found.tokens)
            assert set(found.kept) == {admin.PIN_ROLE_USER, admin.PIN_ROLE_OPERATOR}
        assert {"9c", "82"} <= set(tokens["9a"].shares_pins_with)
        operator.ChangeTokenPin(admin.ChangeTokenPinRequest(name="9a", new_pin=b"111222"))
        another = admin.AddTokenRequest(name="9e", uri=f"pcsc:serial={serial};slot=9e", user_pin=b"333444")
        with pytest.raises(grpc.RpcError, match="known here from token"):
            operator.AddToken(another)
    with StackClient.of(stack) as client, PROGRAMS["openssl"].serve(tmp_path, ServerOptions()) as server:
        for slot in reversed(ALGORITHMS):
            session = client.connect_to(server.port, token=slot, server_name=server.server_name)
            session.close()
    with stack.administration() as operator:
        operator.ChangeTokenPin(admin.ChangeTokenPinRequest(name="82", new_pin=SECRETS.pin.reveal()))
    assert piv_pins.user_pin_tries_left(issued.connect()) == 3

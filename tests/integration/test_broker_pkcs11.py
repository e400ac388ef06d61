"""The broker with a key in SoftHSM: made known by its URI, certified, used by a VM, healed when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from dom0_broker.app import App
from dom0_broker.config import BrokerConfig, Pkcs11Config
from tests.support.broker_app import Stream, agent_of, broker_config
from tests.support.memory import PythonServer, python_context
from tests.support.pkcs11 import PIN, SO_PIN, SOFTHSM, WRONG_PIN, Pkcs11Token, softhsm
from tests.support.pki import SERVER_NAME, Usage, pki
from vmtoken.csr import KeyElsewhere
from vmtoken.errors import PinRejected
from vmtoken.rpc.channel import unix_channel
from vmtoken.rpc.status import from_rpc_error
from vmtoken.tls.signatures import PublicKey
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import token_pb2, token_service_pb2
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub

pytestmark = pytest.mark.pkcs11


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pkcs11Token]:
    """With a key that the operator made with other tools; modules inherit the broker's environment."""
    (tmp_path / "hsm").mkdir()
    with softhsm(tmp_path / "hsm") as token:
        monkeypatch.setenv("SOFTHSM2_CONF", token.environment["SOFTHSM2_CONF"])
        login = ("--module", str(SOFTHSM), "--login", "--pin", PIN.decode())
        made = ("--keypairgen", "--key-type", "EC:prime256v1", "--id", "01", "--label", "web01")
        token.tool("pkcs11-tool", *login, *made)
        yield token


@pytest.fixture
def config(tmp_path: Path) -> BrokerConfig:
    return replace(broker_config(tmp_path), pkcs11=Pkcs11Config(modules=(SOFTHSM,)))


async def personalise(admin: AdminServiceStub, uri: str) -> None:
    """What the operator does: the key is there, the certificate is not."""
    await admin.AddVm(pb.AddVmRequest(name="web01"))
    await admin.AddToken(pb.AddTokenRequest(name="web", uri=uri, user_pin=PIN))
    await admin.Bind(pb.BindRequest(vm="web01", token="web"))
    request = await admin.CreateCertificateRequest(
        pb.CreateCertificateRequestRequest(name="web", subject="CN=web01")
    )
    chain = issued(x509.load_der_x509_csr(request.certificate_request))
    await admin.InstallCertificate(pb.InstallCertificateRequest(name="web", certificates=chain))
    root = pki().root.certificate.public_bytes(Encoding.DER)
    await admin.InstallTrust(pb.InstallTrustRequest(name="web", anchors=[root]))


def issued(request: x509.CertificateSigningRequest) -> list[bytes]:
    assert request.is_signature_valid
    key = request.public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    schemes = PublicKey(key).schemes()
    stand_in = KeyElsewhere.of(info, schemes, lambda scheme, content: b"").stand_in
    return list(pki().intermediate.issue("web01", usage=Usage.CLIENT, key=stand_in).chain_der)


async def handshake(stream: Stream, server: PythonServer) -> token_service_pb2.HandshakeResponse:
    response = await stream.start(SERVER_NAME)
    for _ in range(4):
        if response.WhichOneof("step") != "flight":
            break
        response = await stream.records(server.receive(response.flight.records))
    return response


def module_processes() -> list[int]:
    """Children of this process that serve a PKCS#11 module."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (path / "cmdline").read_bytes(), (path / "status").read_text()
        except OSError:
            continue
        if b"backends.pkcs11.child" in command and f"PPid:\t{os.getpid()}\n" in status:
            found.append(int(path.name))
    return found


async def test_vm_gets_sessions_of_a_key_behind_a_module_that_dies(
    token: Pkcs11Token, config: BrokerConfig, tmp_path: Path
) -> None:
    app = App(config)
    await app.start()
    try:
        async with unix_channel(config.admin_socket) as channel:
            admin = AdminServiceStub(channel)
            await personalise(admin, f"pkcs11:{token.locator()}")
            (vm,) = [record.identity for record in app._desk.inventory.vms()]
            context = python_context(tmp_path)
            async with agent_of(app, vm) as stub:
                first = await handshake(Stream(stub), PythonServer(context))
                assert first.result.client_certificate_sent
                assert first.result.assurance == token_pb2.ASSURANCE_SOFTWARE
                for pid in module_processes():
                    os.kill(pid, signal.SIGKILL)
                for _ in range(100):
                    response = await handshake(Stream(stub), PythonServer(context))
                    if response.WhichOneof("step") == "result":
                        break
                    await asyncio.sleep(0.1)
                assert response.result.client_certificate_sent
    finally:
        await app.stop()


async def test_wrong_pin_is_said_and_the_right_one_heals(token: Pkcs11Token, config: BrokerConfig) -> None:
    app = App(config)
    await app.start()
    try:
        async with unix_channel(config.admin_socket) as channel:
            admin = AdminServiceStub(channel)
            uri = f"pkcs11:{token.locator()}"
            await admin.AddToken(pb.AddTokenRequest(name="web", uri=uri, user_pin=WRONG_PIN))
            request = pb.CreateCertificateRequestRequest(name="web", subject="CN=web01")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await admin.CreateCertificateRequest(request)
            assert isinstance(from_rpc_error(refused.value), PinRejected)
            await admin.SetTokenPin(pb.SetTokenPinRequest(name="web", pin=PIN, role=pb.PIN_ROLE_USER))
            assert (await admin.CreateCertificateRequest(request)).certificate_request
    finally:
        await app.stop()


@pytest.mark.parametrize("source", [False, True], ids=["PIN of the operator", "PIN of a file"])
async def test_key_is_made_in_the_token(
    token: Pkcs11Token, config: BrokerConfig, tmp_path: Path, source: bool
) -> None:
    pin = tmp_path / "lab.pin"
    pin.touch(0o600)
    pin.write_bytes(PIN)
    uri = f"pkcs11:{token.locator('made')}" + (f"?pin-source=file:{pin}" if source else "")
    app = App(config)
    await app.start()
    try:
        async with unix_channel(config.admin_socket) as channel:
            admin = AdminServiceStub(channel)
            create = pb.CreateTokenRequest(
                name="web", uri=uri, existing=True, user_pin=b"" if source else PIN
            )
            made = await admin.CreateToken(create)
            request = pb.CreateCertificateRequestRequest(name="web", subject="CN=web01")
            csr = x509.load_der_x509_csr((await admin.CreateCertificateRequest(request)).certificate_request)
    finally:
        await app.stop()
    info = csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert info == made.public_key


async def test_pin_is_changed_unblocked_and_read_from_a_file(
    token: Pkcs11Token, config: BrokerConfig, tmp_path: Path
) -> None:
    def pin_is(pin: bytes) -> bool:
        """By a program that knows nothing of us."""
        login = ("--module", str(SOFTHSM), "--login", "--pin", pin.decode(), "--list-objects")
        return "Private Key Object" in token.tool("pkcs11-tool", *login, check=False)

    source = tmp_path / "pin"
    source.touch(0o600)
    app = App(config)
    await app.start()
    try:
        async with unix_channel(config.admin_socket) as channel:
            admin = AdminServiceStub(channel)
            uri = f"pkcs11:{token.locator()}"
            await admin.AddToken(pb.AddTokenRequest(name="web", uri=uri, user_pin=PIN))
            await admin.ChangeTokenPin(pb.ChangeTokenPinRequest(name="web", new_pin=b"24681357"))
            assert pin_is(b"24681357")
            wrong = pb.UnblockTokenPinRequest(name="web", code=WRONG_PIN, new_pin=b"13572468")
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError, match="refused this code"):
                    await admin.UnblockTokenPin(wrong)
            unblock = pb.UnblockTokenPinRequest(name="web", code=SO_PIN, new_pin=b"13572468")
            await admin.UnblockTokenPin(unblock)
            assert pin_is(b"13572468")
            source.write_bytes(b"13572468\n")
            await admin.SetTokenPinSource(pb.SetTokenPinSourceRequest(name="web", source=str(source)))
            request = pb.CreateCertificateRequestRequest(name="web", subject="CN=web01")
            assert (await admin.CreateCertificateRequest(request)).certificate_request
            (user,) = (await admin.ReadTokenPins(pb.ReadTokenPinsRequest(name="web"))).pins[:1]
            assert user.source == str(source)
    finally:
        await app.stop()

"""The broker with the software element: personalised by the operator, then real handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from dom0_broker.app import App
from dom0_broker.audit import verify
from tests.support.broker_app import Stream, broker_config
from tests.support.memory import PyOpenSslServer, PythonServer, python_context, stranger_context
from tests.support.pki import Authority, Usage, pki, server_identity
from tests.support.tls_peer import raw_server
from vmtoken.rpc.channel import unix_channel
from vmtoken.rpc.status import from_rpc_error
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import token_service_pb2
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub


def tls_server_context(directory: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    files = server_identity().write(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(files.chain, files.key)
    context.load_verify_locations(files.anchors)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def personalise(admin: AdminServiceStub, algorithm: pb.KeyAlgorithm.ValueType) -> None:
    """What the operator does for a new VM."""
    await admin.AddVm(pb.AddVmRequest(name="web01"))
    await admin.CreateToken(pb.CreateTokenRequest(name="web", algorithm=algorithm))
    await admin.Bind(pb.BindRequest(vm="web01", token="web"))
    request = await admin.CreateCertificateRequest(
        pb.CreateCertificateRequestRequest(name="web", subject="CN=web01", dns_names=["web01.example"])
    )
    csr = x509.load_der_x509_csr(request.certificate_request)
    assert csr.is_signature_valid
    chain = issue(csr)
    await admin.InstallCertificate(pb.InstallCertificateRequest(name="web", certificates=chain))
    root = pki().root.certificate.public_bytes(Encoding.DER)
    await admin.InstallTrust(pb.InstallTrustRequest(name="web", anchors=[root]))


def issue(csr: x509.CertificateSigningRequest) -> list[bytes]:
    """The chain that a CA gives back for a request."""
    authority = pki().intermediate
    template = authority.issue("web01", usage=Usage.CLIENT)
    builder = x509.CertificateBuilder(
        issuer_name=template.certificate.issuer,
        subject_name=csr.subject,
        public_key=csr.public_key(),
        serial_number=template.certificate.serial_number,
        not_valid_before=template.certificate.not_valid_before_utc,
        not_valid_after=template.certificate.not_valid_after_utc,
        extensions=[
            each
            for each in template.certificate.extensions
            if not isinstance(each.value, x509.SubjectKeyIdentifier)
        ],
    )
    leaf = builder.sign(authority.key, SHA256())  # type: ignore[arg-type]
    return [leaf.public_bytes(Encoding.DER), authority.certificate.public_bytes(Encoding.DER)]


@contextlib.asynccontextmanager
async def broker(tmp_path: Path, policy: str) -> AsyncIterator[tuple[App, AdminServiceStub]]:
    config = broker_config(tmp_path, policy=policy)
    app = App(config)
    await app.start()
    try:
        async with unix_channel(config.admin_socket) as channel:
            yield app, AdminServiceStub(channel)
    finally:
        await app.stop()


async def relay(stream: Stream, port: int, **fields: object) -> token_service_pb2.HandshakeResponse:
    """What an agent does: records between the server and the broker, nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        response = await stream.start("server.example", timeout=20, **fields)
        buffered = b""
        while response.WhichOneof("step") == "flight":
            writer.write(response.flight.records)
            whole = b""
            while not whole:
                received = await reader.read(1 << 16)
                assert received, "the server hung up"
                whole, buffered = split_records(buffered + received)
            response = await stream.records(whole)
        writer.write(response.result.records)
        return response
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def split_records(octets: bytes) -> tuple[bytes, bytes]:
    """Whole TLS records, and what is left."""
    end = 0
    while len(octets) - end >= 5:
        length = 5 + int.from_bytes(octets[end + 3 : end + 5], "big")
        if len(octets) - end < length:
            break
        end += length
    return octets[:end], octets[end:]


@contextlib.asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
async def test_personalised_token_makes_a_session(tmp_path: Path, version: ssl.TLSVersion) -> None:
    policy = "allow vm=web01 server=server.example"
    async with (
        broker(tmp_path, policy) as (app, admin),
        tls_server(tls_server_context(tmp_path, version)) as port,
    ):
        await personalise(admin, pb.KEY_ALGORITHM_P256)
        (vm,) = (await admin.ListVms(pb.ListVmsRequest())).vms
        async with unix_channel(Path(vm.socket)) as channel:
            response = await relay(Stream(TokenServiceStub(channel)), port)
        (summary,) = (await admin.ListHandshakes(pb.ListHandshakesRequest())).handshakes
        (status,) = (await admin.ListAllTokens(pb.ListAllTokensRequest(name="web"))).tokens
    assert response.HasField("result"), response.failure.error
    assert response.result.key_block.version == version
    assert response.result.client_certificate_sent
    assert summary.outcome == "complete"
    assert summary.rule == "10-test.policy:1"
    assert (status.ready, status.completed) == (True, 1)
    verify(app.config.audit_path)


async def test_denied_server_gets_an_alert_and_no_certificate(tmp_path: Path) -> None:
    context = tls_server_context(tmp_path, ssl.TLSVersion.TLSv1_3)
    async with broker(tmp_path, "deny vm=* server=*") as (app, admin), tls_server(context) as port:
        await personalise(admin, pb.KEY_ALGORITHM_P256)
        (vm,) = (await admin.ListVms(pb.ListVmsRequest())).vms
        async with unix_channel(Path(vm.socket)) as channel:
            response = await relay(Stream(TokenServiceStub(channel)), port)
    assert response.failure.error.reason == "POLICY_DENIED"
    assert response.failure.records
    verify(app.config.audit_path)


async def test_token_that_was_not_made_whole_can_be_removed_and_made_again(tmp_path: Path) -> None:
    async with broker(tmp_path, "deny vm=* server=*") as (app, admin):
        await admin.CreateToken(pb.CreateTokenRequest(name="web"))
    for element in (app.config.state_dir / "elements").iterdir():
        element.unlink()  # as after a crash between the store and the element
    async with broker(tmp_path, "deny vm=* server=*") as (app, admin):
        await admin.RemoveToken(pb.RemoveTokenRequest(name="web", destroy=True))
        await admin.CreateToken(pb.CreateTokenRequest(name="web"))
        await admin.AddVm(pb.AddVmRequest(name="web01"))
        await admin.Bind(pb.BindRequest(vm="web01", token="web"))
        with pytest.raises(grpc.aio.AioRpcError, match="bound to a VM"):
            await admin.RemoveToken(pb.RemoveTokenRequest(name="web", destroy=True))
        (token,) = (await admin.ListAllTokens(pb.ListAllTokensRequest())).tokens
    assert token.not_ready.reason == "TOKEN_NOT_READY"  # its element is still there, without a certificate


async def test_wrong_pin_is_tried_once_and_a_right_one_lifts_it(tmp_path: Path) -> None:
    async with broker(tmp_path, "deny vm=* server=*") as (app, admin):
        await admin.CreateToken(pb.CreateTokenRequest(name="web"))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await admin.SetTokenPin(pb.SetTokenPinRequest(name="web", pin=b"wrong000"))
        assert from_rpc_error(error.value).reason == "PIN_REJECTED"
        for _ in range(3):  # the earlier PIN is in force again: nothing is spent on the wrong one
            (token,) = (await admin.ListAllTokens(pb.ListAllTokensRequest())).tokens
            assert token.not_ready.reason == "TOKEN_NOT_READY"
    assert b"wrong000" not in app.config.audit_path.read_bytes()


async def test_tls12_session_is_resumed_and_judged_again(tmp_path: Path) -> None:
    context = tls_server_context(tmp_path, ssl.TLSVersion.TLSv1_2)
    async with broker(tmp_path, "allow vm=* server=*") as (app, admin), tls_server(context) as port:
        await personalise(admin, pb.KEY_ALGORITHM_P256)
        (vm,) = (await admin.ListVms(pb.ListVmsRequest())).vms
        async with unix_channel(Path(vm.socket)) as channel:
            stream = Stream(TokenServiceStub(channel))
            resumed = [(await relay(stream, port)).result.resumed for _ in range(2)]
            rule = app.config.policy_dir / "05-no.policy"
            rule.write_text("deny vm=web01 server=server.example\n")
            await admin.Reload(pb.ReloadRequest())
            refused = await relay(stream, port)
            rule.unlink()
            await admin.Reload(pb.ReloadRequest())
            full = (await relay(stream, port)).result
    assert resumed == [False, True]
    assert refused.failure.error.metadata["rule"] == "05-no.policy:1"
    assert not full.resumed  # the session was forgotten when policy refused it
    assert full.client_certificate_sent


@pytest.mark.parametrize(("condition", "outcome"), [("ca=root.pem", "result"), ("ca=other.pem", "failure")])
async def test_policy_rests_on_the_ca_that_the_token_verified(
    tmp_path: Path, condition: str, outcome: str
) -> None:
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "policy.d/root.pem").write_bytes(pki().root.certificate.public_bytes(Encoding.PEM))
    (tmp_path / "policy.d/other.pem").write_bytes(
        Authority.self_signed().certificate.public_bytes(Encoding.PEM)
    )
    policy = f"allow vm=web01 server=*.example {condition}"
    context = tls_server_context(tmp_path, ssl.TLSVersion.TLSv1_3)
    async with broker(tmp_path, policy) as (_, admin), tls_server(context) as port:
        await personalise(admin, pb.KEY_ALGORITHM_P256)
        (vm,) = (await admin.ListVms(pb.ListVmsRequest())).vms
        async with unix_channel(Path(vm.socket)) as channel:
            response = await relay(Stream(TokenServiceStub(channel)), port)
        chain = [*server_identity().chain_der, server_identity().root_der]
        request = pb.TestPolicyRequest(vm="web01", server_name="server.example", certificates=chain)
        (tested,) = (await admin.TestPolicy(request)).outcomes
    assert response.WhichOneof("step") == outcome
    assert tested.allow == (outcome == "result")


Server = PythonServer | PyOpenSslServer


@contextlib.contextmanager
def serving(context: ssl.SSLContext | SSL.Context) -> Iterator[tuple[int, list[Server]]]:
    """The port of a server, and the handshakes that it had once the block has ended."""
    served: list[Server] = []

    def talk(connection: socket.socket) -> None:
        server = PythonServer(context) if isinstance(context, ssl.SSLContext) else PyOpenSslServer(context)
        served.append(server)
        while data := connection.recv(1 << 16):
            connection.sendall(server.receive(data))

    with raw_server(talk) as port:
        yield port, served


def certificate_context(
    server: str, directory: Path, version: ssl.TLSVersion
) -> ssl.SSLContext | SSL.Context:
    """By what becomes of our certificate there; each server would go on without."""
    if server == "cannot use it":
        return stranger_context(directory, version)
    verify = {"takes it": ssl.CERT_OPTIONAL, "does not ask": ssl.CERT_NONE}[server]
    return python_context(directory, version=version, verify=verify)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("server", ["takes it", "cannot use it", "does not ask"])
async def test_policy_says_what_becomes_of_a_server_without_our_certificate(
    tmp_path: Path, server: str, version: ssl.TLSVersion
) -> None:
    outcomes = {}
    with serving(certificate_context(server, tmp_path, version)) as (port, served):
        async with broker(tmp_path, "deny vm=* server=*") as (app, admin):
            await personalise(admin, pb.KEY_ALGORITHM_P256)
            (vm,) = (await admin.ListVms(pb.ListVmsRequest())).vms
            async with unix_channel(Path(vm.socket)) as channel:
                for mode in ("if-asked", "optional", "always"):
                    rule = f"allow vm=web01 server=server.example certificate={mode}\n"
                    (app.config.policy_dir / "10-test.policy").write_text(rule)
                    await admin.Reload(pb.ReloadRequest())
                    response = await relay(Stream(TokenServiceStub(channel)), port)
                    outcomes[mode] = response.failure.error.reason or response.result.client_certificate_sent
    unusable = "CLIENT_CERTIFICATE_UNUSABLE"
    assert (
        outcomes
        == {
            "takes it": {"if-asked": True, "optional": True, "always": True},
            "cannot use it": {"if-asked": unusable, "optional": False, "always": unusable},
            "does not ask": {"if-asked": False, "optional": False, "always": unusable},
        }[server]
    )
    assert [each.is_ready for each in served] == [sent != unusable for sent in outcomes.values()]
    assert [_sees_a_certificate(each) for each in served] == [sent is True for sent in outcomes.values()]


def _sees_a_certificate(server: Server) -> bool:
    if isinstance(server, PyOpenSslServer):
        return server.tls.get_peer_certificate() is not None
    return server.is_ready and server.tls.getpeercert(binary_form=True) is not None


async def test_session_is_resumed_only_under_the_certificate_mode_that_it_was_made_under(
    tmp_path: Path,
) -> None:
    context = stranger_context(tmp_path, ssl.TLSVersion.TLSv1_2)
    with serving(context) as (port, _):
        async with broker(tmp_path, "allow vm=* server=* certificate=optional") as (app, admin):
            await personalise(admin, pb.KEY_ALGORITHM_P256)
            (vm,) = (await admin.ListVms(pb.ListVmsRequest())).vms
            async with unix_channel(Path(vm.socket)) as channel:
                stream = Stream(TokenServiceStub(channel))
                resumed = [(await relay(stream, port)).result.resumed for _ in range(2)]
                (app.config.policy_dir / "10-test.policy").write_text("allow vm=* server=*\n")
                await admin.Reload(pb.ReloadRequest())
                stricter = await relay(stream, port)
    assert resumed == [False, True]
    assert stricter.failure.error.reason == "CLIENT_CERTIFICATE_UNUSABLE"


async def test_rule_that_grants_must_agree_with_the_one_that_the_handshake_began_with(tmp_path: Path) -> None:
    pin = "ca=sha256:" + "0" * 64
    policy = f"allow vm=* server=*.example {pin} certificate=always\nallow vm=* server=*"
    context = tls_server_context(tmp_path, ssl.TLSVersion.TLSv1_3)
    async with broker(tmp_path, policy) as (app, admin), tls_server(context) as port:
        await personalise(admin, pb.KEY_ALGORITHM_P256)
        (vm,) = (await admin.ListVms(pb.ListVmsRequest())).vms
        async with unix_channel(Path(vm.socket)) as channel:
            response = await relay(Stream(TokenServiceStub(channel)), port)
        chain = [*server_identity().chain_der, server_identity().root_der]
        request = pb.TestPolicyRequest(vm="web01", server_name="server.example", certificates=chain)
        (tested,) = (await admin.TestPolicy(request)).outcomes
    error = response.failure.error
    assert (error.reason, error.metadata["rule"]) == ("POLICY_DENIED", "10-test.policy:2")
    assert "certificate=always (rule: 10-test.policy:1)" in error.message
    assert "certificate=if-asked (rule: 10-test.policy:2)" in error.message
    assert response.failure.records
    assert (tested.rule, tested.allow) == ("10-test.policy:2", False)
    verify(app.config.audit_path)


async def test_assurance_counts_in_the_first_handshake_of_a_token_already(tmp_path: Path) -> None:
    """Until then nobody has opened it."""
    policy = """
        allow vm=* server=* assurance=card-handshake certificate=optional
        allow vm=* server=* assurance=software certificate=always
    """
    async with broker(tmp_path, policy) as (_, admin):
        await personalise(admin, pb.KEY_ALGORITHM_P256)
    context = python_context(tmp_path, verify=ssl.CERT_NONE)
    async with broker(tmp_path, policy) as (_, admin), tls_server(context) as port:
        (vm,) = (await admin.ListVms(pb.ListVmsRequest())).vms
        async with unix_channel(Path(vm.socket)) as channel:
            response = await relay(Stream(TokenServiceStub(channel)), port)
    assert response.failure.error.reason == "CLIENT_CERTIFICATE_UNUSABLE"


@pytest.mark.parametrize("algorithm", [each for each in pb.KeyAlgorithm.values() if each])
async def test_key_of_every_kind_is_made_and_certified(
    tmp_path: Path, algorithm: pb.KeyAlgorithm.ValueType
) -> None:
    async with broker(tmp_path, "deny vm=* server=*") as (_, admin):
        await personalise(admin, algorithm)
        (token,) = (await admin.ListAllTokens(pb.ListAllTokensRequest())).tokens
    assert token.ready, token.not_ready.message

"""The life of an identity: enrolled, renewed while it works, retired; as the operator does it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from dom0_broker.app import App
from dom0_broker.backends.registry import BackendSettings, TokenBackend
from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.keystore import Keystore, StoredIdentity
from dom0_broker.backends.software.sealing import load_sealing_key
from dom0_broker.config import BrokerConfig
from tests.support.broker_app import Cards, broker_config, populate, running
from tests.support.load import Load, server_context
from tests.support.pkcs11 import Pkcs11Token, softhsm
from tests.support.pki import DAY, NOW, KeyKind, client_identity, pki
from tests.support.stack import VM, personalise
from vmtoken.errors import Conflict, VmTokenError
from vmtoken.rpc.channel import unix_channel
from vmtoken.rpc.status import from_rpc_error
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import token_service_pb2
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

NAME = KeyKind.ECDSA_P256.value


class UndeletableBackend(SoftwareBackend):
    """Elements that can be personalised, and not deleted, as cards."""

    def delete(self, locator: str) -> None:
        raise Conflict("This element is not for us to delete.")


def undeletable(_scheme: str, settings: BackendSettings) -> TokenBackend:
    return UndeletableBackend(settings.elements_directory, settings.sealing_key)


@contextlib.asynccontextmanager
async def broker(
    config: BrokerConfig, backends: Callable[[str, BackendSettings], TokenBackend] | None = None
) -> AsyncIterator[tuple[App, AdminServiceStub]]:
    """With one personalised software element, bound to a VM under its own name."""
    app = App(config, backends=backends) if backends else App(config)
    await app.start()
    try:
        await asyncio.to_thread(personalise, config.admin_socket, (KeyKind.ECDSA_P256,))
        async with unix_channel(config.admin_socket) as channel:
            yield app, AdminServiceStub(channel)
    finally:
        await app.stop()


def issued(
    request: bytes,
    *,
    subject: str = "",
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    not_before: timedelta = -DAY,
    lifetime: timedelta = 20 * DAY,
) -> list[bytes]:
    """A chain for a request, by a CA that does what it is told."""
    csr, issuer = x509.load_der_x509_csr(request), pki().intermediate
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    name = x509.Name.from_rfc4514_string(subject) if subject else csr.subject
    builder = (
        x509.CertificateBuilder(issuer.certificate.subject, name, csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + not_before)
        .not_valid_after(NOW + not_before + lifetime)
        .add_extension(names, critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    leaf = builder.sign(issuer.key, hashes.SHA256())
    return [each.public_bytes(Encoding.DER) for each in (leaf, issuer.certificate)]


async def renewal(operator: AdminServiceStub, name: str = NAME, **options: object) -> bytes:
    request = pb.CreateCertificateRequestRequest(name=name, renewal=True, **options)  # type: ignore[arg-type]
    return (await operator.CreateCertificateRequest(request)).certificate_request


async def install(operator: AdminServiceStub, chain: Sequence[bytes], name: str = NAME) -> list[str]:
    request = pb.InstallCertificateRequest(name=name, certificates=chain)
    return list((await operator.InstallCertificate(request)).warnings)


async def shown(operator: AdminServiceStub, name: str = NAME) -> pb.TokenStatus:
    (token,) = (await operator.ListAllTokens(pb.ListAllTokensRequest(name=name))).tokens
    return token


@contextlib.contextmanager
def refused(reason: str, *words: str) -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        yield
    told = from_rpc_error(error.value)
    assert told.reason == reason
    for word in words:
        assert word in told.message


def events(config: BrokerConfig) -> list[dict[str, object]]:
    return [json.loads(line) for line in config.audit_path.read_text().splitlines()]


def serial_of(chain: Sequence[bytes]) -> int:
    return x509.load_der_x509_certificate(chain[0]).serial_number


async def test_request_for_renewal_has_the_names_and_the_key_of_the_certificate(tmp_path: Path) -> None:
    async with broker(broker_config(tmp_path)) as (_, operator):
        earlier = x509.load_der_x509_certificate((await shown(operator)).certificates[0])
        request = x509.load_der_x509_csr(await renewal(operator))
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert request.is_signature_valid
    assert request.public_key() == earlier.public_key()
    assert request.subject == earlier.subject
    assert names == earlier.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


async def test_renewal_under_load_fails_no_handshake_and_holds_for_the_next(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    async with broker(config) as (_, operator), unix_channel(config.link_socket(VM)) as channel:
        load = Load(TokenServiceStub(channel), server_context(tmp_path), NAME)
        chains = []
        async with load.of(8):
            for _ in range(3):
                await load.more(10)
                chains.append(issued(await renewal(operator)))
                await install(operator, chains[-1])
                begun = len(load.serials)
            await load.more(10)
        after = load.serials[begun:]
    assert load.failed == []
    assert set(map(serial_of, chains)) <= set(load.serials)
    assert set(after) == {serial_of(chains[-1])}


async def test_sessions_made_with_the_earlier_certificate_are_not_resumed(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    async with broker(config) as (app, operator):
        sessions, vm = app._desk.sessions, app._desk.inventory.vm(VM).identity.uuid
        async with unix_channel(config.link_socket(VM)) as channel:
            load = Load(TokenServiceStub(channel), server_context(tmp_path), NAME)
            async with load.of(1):
                await load.more(3)
        remembered = len(sessions._vms[vm].sessions)
        await install(operator, issued(await renewal(operator)))
        left = len(sessions._vms[vm].sessions)
    assert (remembered > 0, left) == (True, 0)


async def test_certificate_that_no_server_would_take_is_refused_and_the_earlier_one_stays(
    tmp_path: Path,
) -> None:
    config = broker_config(tmp_path)
    async with broker(config) as (_, operator):
        earlier = (await shown(operator)).certificates[0]
        request = await renewal(operator)
        other = pki().intermediate.issue(VM).chain_der
        with refused("CONFLICT", "expired on"):
            await install(operator, issued(request, not_before=-10 * DAY, lifetime=9 * DAY))
        with refused("CONFLICT", "clientAuth"):
            await install(operator, issued(request, usage=ExtendedKeyUsageOID.SERVER_AUTH))
        with refused("CONFLICT", "is not valid before", "present certificate stays"):
            await install(operator, issued(request, not_before=DAY))
        with refused("CONFLICT", "clientAuth"):
            await install(operator, other)
        with refused("INVALID_REQUEST", "out of order"):
            await install(operator, issued(request)[::-1])
        with refused("INVALID_REQUEST", "empty"):
            await install(operator, [])
        with refused("CONFLICT", "belongs to another key"):
            await install(operator, client_identity(name=VM).chain_der)
        token = await shown(operator)
    assert token.ready
    assert token.certificates[0] == earlier
    assert [each["event"] for each in events(config)].count("certificate-installed") == 1


async def test_first_certificate_may_be_one_of_tomorrow_with_a_warning(tmp_path: Path) -> None:
    async with broker(broker_config(tmp_path)) as (_, operator):
        await operator.CreateToken(pb.CreateTokenRequest(name="new"))
        request = pb.CreateCertificateRequestRequest(name="new", subject="CN=new", dns_names=["new"])
        csr = (await operator.CreateCertificateRequest(request)).certificate_request
        warnings = await install(operator, issued(csr, not_before=DAY), "new")
    assert ["is not valid before" in warning for warning in warnings] == [True]


async def test_renewal_with_a_new_key_leaves_a_gap_and_keeps_the_names(tmp_path: Path) -> None:
    async with broker(broker_config(tmp_path)) as (_, operator):
        earlier = x509.load_der_x509_certificate((await shown(operator)).certificates[0])
        request = await renewal(operator, new_key=True, algorithm=pb.KEY_ALGORITHM_P384)
        between = await shown(operator)
        await install(operator, issued(request))
        token = await shown(operator)
    leaf = x509.load_der_x509_certificate(token.certificates[0])
    assert (between.ready, between.not_ready.reason) == (False, "TOKEN_NOT_READY")
    assert token.ready
    assert leaf.subject == earlier.subject
    assert leaf.public_key() != earlier.public_key()


async def test_key_with_a_certificate_is_not_replaced_by_accident(tmp_path: Path) -> None:
    async with broker(broker_config(tmp_path)) as (_, operator):
        request = pb.GenerateKeyRequest(name=NAME)
        with refused("CONFLICT", "'vmtokenctl token renew --new-key'"):
            await operator.GenerateKey(request)
        with refused("CONFLICT", "no certificate to renew"):
            await operator.CreateToken(pb.CreateTokenRequest(name="new"))
            await renewal(operator, "new")
        assert (await shown(operator)).ready
        request.replace = True
        await operator.GenerateKey(request)
        assert not (await shown(operator)).certificates


async def test_card_that_exists_gets_its_first_key_and_nothing_is_left_when_it_cannot(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, tokens={})
    cards = Cards()
    cards.script("empty").certificate_chain = ()
    cards.script("used")
    async with running(config, cards), unix_channel(config.admin_socket) as channel:
        operator = AdminServiceStub(channel)
        with refused("CONFLICT", "cannot be personalised"):
            await operator.CreateToken(pb.CreateTokenRequest(name="a", uri="fake:empty", existing=True))
        with refused("CONFLICT", "has a certificate"):
            await operator.CreateToken(pb.CreateTokenRequest(name="b", uri="fake:used", existing=True))
        left = (await operator.ListAllTokens(pb.ListAllTokensRequest())).tokens
    assert not left
    assert set(cards.scripts) == {"empty", "used"}


async def test_pool_takes_no_certificate_of_another_identity(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    async with broker(config) as (_, operator):
        await operator.CreateToken(pb.CreateTokenRequest(name="second", algorithm=pb.KEY_ALGORITHM_ED25519))
        await operator.Bind(pb.BindRequest(vm=VM, token="second", name=NAME))
        request = pb.CreateCertificateRequestRequest(name="second", subject=f"CN={VM}", dns_names=[VM])
        csr = (await operator.CreateCertificateRequest(request)).certificate_request
        with refused("CONFLICT", "CN=other (web01)", f"is in the pool '{NAME}' of VM '{VM}'"):
            await install(operator, issued(csr, subject="CN=other"), "second")
        await install(operator, issued(csr), "second")
        with refused("CONFLICT", "have it issued for that"):
            await install(operator, issued(await renewal(operator, "second"), subject="CN=other"), "second")
        uses = (await shown(operator, "second")).uses
    assert [(use.vm, use.name, list(use.pool)) for use in uses] == [(VM, NAME, [NAME, "second"])]


async def test_retired_token_is_gone_with_its_key_and_a_record_stays(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    async with broker(config) as (_, operator):
        leaf = (await shown(operator)).certificates[0]
        with refused("CONFLICT", "bound to VM web01"):
            await operator.RetireToken(pb.RetireTokenRequest(name=NAME))
        assert (await shown(operator)).ready
        answer = await operator.RetireToken(pb.RetireTokenRequest(name=NAME, unbind=True))
        (retired,) = (await operator.ListRetiredTokens(pb.ListRetiredTokensRequest())).tokens
        (vm,) = (await operator.ListVms(pb.ListVmsRequest())).vms
        elements = list((config.state_dir / "elements").iterdir())
        await operator.CreateToken(pb.CreateTokenRequest(name=NAME))  # the name is free
    assert (answer.token, list(answer.vms)) == (retired, [VM])
    assert (retired.name, retired.certificate, retired.key_destroyed) == (NAME, leaf, True)
    assert retired.serial
    assert not vm.bindings
    assert elements == []
    (record,) = [each for each in events(config) if each["event"] == "token-retired"]
    assert (record["token"], record["key_destroyed"], record["vms"]) == (NAME, True, VM)


async def test_key_that_software_cannot_delete_is_overwritten(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    path = config.state_dir / "elements" / f"{NAME}.element"
    async with broker(config, undeletable) as (_, operator):
        before = identity_in(config, path)
        await operator.RetireToken(pb.RetireTokenRequest(name=NAME, unbind=True))
        (retired,) = (await operator.ListRetiredTokens(pb.ListRetiredTokensRequest())).tokens
        after = identity_in(config, path)
    assert retired.key_destroyed
    assert before.private_key != after.private_key
    assert (len(before.chain), after.chain) == (2, ())


def identity_in(config: BrokerConfig, path: Path) -> StoredIdentity:
    (identity,) = Keystore.load(path, load_sealing_key(config.state_dir)).contents.identities
    return identity


class NotOurs(Cards):
    """Cards that can be neither deleted nor personalised."""

    def delete(self, locator: str) -> None:
        raise Conflict("A card is not deleted by software.")


async def test_card_whose_key_stays_is_retired_only_by_force_and_who_waits_is_told(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, tokens={"web": []})
    cards = NotOurs()
    async with running(config, cards) as app, unix_channel(config.admin_socket) as channel:
        operator = AdminServiceStub(channel)
        token = app._desk.inventory.token("web")
        vm = (await operator.AddVm(pb.AddVmRequest(name="web01"))).vm
        await operator.Bind(pb.BindRequest(vm="web01", token="web"))
        with refused("CONFLICT", "cannot be personalised", "only with --force"):
            await operator.RetireToken(pb.RetireTokenRequest(name="web", unbind=True))
        await operator.RetireToken(pb.RetireTokenRequest(name="web", unbind=True, despite_key=True))
        with pytest.raises(VmTokenError, match="was retired"):
            await token.admission.acquire(app._desk.inventory.vm(vm.name).identity.uuid, 0.0)
        async with unix_channel(Path(vm.socket)) as link:
            listed = await TokenServiceStub(link).ListTokens(token_service_pb2.ListTokensRequest())
        (retired,) = (await operator.ListRetiredTokens(pb.ListRetiredTokensRequest())).tokens
    assert not listed.tokens
    assert not retired.key_destroyed


async def test_key_in_a_pkcs11_token_lives_the_same_life(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    with softhsm(tmp_path) as hsm:
        app = App(config, backends=lambda _scheme, _settings: hsm.backend)
        await app.start()
        try:
            async with unix_channel(config.admin_socket) as channel:
                await live(AdminServiceStub(channel), config, hsm, tmp_path)
        finally:
            await app.stop()
        login = ("--token-label", hsm.label, "--login", "--pin", hsm.pin.decode())
        left = hsm.tool("pkcs11-tool", "--module", str(hsm.library), *login, "--list-objects")
    assert "Object" not in left


async def live(operator: AdminServiceStub, config: BrokerConfig, hsm: Pkcs11Token, directory: Path) -> None:
    """Two keys in one token, a pool: made, certified, renewed while they work, retired."""
    await operator.AddVm(pb.AddVmRequest(name=VM))
    for name in ("one", "two"):
        uri = f"pkcs11:{hsm.locator(name)}"
        with refused("CONFLICT", "no ML_DSA_65 keys"):
            await created(operator, name, uri, hsm, pb.KEY_ALGORITHM_ML_DSA_65)
        await created(operator, name, uri, hsm, pb.KEY_ALGORITHM_P256)
        request = pb.CreateCertificateRequestRequest(name=name, subject=f"CN={VM}", dns_names=[VM])
        csr = (await operator.CreateCertificateRequest(request)).certificate_request
        await install(operator, issued(csr), name)
        anchors = [pki().root.certificate_der]
        await operator.InstallTrust(pb.InstallTrustRequest(name=name, anchors=anchors))
        await operator.Bind(pb.BindRequest(vm=VM, token=name, name="web"))
    async with unix_channel(config.link_socket(VM)) as channel:
        load = Load(TokenServiceStub(channel), server_context(directory), "web")
        async with load.of(4):
            await load.more(10)
            chain = issued(await renewal(operator, "one"))
            await install(operator, chain, "one")
            await load.more(10, "one")
            with refused("CONFLICT", "belongs to another key"):
                await install(operator, client_identity(name=VM).chain_der, "one")
            await renewed_with_a_new_key(operator, load)
            await operator.RetireToken(pb.RetireTokenRequest(name="one", unbind=True))
            await load.more(10, "two")
    await operator.RetireToken(pb.RetireTokenRequest(name="two", unbind=True))
    retired = (await operator.ListRetiredTokens(pb.ListRetiredTokensRequest())).tokens
    assert load.failed == []
    assert set(load.served) == {"one", "two"}
    assert serial_of(chain) in load.serials
    assert [(token.name, token.key_destroyed) for token in retired] == [("two", True), ("one", True)]


async def renewed_with_a_new_key(operator: AdminServiceStub, load: Load) -> None:
    """The other key of the pool makes the handshakes meanwhile."""
    csr = await renewal(operator, "two", new_key=True, algorithm=pb.KEY_ALGORITHM_P384)
    await load.more(5, "one")
    await install(operator, issued(csr), "two")
    await load.more(5, "two")


async def created(
    operator: AdminServiceStub, name: str, uri: str, hsm: Pkcs11Token, algorithm: pb.KeyAlgorithm.ValueType
) -> None:
    request = pb.CreateTokenRequest(name=name, uri=uri, algorithm=algorithm, existing=True, user_pin=hsm.pin)
    await operator.CreateToken(request)

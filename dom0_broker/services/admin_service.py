"""AdminService: what dom0's operator may ask, on a socket that only root opens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from dom0_broker.administration import VmAdministration
from dom0_broker.certificates import Expiry
from dom0_broker.handshake import Desk
from dom0_broker.inventory import Token, TokenState, TokenUse
from dom0_broker.metrics import Snapshot, exposition
from dom0_broker.personalisation import KeyAlgorithm, TokenAdministration
from dom0_broker.pin_administration import PinAdministration
from dom0_broker.policy import Outcome, Policy, PolicyError
from dom0_broker.retirement import TokenRetirement
from dom0_broker.services.found import convert_found
from dom0_broker.services.pins import convert_pins, convert_roles
from dom0_broker.sessions import Summary
from dom0_broker.store import PinRole, RetiredToken, VmRecord
from vmtoken.errors import InvalidRequest
from vmtoken.rpc import convert
from vmtoken.secret import SecretBytes
from vmtoken.settings import SettingsError
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import Assurance
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import admin_service_pb2_grpc, token_pb2
from vmtoken.version import VERSION

Context = grpc.aio.ServicerContext[Any, Any]

_ALGORITHMS: Final = {
    pb.KEY_ALGORITHM_UNSPECIFIED: KeyAlgorithm.ECDSA_P256,
    pb.KEY_ALGORITHM_P256: KeyAlgorithm.ECDSA_P256,
    pb.KEY_ALGORITHM_P384: KeyAlgorithm.ECDSA_P384,
    pb.KEY_ALGORITHM_ED25519: KeyAlgorithm.ED25519,
    pb.KEY_ALGORITHM_RSA2048: KeyAlgorithm.RSA_2048,
    pb.KEY_ALGORITHM_RSA3072: KeyAlgorithm.RSA_3072,
    pb.KEY_ALGORITHM_ML_DSA_44: KeyAlgorithm.ML_DSA_44,
    pb.KEY_ALGORITHM_ML_DSA_65: KeyAlgorithm.ML_DSA_65,
    pb.KEY_ALGORITHM_ML_DSA_87: KeyAlgorithm.ML_DSA_87,
}

_MOST_HANDSHAKES: Final = 1000

_PART: Final = 1 << 18
"""Octets of text in one message."""


@dataclass(frozen=True, slots=True)
class BrokerControl:
    """The broker as a whole, as far as the operator steers it."""

    started: datetime
    draining: Callable[[], bool]
    reload: Callable[[], Awaitable[tuple[Policy, list[str]]]]
    tcp_address: Callable[[], str]
    vchan: Callable[[], str]
    snapshot: Callable[[], Snapshot]
    expiries: Callable[[Token], Sequence[Expiry]]


class AdminService(admin_service_pb2_grpc.AdminServiceServicer):
    """Converts, calls a use case, converts."""

    def __init__(
        self,
        desk: Desk,
        vms: VmAdministration,
        tokens: TokenAdministration,
        retirement: TokenRetirement,
        pins: PinAdministration,
        control: BrokerControl,
    ) -> None:
        self._desk = desk
        self._vms = vms
        self._tokens = tokens
        self._retirement = retirement
        self._pins = pins
        self._control = control

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        """What runs, since when, and what is wrong."""
        policy, head = self._desk.policy(), self._desk.audit.head
        return pb.StatusResponse(
            version=VERSION,
            started=_timestamp(self._control.started),
            draining=self._control.draining(),
            vms=len(self._vms.vms()),
            tokens=await self._token_states(self._desk.inventory.tokens()),
            policy_rules=len(policy.rules),
            policy_error=policy.error,
            audit_sequence=head.sequence,
            audit_head=bytes.fromhex(head.digest),
            audit_path=str(self._desk.audit.path),
            tcp_address=self._control.tcp_address(),
            vchan=self._control.vchan(),
        )

    async def Reload(self, request: pb.ReloadRequest, context: Context) -> pb.ReloadResponse:
        """Read configuration and policy again."""
        try:
            policy, needs_restart = await self._control.reload()
        except (PolicyError, SettingsError) as error:
            raise InvalidRequest(f"The earlier policy stays in force: {error}") from error
        return pb.ReloadResponse(policy_rules=len(policy.rules), needs_restart=needs_restart)

    async def Metrics(
        self, request: pb.MetricsRequest, context: Context
    ) -> AsyncIterator[pb.MetricsResponse]:
        """What a monitoring system reads."""
        text = await asyncio.to_thread(exposition, self._control.snapshot())
        for start in range(0, len(text), _PART):
            yield pb.MetricsResponse(text=text[start : start + _PART])

    async def AddVm(self, request: pb.AddVmRequest, context: Context) -> pb.AddVmResponse:
        """Make a VM known."""
        return pb.AddVmResponse(vm=self._vm(await self._vms.add(request.name, request.uuid)))

    async def ListVms(self, request: pb.ListVmsRequest, context: Context) -> pb.ListVmsResponse:
        """All VMs."""
        return pb.ListVmsResponse(vms=map(self._vm, self._vms.vms()))

    async def RemoveVm(self, request: pb.RemoveVmRequest, context: Context) -> pb.RemoveVmResponse:
        """Forget a VM."""
        await self._vms.remove(request.vm)
        return pb.RemoveVmResponse()

    async def UnlinkVm(self, request: pb.UnlinkVmRequest, context: Context) -> pb.UnlinkVmResponse:
        """End the vchan of a VM."""
        await self._vms.unlink(request.vm)
        return pb.UnlinkVmResponse()

    async def LinkVm(self, request: pb.LinkVmRequest, context: Context) -> pb.LinkVmResponse:
        """Open it again."""
        await self._vms.link(request.vm)
        return pb.LinkVmResponse()

    async def EnrollVm(self, request: pb.EnrollVmRequest, context: Context) -> pb.EnrollVmResponse:
        """Sign an enrolment certificate."""
        certificate, ca = await self._vms.enroll(request.vm, request.certificate_request)
        return pb.EnrollVmResponse(certificate=certificate, ca_certificate=ca)

    async def Bind(self, request: pb.BindRequest, context: Context) -> pb.BindResponse:
        """Let a VM use a token."""
        await self._vms.bind(request.vm, request.token, request.name)
        return pb.BindResponse()

    async def Unbind(self, request: pb.UnbindRequest, context: Context) -> pb.UnbindResponse:
        """Take a token away from a VM."""
        await self._vms.unbind(request.vm, request.name, request.token or None)
        return pb.UnbindResponse()

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreateTokenResponse:
        """Make a new token."""
        algorithm = _algorithm(request.algorithm)
        if request.existing:
            user, operator = _pin(request.user_pin), _pin(request.operator_pin)
            key = await self._tokens.create_in(request.name, request.uri, algorithm, user, operator)
            return pb.CreateTokenResponse(public_key=key, uri=request.uri)
        uri, key = await self._tokens.create(request.name, request.uri, algorithm)
        return pb.CreateTokenResponse(public_key=key, uri=uri)

    async def GenerateKey(self, request: pb.GenerateKeyRequest, context: Context) -> pb.GenerateKeyResponse:
        """Make a key pair inside a token."""
        algorithm = _algorithm(request.algorithm)
        key = await self._tokens.generate_key(request.name, algorithm, replace_key=request.replace)
        return pb.GenerateKeyResponse(public_key=key)

    async def RetireToken(self, request: pb.RetireTokenRequest, context: Context) -> pb.RetireTokenResponse:
        """End a token's life."""
        done = await self._retirement.retire(
            request.name, unbind=request.unbind, despite_key=request.despite_key
        )
        because = done.key_stays_because
        return pb.RetireTokenResponse(token=_retired(done.record), vms=done.vms, key_stays_because=because)

    async def ListRetiredTokens(
        self, request: pb.ListRetiredTokensRequest, context: Context
    ) -> pb.ListRetiredTokensResponse:
        """Tokens that have been."""
        records = await asyncio.to_thread(self._retirement.retired)
        return pb.ListRetiredTokensResponse(tokens=map(_retired, records))

    async def AddToken(self, request: pb.AddTokenRequest, context: Context) -> pb.AddTokenResponse:
        """Make an existing token known."""
        user, operator = _pin(request.user_pin), _pin(request.operator_pin)
        token = await self._tokens.add(request.name, request.uri, user, operator)
        return pb.AddTokenResponse(token=self._token(token, await token.state()))

    async def ListAllTokens(
        self, request: pb.ListAllTokensRequest, context: Context
    ) -> pb.ListAllTokensResponse:
        """All tokens."""
        inventory = self._desk.inventory
        tokens = [inventory.token(request.name)] if request.name else inventory.tokens()
        return pb.ListAllTokensResponse(tokens=await self._token_states(tokens))

    async def RemoveToken(self, request: pb.RemoveTokenRequest, context: Context) -> pb.RemoveTokenResponse:
        """Forget a token."""
        await self._tokens.remove(request.name, destroy=request.destroy)
        return pb.RemoveTokenResponse()

    async def DiscoverTokens(
        self, request: pb.DiscoverTokensRequest, context: Context
    ) -> pb.DiscoverTokensResponse:
        """What could be made a token."""
        found = await self._tokens.discover()
        return pb.DiscoverTokensResponse(tokens=[convert_found(each, token) for each, token in found])

    async def ResetToken(self, request: pb.ResetTokenRequest, context: Context) -> pb.ResetTokenResponse:
        """Get a token going again."""
        token = await self._tokens.reset(request.name)
        return pb.ResetTokenResponse(token=self._token(token, await token.state()))

    async def CreateCertificateRequest(
        self, request: pb.CreateCertificateRequestRequest, context: Context
    ) -> pb.CreateCertificateRequestResponse:
        """A PKCS#10 request, signed inside the token."""
        if request.renewal:
            new_key = _algorithm(request.algorithm) if request.new_key else None
            csr = await self._tokens.renewal_request(request.name, new_key)
        else:
            csr = await self._tokens.certificate_request(request.name, request.subject, request.dns_names)
        return pb.CreateCertificateRequestResponse(certificate_request=csr)

    async def InstallCertificate(
        self, request: pb.InstallCertificateRequest, context: Context
    ) -> pb.InstallCertificateResponse:
        """Store the certificate chain."""
        warnings = await self._tokens.install_certificate(request.name, request.certificates)
        return pb.InstallCertificateResponse(warnings=warnings)

    async def InstallTrust(
        self, request: pb.InstallTrustRequest, context: Context
    ) -> pb.InstallTrustResponse:
        """Store the trust anchors."""
        await self._tokens.install_trust(request.name, request.anchors)
        return pb.InstallTrustResponse()

    async def SetTokenPin(self, request: pb.SetTokenPinRequest, context: Context) -> pb.SetTokenPinResponse:
        """Use another PIN."""
        pin, role = SecretBytes(request.pin), _role(request.role)
        untried = await self._pins.set(request.name, role, pin, again=request.again)
        return pb.SetTokenPinResponse(untried_because=untried)

    async def SetTokenPinSource(
        self, request: pb.SetTokenPinSourceRequest, context: Context
    ) -> pb.SetTokenPinSourceResponse:
        """Take a PIN from a file."""
        await self._pins.use_source(request.name, _role(request.role), Path(request.source))
        return pb.SetTokenPinSourceResponse()

    async def ChangeTokenPin(
        self, request: pb.ChangeTokenPinRequest, context: Context
    ) -> pb.ChangeTokenPinResponse:
        """Give the token another user PIN."""
        await self._pins.change(request.name, SecretBytes(request.new_pin))
        return pb.ChangeTokenPinResponse()

    async def UnblockTokenPin(
        self, request: pb.UnblockTokenPinRequest, context: Context
    ) -> pb.UnblockTokenPinResponse:
        """Give the token another user PIN with all its tries."""
        await self._pins.unblock(request.name, _pin(request.code), SecretBytes(request.new_pin))
        return pb.UnblockTokenPinResponse()

    async def FindPinSharers(
        self, request: pb.FindPinSharersRequest, context: Context
    ) -> pb.FindPinSharersResponse:
        """Whether a new token has PINs that are known."""
        tokens, kept = await self._pins.sharers_of(request.uri)
        return pb.FindPinSharersResponse(tokens=tokens, kept=convert_roles(kept))

    async def ReadTokenPins(
        self, request: pb.ReadTokenPinsRequest, context: Context
    ) -> pb.ReadTokenPinsResponse:
        """The retry counters, asked for if the token is free."""
        await self._pins.read(request.name)
        pins, sharers = convert_pins(self._pins.states(request.name)), self._pins.sharers(request.name)
        return pb.ReadTokenPinsResponse(pins=pins, shared_with=sharers)

    async def ListHandshakes(
        self, request: pb.ListHandshakesRequest, context: Context
    ) -> pb.ListHandshakesResponse:
        """The latest handshakes."""
        vm = self._desk.inventory.vm(request.vm).identity.uuid if request.vm else None
        summaries = self._desk.sessions.history(min(request.limit or 50, _MOST_HANDSHAKES), vm)
        return pb.ListHandshakesResponse(handshakes=map(_summary, summaries))

    async def TestPolicy(self, request: pb.TestPolicyRequest, context: Context) -> pb.TestPolicyResponse:
        """Which rule would decide."""
        outcomes = await self._vms.policy_outcomes(
            request.vm, request.server_name, request.token, request.certificates
        )
        return pb.TestPolicyResponse(outcomes=map(_outcome, outcomes))

    async def _token_states(self, tokens: list[Token]) -> list[pb.TokenStatus]:
        states = await asyncio.gather(*(token.state() for token in tokens))
        return [self._token(token, state) for token, state in zip(tokens, states, strict=True)]

    def _token(self, token: Token, state: TokenState) -> pb.TokenStatus:
        status = pb.TokenStatus(
            name=token.name,
            uri=token.record.uri,
            ready=state.problem is None,
            waiting=token.admission.waiting,
            busy=token.admission.busy,
            vms=self._desk.inventory.vms_of(token.name),
            completed=token.completed,
            failed=token.failed,
            pins=convert_pins(self._pins.states(token.name)),
            trust_anchors=token.record.kept.anchors,
            uses=map(_use, self._desk.inventory.uses_of(token.name)),
            warnings=map(str, self._control.expiries(token)),
            shares_pins_with=self._pins.sharers(token.name),
        )
        if state.problem is not None:
            status.not_ready.CopyFrom(convert.error_to_pb(state.problem))
        if state.description is not None:
            status.assurance = convert.assurance_to_pb(state.description.assurance)
            status.serial = state.description.serial
            status.application = state.description.application
            status.certificates.extend(state.description.certificate_chain)
        return status

    def _vm(self, record: VmRecord) -> pb.Vm:
        uuid = record.identity.uuid
        path: Path | None = self._vms.socket(record.identity)
        bindings = [pb.Binding(name=name, token=token) for name, token in self._vms.bindings(uuid)]
        residence = self._vms.residence(record.identity)
        return pb.Vm(
            name=record.identity.name,
            uuid=str(uuid),
            certificate_sha256=record.certificate_sha256 or b"",
            socket=str(path or ""),
            bindings=bindings,
            handshakes=self._vms.handshakes(uuid),
            domains_watched=residence is not None,
            domid=residence.domid if residence else None,
            agent_connected=residence.connected if residence else False,
            unlinked=residence.unlinked if residence else False,
        )


def _pin(octets: bytes) -> SecretBytes | None:
    return SecretBytes(octets) if octets else None


def _algorithm(algorithm: pb.KeyAlgorithm.ValueType) -> KeyAlgorithm:
    known = _ALGORITHMS.get(algorithm)
    if known is None:
        raise InvalidRequest("This broker does not know that algorithm; use the vmtokenctl of its version.")
    return known


def _use(use: TokenUse) -> pb.TokenUse:
    return pb.TokenUse(vm=use.vm, name=use.name, pool=[token.name for token in use.tokens])


def _retired(record: RetiredToken) -> pb.RetiredToken:
    return pb.RetiredToken(
        name=record.name,
        uri=record.uri,
        serial=record.serial,
        certificate=record.certificate,
        key_destroyed=record.key_destroyed,
        retired=_timestamp(record.retired),
    )


def _role(role: pb.PinRole.ValueType) -> PinRole:
    return PinRole.OPERATOR if role == pb.PIN_ROLE_OPERATOR else PinRole.USER


def _outcome(outcome: Outcome) -> pb.PolicyOutcome:
    return pb.PolicyOutcome(
        rule=outcome.rule, text=outcome.text, allow=outcome.allow, condition=outcome.condition
    )


def _summary(summary: Summary) -> pb.HandshakeSummary:
    return pb.HandshakeSummary(
        session_id=summary.session_id,
        started=_timestamp(summary.started),
        vm=summary.vm,
        token=summary.token,
        server_name=summary.server_name,
        port=summary.port,
        outcome=summary.outcome,
        rule=summary.rule,
        version=_version(summary.version),
        cipher_suite=summary.cipher_suite,
        group=summary.group,
        resumed=summary.resumed,
        assurance=_assurance(summary.assurance),
        total_microseconds=round(summary.total * 1e6),
        queue_microseconds=round(summary.queue * 1e6),
        token_microseconds=round(summary.in_token * 1e6),
        server_certificate_sha256=summary.leaf_sha256,
    )


def _version(version: ProtocolVersion | None) -> token_pb2.TlsVersion.ValueType:
    return convert.version_to_pb(version) if version else token_pb2.TLS_VERSION_UNSPECIFIED


def _assurance(assurance: Assurance | None) -> token_pb2.Assurance.ValueType:
    return convert.assurance_to_pb(assurance) if assurance else token_pb2.ASSURANCE_UNSPECIFIED


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp

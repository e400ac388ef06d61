"""Broker, cards and agent as they run on a host and in a guest, in processes of their own.

    with Stack.start(directory, kinds=(KeyKind.ECDSA_P256,)) as stack:
        session = StackClient(stack).connect(server, KeyKind.ECDSA_P256)

Cards are software elements, made and personalised through the broker's AdminService, one for each kind
of key and bound to the VM `web01` under the name of the kind.
"""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.pki import DAY, NOW, Authority, KeyKind, pki
from tests.support.processes import Child, ChildFailed
from vmtoken.v1 import admin_service_pb2 as admin
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub

VM = "web01"
READY_WITHIN = 20.0
"""Seconds for a program to come up, on a machine that runs other tests beside this one."""

ALGORITHMS: Mapping[KeyKind, admin.KeyAlgorithm] = {
    KeyKind.ECDSA_P256: admin.KEY_ALGORITHM_P256,
    KeyKind.ECDSA_P384: admin.KEY_ALGORITHM_P384,
    KeyKind.ED25519: admin.KEY_ALGORITHM_ED25519,
    KeyKind.RSA_2048: admin.KEY_ALGORITHM_RSA2048,
    KeyKind.RSA_3072: admin.KEY_ALGORITHM_RSA3072,
    KeyKind.ML_DSA_44: admin.KEY_ALGORITHM_ML_DSA_44,
    KeyKind.ML_DSA_65: admin.KEY_ALGORITHM_ML_DSA_65,
    KeyKind.ML_DSA_87: admin.KEY_ALGORITHM_ML_DSA_87,
}
"""What cards can generate; RSA keys that are bound to PSS are not among it."""


@dataclass
class Stack:
    """A broker and an agent that run, and where everything is."""

    home: Path
    broker_settings: str = ""
    """More of broker.toml."""

    agent_settings: str = ""
    """More of agent.toml."""

    policy: str = "allow vm=* server=*"
    broker_program: tuple[str | Path, ...] = ("vmtoken-broker",)
    link: Path | None = None
    """What the agent takes for the broker's socket; None for the socket itself."""

    broker: Child | None = field(default=None, init=False)
    agent: Child | None = field(default=None, init=False)
    _logs: int = field(default=0, init=False)

    @classmethod
    @contextmanager
    def running(
        cls,
        kinds: Sequence[KeyKind] = (KeyKind.ECDSA_P256,),
        *,
        without_agent: bool = False,
        **options: object,
    ) -> Iterator[Stack]:
        """Broker and agent, with a card of each kind, as long as the block lasts."""
        home = Path(tempfile.mkdtemp(prefix="stack-"))  # short: paths of sockets have 107 octets at most
        stack = cls(home, **options)  # type: ignore[arg-type]
        try:
            stack.start_broker()
            personalise(stack.admin_socket, kinds)
            if not without_agent:
                stack.start_agent()
            yield stack
        except BaseException as error:
            error.add_note(stack.logs())
            raise
        finally:
            stack.stop()
            shutil.rmtree(home, ignore_errors=True)

    # Programs.

    def start_broker(self) -> Child:
        """Start the broker, or start it again, and wait until it answers."""
        assert self.broker is None or self.broker.has_ended
        policy = self.home / "policy.d"
        policy.mkdir(exist_ok=True)
        (policy / "10-test.policy").write_text(self.policy + "\n")
        configuration = self._write("broker.toml", _BROKER_TOML + self.broker_settings)
        self.broker = self._start(*self.broker_program, "--config", configuration)
        _wait_for_socket(self.broker, self.admin_socket)
        return self.broker

    def start_agent(self) -> Child:
        """Start the agent, or start it again, and wait until it answers."""
        assert self.agent is None or self.agent.has_ended
        link = self.link or self.broker_socket
        configuration = self._write(
            "agent.toml", _AGENT_TOML.format(home=self.home, link=link) + self.agent_settings
        )
        self.agent_socket.unlink(missing_ok=True)
        self.agent = self._start("vmtoken-agent", "--config", configuration)
        _wait_for_socket(self.agent, self.agent_socket)
        return self.agent

    def stop(self) -> None:
        """End both, the agent first."""
        for child in (self.agent, self.broker):
            if child is not None:
                child.stop()

    def logs(self) -> str:
        """What both have written last."""
        texts = [
            f"--- {path.name} ---\n{path.read_text()[-4000:]}" for path in sorted(self.home.glob("*.log"))
        ]
        return "\n".join(texts)

    def _start(self, program: str | Path, *arguments: str | Path) -> Child:
        """A path, or the name of a console script of this environment."""
        self._logs += 1
        executable = Path(sys.executable).parent / program
        return Child([executable, *arguments], self.home / f"{self._logs}-{executable.name}.log")

    def _write(self, name: str, text: str) -> Path:
        path = self.home / name
        path.write_text(text)
        return path

    # Places.

    @property
    def admin_socket(self) -> Path:
        return self.home / "run/admin.sock"

    @property
    def broker_socket(self) -> Path:
        """The link of the VM."""
        return self.home / "run/vms" / VM / "broker.sock"

    @property
    def agent_socket(self) -> Path:
        """Where applications of the VM connect."""
        return self.home / "agent.sock"

    @property
    def state(self) -> Path:
        """What the broker keeps."""
        return self.home / "state"

    @contextmanager
    def administration(self) -> Iterator[AdminServiceStub]:
        """The operator's service."""
        with sync_channel(self.admin_socket) as channel:
            yield AdminServiceStub(channel)


def personalise(admin_socket: Path, kinds: Sequence[KeyKind], vm: str = VM) -> None:
    """Make a VM known and give it a card of each kind, with a certificate for `web01`."""
    with sync_channel(admin_socket) as channel:
        service = AdminServiceStub(channel)
        service.AddVm(admin.AddVmRequest(name=vm))
        for kind in kinds:
            request = admin.CreateTokenRequest(name=kind.value, algorithm=ALGORITHMS[kind])
            give_identity(service, request)
            service.Bind(admin.BindRequest(vm=vm, token=kind.value))


def give_identity(service: AdminServiceStub, token: admin.CreateTokenRequest) -> None:
    """Have a key made in a token, a certificate for `web01` and the root of the test servers put there."""
    name = token.name
    service.CreateToken(token)
    answer = service.CreateCertificateRequest(
        admin.CreateCertificateRequestRequest(name=name, subject=f"CN={VM}", dns_names=[VM])
    )
    request = x509.load_der_x509_csr(answer.certificate_request)
    issuer = pki().intermediate
    chain = [_certify(issuer, request), *(each.public_bytes(Encoding.DER) for each in issuer.path)]
    service.InstallCertificate(admin.InstallCertificateRequest(name=name, certificates=chain))
    anchors = [issuer.root.public_bytes(Encoding.DER)]
    service.InstallTrust(admin.InstallTrustRequest(name=name, anchors=anchors))


def _certify(issuer: Authority, request: x509.CertificateSigningRequest) -> bytes:
    """What the operator's CA does with a request; DER."""
    assert request.is_signature_valid
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer.certificate.subject)
        .subject_name(request.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 30 * DAY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(names.value, critical=False)
    )
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


@contextmanager
def sync_channel(path: Path) -> Iterator[grpc.Channel]:
    options = [("grpc.default_authority", "localhost"), ("grpc.max_receive_message_length", 1 << 20)]
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        yield channel


def _wait_for_socket(child: Child, path: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while not _answers(path):
        if child.process.poll() is not None:
            raise ChildFailed(child, f"ended with exit code {child.process.returncode}")
        if time.monotonic() > deadline:
            raise ChildFailed(child, f"did not open {path} within {READY_WITHIN} s")
        time.sleep(0.01)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


_BROKER_TOML = """\
state_dir = "state"
runtime_dir = "run"
policy_dir = "policy.d"
"""

_AGENT_TOML = """\
[broker]
link = "unix:{link}"
[applications]
socket = "{home}/agent.sock"
"""

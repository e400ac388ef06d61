"""The operator's side: VMs, links over TCP, tokens, vmtokenctl, the daemon as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import select
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from msgspec.structs import replace

from dom0_broker.app import App
from dom0_broker.config import TcpConfig
from dom0_broker.store import Store
from tests.support.broker_app import (
    WEB01,
    WEB02,
    Cards,
    Stream,
    agent_of,
    broker_config,
    populate,
    running,
)
from vmtoken.rpc.channel import tls_channel, unix_channel
from vmtoken.rpc.status import from_rpc_error
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import token_service_pb2
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub


@contextlib.asynccontextmanager
async def admin_of(app: App) -> AsyncIterator[AdminServiceStub]:
    async with unix_channel(app.config.admin_socket) as channel:
        yield AdminServiceStub(channel)


@contextlib.asynccontextmanager
async def refused(reason: str) -> AsyncIterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        yield
    assert from_rpc_error(error.value).reason == reason


def mode_of(path: str) -> int | None:
    try:
        return Path(path).stat().st_mode & 0o777
    except FileNotFoundError:
        return None


def pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem(certificate: bytes) -> bytes:
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)


def request_for(key: ec.EllipticCurvePrivateKey, name: str = "whatever") -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256()).public_bytes(Encoding.DER)


async def tokens_of(channel: grpc.aio.Channel) -> list[str]:
    request = token_service_pb2.ListTokensRequest()
    return [token.name for token in (await TokenServiceStub(channel).ListTokens(request, timeout=3)).tokens]


async def test_vm_comes_and_goes_while_the_broker_runs(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, tokens={"web": []})
    async with running(config, Cards()) as app, admin_of(app) as admin:
        vm = (await admin.AddVm(pb.AddVmRequest(name="web01", uuid=str(WEB01.uuid)))).vm
        assert mode_of(vm.socket) == 0o600
        async with agent_of(app, WEB01) as stub:
            assert (await Stream(stub).start()).failure.error.reason == "NO_TOKEN_BOUND"
            await admin.Bind(pb.BindRequest(vm="web01", token="web", name="login"))
            assert (await Stream(stub).handshake(token="login")).HasField("result")
            await admin.Unbind(pb.UnbindRequest(vm=str(WEB01.uuid), name="login"))
            assert (await Stream(stub).start()).failure.error.reason == "NO_TOKEN_BOUND"
            await admin.RemoveVm(pb.RemoveVmRequest(vm="web01"))
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ListTokens(token_service_pb2.ListTokensRequest(), timeout=2)
        assert mode_of(vm.socket) is None
        assert not (await admin.ListVms(pb.ListVmsRequest())).vms


async def test_operator_is_told_what_is_wrong(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, admin_of(app) as admin:
        async with refused("ALREADY_EXISTS"):
            await admin.AddVm(pb.AddVmRequest(name="web01"))
        async with refused("INVALID_REQUEST"):
            await admin.AddVm(pb.AddVmRequest(name="../web"))
        async with refused("INVALID_REQUEST"):
            await admin.AddVm(pb.AddVmRequest(name="web02", uuid="not a uuid"))
        async with refused("NOT_FOUND"):
            await admin.RemoveVm(pb.RemoveVmRequest(vm="web09"))
        async with refused("NOT_FOUND"):
            await admin.LinkVm(pb.LinkVmRequest(vm="web09"))
        async with refused("CONFLICT"):
            await admin.UnlinkVm(pb.UnlinkVmRequest(vm="web01"))
        async with refused("CONFLICT"):
            await admin.LinkVm(pb.LinkVmRequest(vm="web01"))
        async with refused("NOT_FOUND"):
            await admin.Bind(pb.BindRequest(vm="web01", token="nothing"))
        async with refused("ALREADY_EXISTS"):
            await admin.Bind(pb.BindRequest(vm="web01", token="web"))
        async with refused("CONFLICT"):
            await admin.RemoveToken(pb.RemoveTokenRequest(name="web"))
        async with refused("INVALID_REQUEST"):
            await admin.EnrollVm(pb.EnrollVmRequest(vm="web01", certificate_request=b"not a request"))
        async with refused("CONFLICT"):
            await admin.CreateToken(pb.CreateTokenRequest(name="new", uri="fake:new"))
        async with refused("INVALID_REQUEST"):
            await admin.CreateToken(pb.CreateTokenRequest(name="new", uri="nonsense"))
        (config.policy_dir / "20-b.policy").write_text("nonsense\n")
        async with refused("INVALID_REQUEST"):
            await admin.Reload(pb.ReloadRequest())


async def test_tcp_link_knows_the_vm_by_its_enrolment_certificate(tmp_path: Path) -> None:
    config = replace(broker_config(tmp_path), tcp=TcpConfig(listen="127.0.0.1:0"))
    populate(config, WEB01, WEB02, tokens={"one": [WEB01], "two": [WEB02]})
    async with running(config, Cards()) as app, admin_of(app) as admin:
        target = (await admin.Status(pb.StatusRequest())).tcp_address
        keys = {vm: ec.generate_private_key(ec.SECP256R1()) for vm in ("web01", "web02")}
        enrolled = {
            vm: await admin.EnrollVm(pb.EnrollVmRequest(vm=vm, certificate_request=request_for(key)))
            for vm, key in keys.items()
        }

        def channel(vm: str) -> grpc.aio.Channel:
            answer = enrolled[vm]
            return tls_channel(
                target,
                ca=pem(answer.ca_certificate),
                certificate=pem(answer.certificate),
                key=pem_key(keys[vm]),
                server_name="vmtoken-broker",
            )

        async with channel("web01") as first, channel("web02") as second:
            assert await tokens_of(first) == ["one"]
            assert await tokens_of(second) == ["two"]
            assert (await Stream(TokenServiceStub(first)).handshake()).HasField("result")
            under_way = Stream(TokenServiceStub(second))
            await under_way.start()

            # a new enrolment ends links that rest on the old one, of this VM only
            again = ec.generate_private_key(ec.SECP256R1())
            await admin.EnrollVm(pb.EnrollVmRequest(vm="web01", certificate_request=request_for(again)))
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await tokens_of(first)
            assert error.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
            await under_way.records(b"server flight")
            assert (await under_way.records(b"server finished")).HasField("result")


async def test_tcp_link_takes_nobody_without_an_enrolment_certificate(tmp_path: Path) -> None:
    config = replace(broker_config(tmp_path), tcp=TcpConfig(listen="127.0.0.1:0"))
    populate(config, WEB01, tokens={})
    async with running(config, Cards()) as app:
        host, _, port = app.links.tcp_address.rpartition(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        with contextlib.suppress(ssl.SSLError):  # the alert certificate_required, or only the end
            assert await reader.read(1) == b""
        writer.close()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):
            await asyncio.open_connection(host, int(port), ssl=context)


async def test_health_says_how_the_broker_and_each_token_are(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app:
        async with unix_channel(config.admin_socket) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await app.show_health()
            for service in ("", "token/web"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        path = app.links.socket(WEB01)
        assert path is not None
        async with unix_channel(path) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError):  # the operator's service is not on the VM's socket
                await AdminServiceStub(channel).Status(pb.StatusRequest())


CONFIG = """
state_dir = "state"
runtime_dir = "{runtime}"
policy_dir = "policy.d"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with broker.toml and a policy."""
    config = broker_config(tmp_path, policy="allow vm=web01 server=*.example")
    (tmp_path / "broker.toml").write_text(CONFIG.format(runtime=config.runtime_dir))
    return tmp_path


def program(home: Path, module: str, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, "--config", str(home / "broker.toml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def ctl(home: Path, *arguments: str, code: int = 0, **options: str) -> str:
    done = program(home, "dom0_broker.ctl", *arguments, **options)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@contextlib.contextmanager
def started(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A broker as systemd starts it: ready when it says so."""
    command = [sys.executable, "-m", "dom0_broker", "--config", str(home / "broker.toml")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind("")  # an abstract name of the kernel's choice, unix(7)
        notifications.settimeout(30)
        name = "@" + notifications.getsockname()[1:].decode()
        environment = {**os.environ, "NOTIFY_SOCKET": name}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
            try:
                assert notifications.recv(100) == b"READY=1"
                yield process
            finally:
                process.kill()


@pytest.fixture
def daemon(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    with started(home) as process:
        yield process


def test_operator_works_with_vmtokenctl(home: Path, daemon: subprocess.Popen[bytes]) -> None:
    assert "serving" in ctl(home, "status")
    ctl(home, "vm", "add", "web01")
    ctl(home, "token", "create", "web")
    ctl(home, "vm", "bind", "web01", "web", "--as", "login")
    ctl(home, "ca", "init", str(home / "ca"))
    csr = ctl(home, "token", "csr", "web", "--subject", "CN=web01", "--dns", "a.example")
    (home / "csr.pem").write_text(csr)
    (home / "chain.pem").write_text(ctl(home, "ca", "sign", str(home / "ca"), str(home / "csr.pem")))
    ctl(home, "token", "install-cert", "web", str(home / "chain.pem"), "--trust", str(home / "ca/ca.pem"))
    (token,) = json.loads(ctl(home, "token", "list", "--json"))
    assert (token["ready"], token["subject"], token["vms"]) == (True, "CN=web01", ["web01"])
    (vm,) = json.loads(ctl(home, "--json", "vm", "list"))
    assert (vm["domain"], vm["agent"]) == ("unknown", False)
    assert vm["tokens"] == ["login (web)"]
    ctl(home, "vm", "enroll", "web01", str(home / "enrolment"))
    assert (home / "enrolment/enrolment.key").stat().st_mode & 0o777 == 0o600
    assert "10-test.policy:1" in ctl(home, "policy", "test", "web01", "shop.example:443")
    ctl(home, "policy", "test", "web01", "shop.test:443", code=1)
    assert json.loads(ctl(home, "session", "list", "--json")) == []
    assert "whole" in ctl(home, "audit", "verify")
    ctl(home, "reload")
    assert "There is no VM" in ctl(home, "vm", "remove", "web09", code=1)
    (home / "web02.cfg").write_text('name = "web02"\nuuid = "00000000-0000-0000-0000-000000000002"\n')
    ctl(home, "vm", "add", "--from-config", str(home / "web02.cfg"))
    assert "00000000-0000-0000-0000-000000000002" in ctl(home, "vm", "list")
    assert "Say how the VM is called" in ctl(home, "vm", "add", code=1)
    assert "bound to a VM" in ctl(home, "token", "remove", "web", code=1)
    assert "cannot be read" in ctl(home, "token", "trust", "web", str(home / "missing.pem"), code=1)
    ctl(home, "vm", "unbind", "web01", "login")
    ctl(home, "token", "remove", "web", "--destroy")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    assert "There is no broker" in ctl(home, "status", code=1)
    assert json.loads(ctl(home, "audit", "verify", "--json"))["verdict"] == "whole"


def test_operator_cares_for_pins_with_vmtokenctl(home: Path, daemon: subprocess.Popen[bytes]) -> None:
    ctl(home, "token", "create", "web")
    (user, operator) = json.loads(ctl(home, "token", "pin", "status", "web", "--json"))
    assert (user["pin"], user["state"]) == ("user", "untried")
    assert (operator["state"], operator["tries"]) == ("accepted", "10/10")  # it made the key
    assert "refused the user PIN" in ctl(home, "token", "pin", "set", "web", code=1, input="wrong000\n")
    assert "refused this user PIN before" in ctl(
        home, "token", "pin", "set", "web", code=1, input="wrong000\n"
    )
    assert "is empty" in ctl(home, "token", "pin", "change", "web", code=1, input="\n")
    ctl(home, "token", "pin", "change", "web", input="first111\n")
    ctl(home, "token", "pin", "unblock", "web", input="second22\n")
    assert "refused this code, which leaves 9 tries" in ctl(
        home, "token", "pin", "unblock", "web", "--code", code=1, input="wrong000\nthird333\n"
    )
    assert "web: operator accepted, 9/10 tries" in ctl(home, "status")
    source = home / "pin"
    source.touch(0o600)
    source.write_text("second22\n")
    ctl(home, "token", "pin", "source", "web", str(source))
    ctl(home, "token", "pin", "set", "web", input="second22\n")
    (user, _) = json.loads(ctl(home, "token", "pin", "status", "web", "--json"))
    assert (user["state"], user["tries"], user["source"]) == ("accepted", "3/3", "")
    (token,) = json.loads(ctl(home, "token", "list", "--json"))
    assert (token["pin_tries"], token["ready"]) == ("3/3", False)
    assert "no certificate yet" in token["not_ready_because"]
    source.chmod(0o644)
    assert "chmod 0600" in ctl(home, "token", "pin", "source", "web", str(source), code=1)


def test_life_of_an_identity_with_vmtokenctl(home: Path, daemon: subprocess.Popen[bytes]) -> None:
    ca, crl = str(home / "ca"), home / "ca/crl.pem"
    ctl(home, "ca", "init", ca)
    ctl(home, "vm", "add", "web01")
    for card in ("card-1", "card-2"):
        ctl(home, "token", "create", card, "--algorithm", "p384")
        ctl(
            home, "token", "enroll", card, "--ca", ca, "--subject", "CN=web01,O=Example", "--dns", "a.example"
        )
        ctl(home, "vm", "bind", "web01", card, "--as", "web")
    assert "web (card-1, card-2)" in ctl(home, "vm", "list")
    first = json.loads(ctl(home, "token", "show", "card-1", "--json"))
    assert (first["ready"], first["key"], first["days_left"]) == (True, "ECDSA secp384r1", 89)
    assert (first["alternative_names"], first["trust_anchors"]) == (["a.example"], 1)
    assert first["bindings"] == ["web01 as web (with card-1, card-2)"]
    assert first["warnings"] == []

    ctl(home, "token", "renew", "card-1", "--ca", ca, "--days", "20")
    renewed = json.loads(ctl(home, "token", "show", "card-1", "--json"))
    assert renewed["certificate_serial"] != first["certificate_serial"]
    assert (renewed["subject"], renewed["days_left"]) == (first["subject"], 19)
    assert "expires in 19 days" in renewed["warnings"][0]
    assert "Token 'card-1': The certificate" in ctl(home, "status")
    (home / "chain.pem").write_text(ctl(home, "ca", "sign", ca, renewal_file(home, "card-1")))
    ctl(home, "token", "install-cert", "card-1", str(home / "chain.pem"))
    assert "Nobody can be asked" in ctl(home, "token", "renew", "card-1", "--ca", ca, "--new-key", code=1)
    ctl(home, "token", "renew", "card-1", "--ca", ca, "--new-key", "--algorithm", "ml-dsa-65", "--force")
    last = json.loads(ctl(home, "token", "show", "card-1", "--json"))
    assert (last["ready"], last["key"]) == (True, "ML-DSA-65")

    assert "Nobody can be asked" in ctl(home, "token", "retire", "card-1", code=1)
    ctl(home, "token", "retire", "card-1", "--force", "--ca", ca)
    revoked = [each for each in json.loads(ctl(home, "ca", "list", ca, "--json")) if each["revoked"]]
    assert [each["serial"] for each in revoked] == [last["certificate_serial"]]
    assert len(list(x509.load_pem_x509_crl(crl.read_bytes()))) == 1
    (gone,) = json.loads(ctl(home, "token", "list", "--retired", "--json"))
    assert (gone["name"], gone["key_destroyed"]) == ("card-1", True)
    assert "web (card-2)" in ctl(home, "vm", "list")
    ctl(home, "ca", "revoke", ca, first["certificate_serial"], "--reason", "superseded")
    assert "is neither a serial number nor a file" in ctl(home, "ca", "revoke", ca, "nonsense", code=1)
    ctl(home, "ca", "crl", ca, "--days", "3")
    assert len(list(x509.load_pem_x509_crl(crl.read_bytes()))) == 2
    assert "whole" in ctl(home, "audit", "verify")


def test_end_of_a_token_is_asked_for_at_the_terminal(home: Path, daemon: subprocess.Popen[bytes]) -> None:
    ctl(home, "vm", "add", "web01")
    ctl(home, "token", "create", "web")
    ctl(home, "vm", "bind", "web01", "web")
    question, code = at_the_terminal(home, "n", "token", "retire", "web")
    assert (code, "It is bound to VM web01. Go on? [y/N]" in question) == (1, True)
    assert json.loads(ctl(home, "token", "list", "--json"))
    said, code = at_the_terminal(home, "y", "token", "retire", "web")
    assert (code, "its key is destroyed" in said) == (0, True)
    assert json.loads(ctl(home, "token", "list", "--json")) == []


def test_slip_in_a_command_is_a_sentence_and_costs_nothing(
    home: Path, daemon: subprocess.Popen[bytes]
) -> None:
    ca = str(home / "lab-ca")
    ctl(home, "ca", "init", ca)
    ctl(home, "token", "create", "web")
    ctl(home, "token", "enroll", "web", "--ca", ca, "--subject", "CN=web01")
    leaf = shown(home, "web")["certificate_serial"]
    nowhere = str(home / "nowhere" / "request.csr")
    assert "nowhere" in ctl(home, "token", "renew", "web", "--csr", nowhere, "--new-key", "--force", code=1)
    assert "no lab CA" in ctl(home, "token", "retire", "web", "--ca", str(home / "x"), "--force", code=1)
    assert "hexadecimal" in ctl(home, "token", "add", "t", "pcsc:serial=zz", "--no-pin", code=1)
    assert "pin-value" in ctl(home, "token", "add", "t", "pkcs11:token=a;pin-value=7531", "--no-pin", code=1)
    assert "from 1 to 1000" in ctl(home, "session", "list", "--limit", "-1", code=2)
    assert "from 1 to 1000" in ctl(home, "session", "list", "--limit", "9" * 5000, code=2)
    assert shown(home, "web")["certificate_serial"] == leaf
    assert json.loads(ctl(home, "token", "list", "--json"))[1:] == []
    assert "7531" not in (home / "state" / "audit" / "audit.jsonl").read_text()


def shown(home: Path, token: str) -> dict[str, object]:
    facts: dict[str, object] = json.loads(ctl(home, "token", "show", token, "--json"))
    return facts


@pytest.mark.parametrize(
    ("key", "code", "said"), [("\x03", 130, ""), ("\x04", 1, "No answer was given; nothing was done.")]
)
def test_person_who_gives_no_pin_is_out_at_once(
    home: Path, daemon: subprocess.Popen[bytes], key: str, code: int, said: str
) -> None:
    """Ctrl-C and Ctrl-D, as the first key at the question, on a terminal of the process's own."""
    ctl(home, "token", "create", "web")
    arguments = ["--config", str(home / "broker.toml"), "token", "pin", "set", "web"]
    process, terminal = pty.fork()
    if not process:
        os.execv(sys.executable, [sys.executable, "-m", "dom0_broker.ctl", *arguments])
    try:
        output = shown_until(terminal, b"PIN: ")
        os.write(terminal, key.encode())
        output += shown_until(terminal, None)
    finally:
        os.kill(process, signal.SIGKILL)  # still there to be waited for, whether it has ended or not
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        os.close(terminal)
    assert (status, said in output.decode(), b"Traceback" in output) == (code, True, False)


def shown_until(terminal: int, prompt: bytes | None) -> bytes:
    """What comes on a terminal, up to a prompt or the end."""
    output = b""
    while prompt is None or prompt not in output:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, output
        try:
            output += os.read(terminal, 4096)
        except OSError:  # EIO: nobody is at the other end any more
            return output
    return output


def at_the_terminal(home: Path, answer: str, *arguments: str) -> tuple[str, int]:
    """What vmtokenctl says to a person who types an answer, and its exit code."""
    person, terminal = os.openpty()
    command = [sys.executable, "-m", "dom0_broker.ctl", "--config", str(home / "broker.toml"), *arguments]
    try:
        os.write(person, f"{answer}\n".encode())
        done = subprocess.run(
            command, stdin=terminal, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        os.close(person)
        os.close(terminal)
    return done.stderr, done.returncode


def renewal_file(home: Path, token: str) -> str:
    """A request for another CA."""
    ctl(home, "token", "renew", token, "--csr", str(home / "renewal.csr"))
    return str(home / "renewal.csr")


def test_pins_and_keys_are_nowhere_in_clear(home: Path, daemon: subprocess.Popen[bytes]) -> None:
    ctl(home, "token", "create", "web")
    said = program(home, "dom0_broker.ctl", "token", "add", "other", "soft:other", input="Secret99\n")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    assert daemon.stderr is not None
    everything = said.stdout.encode() + said.stderr.encode() + daemon.stderr.read()
    for path in (home / "state").rglob("*"):
        if path.is_file():
            everything += path.read_bytes()
            assert path.stat().st_mode & 0o077 == 0, path
    assert b"Secret99" not in everything
    assert b"PRIVATE KEY" not in everything
    assert bytes.fromhex("06072a8648ce3d0201") not in everything.replace(_certificates(home), b"")


def _certificates(home: Path) -> bytes:
    """The one thing with a public key in clear: the enrolment CA's certificate, in the database."""
    with contextlib.closing(Store(home / "state/broker.sqlite")) as store:
        ca = store.enrolment_ca()
    assert ca is not None
    return ca.certificate


def test_killed_broker_starts_again_with_everything_it_acknowledged(
    home: Path, daemon: subprocess.Popen[bytes]
) -> None:
    ctl(home, "vm", "add", "web01")
    ctl(home, "token", "create", "web")
    ctl(home, "vm", "bind", "web01", "web")
    daemon.kill()
    daemon.wait()
    with started(home):
        (vm,) = json.loads(ctl(home, "vm", "list", "--json"))
        assert (vm["name"], vm["tokens"]) == ("web01", ["web"])
        (token,) = json.loads(ctl(home, "token", "list", "--json"))
        assert "no certificate" in token["not_ready_because"]
        assert "whole" in ctl(home, "audit", "verify")


def test_hangup_reloads_the_policy(home: Path, daemon: subprocess.Popen[bytes]) -> None:
    ctl(home, "vm", "add", "web01")
    ctl(home, "token", "create", "web")
    ctl(home, "vm", "bind", "web01", "web")
    ctl(home, "policy", "test", "web01", "new.test:443", code=1)
    (home / "policy.d/05-new.policy").write_text("allow vm=web01 server=new.test\n")
    daemon.send_signal(signal.SIGHUP)
    for _ in range(50):
        if program(home, "dom0_broker.ctl", "policy", "test", "web01", "new.test:443").returncode == 0:
            break
    assert "05-new.policy:1" in ctl(home, "policy", "test", "web01", "new.test:443")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("stat_dir = 'x'", "did you mean 'state_dir'?"),
        ("[limits]\nqueue = 0", "limits.queue"),
        ("[tcp]\nlisten = 'nonsense'", "is not HOST:PORT"),
        ("not toml", "not TOML"),
        ("policy_dir = 'nowhere'", "is not a directory"),
        ("runtime_dir = '/" + "x" * 100 + "'\npolicy_dir = 'policy.d'", "runtime_dir"),
        ("[limits]\nvm_streams = 1", "vm_streams"),
    ],
)
def test_wrong_configuration_is_one_sentence_and_exit_code_2(
    home: Path, content: str, complaint: str
) -> None:
    (home / "broker.toml").write_text(content)
    done = program(home, "dom0_broker", "--check-config")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_wrong_permissions_and_rules_are_found_by_check_config(home: Path) -> None:
    assert "1 rules" in program(home, "dom0_broker", "--check-config").stdout
    (home / "state").mkdir(mode=0o755)
    assert "chmod 0700" in program(home, "dom0_broker", "--check-config").stderr
    (home / "state").chmod(0o700)
    (home / "policy.d/10-test.policy").chmod(0o666)
    assert "chmod go-w" in program(home, "dom0_broker", "--check-config").stderr
    (home / "policy.d/10-test.policy").chmod(0o644)
    (home / "policy.d/10-test.policy").write_text("nonsense\n")
    done = program(home, "dom0_broker", "--check-config")
    assert (done.returncode, "10-test.policy:1" in done.stderr) == (2, True)

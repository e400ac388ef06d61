"""PKCS#11 tokens for tests, in modules that nobody here wrote; what is missing skips, and fails in CI."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_der_public_key

from dom0_broker.backends.base import Kept
from dom0_broker.backends.pkcs11.backend import Pkcs11Backend
from dom0_broker.backends.pkcs11.key import Pkcs11Key
from dom0_broker.backends.pkcs11.uri import Pkcs11Uri
from dom0_broker.backends.software.vpcd import VirtualCard
from dom0_broker.engine import EngineToken
from tests.support.directories import short_directory
from tests.support.pcscd import VirtualReader, pcscd
from tests.support.piv import PIV, SECRETS, YUBIKEY_4_ATR, PivHolder, piv_holder
from tests.support.pki import Identity, KeyKind, Usage, pki, server_identity
from tests.support.processes import running
from tests.support.tools import lacks, tool
from tests.support.waiting import wait_until
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.piv_codes import Slot
from vmtoken.csr import KeyElsewhere
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.signatures import PublicKey

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
P11_KIT_PROXY = LIBRARIES / "p11-kit-proxy.so"
OPENSC = LIBRARIES / "opensc-pkcs11.so"
TPM2 = LIBRARIES / "pkcs11/libtpm2_pkcs11.so"
SPY = LIBRARIES / "pkcs11-spy.so"

PIN, SO_PIN, WRONG_PIN = b"1234", b"567890", b"9999"
LABEL = "lab one"

ALGORITHMS = {
    KeyKind.ECDSA_P256: KeyAlgorithm.ECDSA_P256,
    KeyKind.ECDSA_P384: KeyAlgorithm.ECDSA_P384,
    KeyKind.RSA_2048: KeyAlgorithm.RSA_2048,
    KeyKind.RSA_3072: KeyAlgorithm.RSA_3072,
    KeyKind.ED25519: KeyAlgorithm.ED25519,
}


@dataclass
class Pkcs11Token:
    """A token with a backend that looks into its module."""

    library: Path
    label: str = LABEL
    pin: bytes = PIN
    environment: Mapping[str, str] = field(default_factory=dict)
    backends: list[Pkcs11Backend] = field(default_factory=list)

    @functools.cached_property
    def backend(self) -> Pkcs11Backend:
        return self.new_backend()

    def new_backend(self, *, timeout: float = 25.0, pin_reserve: int = 1) -> Pkcs11Backend:
        """One more, with module processes of its own."""
        backend = Pkcs11Backend(
            [self.library], timeout=timeout, pin_reserve=pin_reserve, environment=self.environment
        )
        self.backends.append(backend)
        return backend

    def locator(self, name: str = "web01") -> str:
        return str(Pkcs11Uri(token=self.label, object=name)).removeprefix("pkcs11:")

    def close(self) -> None:
        for backend in self.backends:
            backend.close()

    def tool(self, program: str, *arguments: str, check: bool = True) -> str:
        """Run a program of OpenSC, GnuTLS or SoftHSM on it; its output, both streams."""
        done = subprocess.run(
            [tool(program), *arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        assert not check or done.returncode == 0, output
        return output


@dataclass
class Pkcs11Holder:
    """A key in a token, with a certificate that the broker keeps."""

    token_: Pkcs11Token
    identity: Identity
    locator: str

    @property
    def kept(self) -> Kept:
        return Kept(self.identity.chain_der, (server_identity().root_der,))

    def key(self) -> Pkcs11Key:
        return self.token_.backend.open_key(self.locator, SecretBytes(self.token_.pin), self.kept)

    def token(self) -> EngineToken:
        return self.token_.backend.open(self.locator, SecretBytes(self.token_.pin), self.kept)


@contextlib.contextmanager
def softhsm(
    directory: Path, labels: Sequence[str] = (LABEL,), *, library: Path = SOFTHSM
) -> Iterator[Pkcs11Token]:
    """SoftHSM with tokens of these labels; all have the same PINs. Gives the first."""
    require(library, SOFTHSM)
    (directory / "tokens").mkdir()
    configuration = directory / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {directory}/tokens\nlog.level = ERROR\n")
    token = Pkcs11Token(library, labels[0], environment={"SOFTHSM2_CONF": str(configuration)})
    for label in labels:
        initialise(token, label)
    try:
        yield token
    finally:
        token.close()


def initialise(token: Pkcs11Token, label: str, pin: bytes = PIN) -> None:
    """One more token of SoftHSM."""
    pins = ("--pin", pin.decode(), "--so-pin", SO_PIN.decode())
    token.tool("softhsm2-util", "--init-token", "--free", "--label", label, *pins)


def personalised(token: Pkcs11Token, kind: KeyKind = KeyKind.ECDSA_P256, name: str = "web01") -> Pkcs11Holder:
    """Make a key in the token and have a certificate issued for it."""
    locator = token.locator(name)
    with contextlib.closing(token.backend.open_issuer(locator, None, SecretBytes(token.pin))) as issuer:
        info = issuer.generate_key(ALGORITHMS[kind])
        public = PublicKey(load_der_public_key(info))
        key = KeyElsewhere.of(info, public.schemes(), _not_asked).stand_in
        identity = pki().intermediate.issue(name, kind, usage=Usage.CLIENT, key=key)
        issuer.install_certificate_chain(identity.chain_der)
    return Pkcs11Holder(token, identity, locator)


@contextlib.contextmanager
def softhsm_holder(kind: KeyKind, library: Path, directory: Path) -> Iterator[Pkcs11Holder]:
    """For the contract suites."""
    with softhsm(directory, library=library) as token:
        yield personalised(token, kind)


@dataclass(frozen=True)
class FilledReader:
    """A virtual reader with a card in it."""

    reader: VirtualReader
    card: VirtualCard


@contextlib.contextmanager
def opensc(directory: Path, *cards: PivHolder) -> Iterator[tuple[Pkcs11Token, list[FilledReader]]]:
    """OpenSC with PIV cards in virtual readers."""
    require(OPENSC)
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(pcscd(directory, readers=len(cards)))
        filled = [
            FilledReader(reader, stack.enter_context(reader.holding(card.connect(), YUBIKEY_4_ATR)))
            for reader, card in zip(daemon.readers, cards, strict=True)
        ]
        environment = {**daemon.environment, "XDG_CACHE_HOME": str(directory)}
        token = Pkcs11Token(OPENSC, pin=SECRETS.pin.reveal(), environment=environment)
        stack.callback(token.close)
        yield token, filled


def opensc_locator(token: Pkcs11Token, identity: Identity) -> str:
    """As 'vmtokenctl token discover' shows it; pcscd needs a moment to see the card."""

    def uris() -> list[str]:
        leaf = identity.chain_der[0]
        return [found.uri for found in token.backend.discover() if found.certificate == leaf]

    wait_until(lambda: bool(uris()))
    return uris()[0].removeprefix("pkcs11:")


@contextlib.contextmanager
def opensc_holder(kind: KeyKind, slot: Slot, directory: Path) -> Iterator[Pkcs11Holder]:
    """For the contract suites."""
    with (
        piv_holder(kind, slot, PIV, directory / "elements") as card,
        opensc(directory, card) as (token, _),
    ):
        yield Pkcs11Holder(token, card.identity, opensc_locator(token, card.identity))


@contextlib.contextmanager
def tpm(directory: Path) -> Iterator[Pkcs11Token]:
    """A TPM 2.0 in software (swtpm) behind a resource manager of its own (tpm2-abrmd) and tpm2-pkcs11.

    A TPM has room for three keys at a time; without a resource manager tpm2-pkcs11 runs out of it.
    """
    require(TPM2)
    (directory / "state").mkdir()
    (directory / "store").mkdir()
    sockets = short_directory()
    bus = f"unix:path={sockets}/bus"
    environment = {
        "DBUS_SESSION_BUS_ADDRESS": bus,
        "TPM2TOOLS_TCTI": "tabrmd:bus_type=session",
        "TPM2_PKCS11_TCTI": "tabrmd:bus_type=session",
        "TPM2_PKCS11_STORE": str(directory / "store"),
        "TPM2_PKCS11_LOG_LEVEL": "0",
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(_swtpm(directory / "state", sockets), directory / "swtpm.log"))
        stack.enter_context(running(_bus(bus), directory / "dbus.log"))
        wait_until(lambda: (sockets / "bus").exists() and (sockets / "tpm").exists())
        manager = running(_resource_manager(sockets), directory / "abrmd.log", environment=environment)
        stack.enter_context(manager)
        token = Pkcs11Token(TPM2, "tpm", environment=environment)
        wait_until(lambda: "ERROR" not in token.tool("tpm2_getrandom", "--hex", "4", check=False))
        token.tool("tpm2_ptool", "init")
        pins = ("--userpin", PIN.decode(), "--sopin", SO_PIN.decode())
        token.tool("tpm2_ptool", "addtoken", "--pid=1", f"--label={token.label}", *pins)
        stack.callback(token.close)
        yield token


def _swtpm(state: Path, sockets: Path) -> list[str]:
    served = ["--server", f"type=unixio,path={sockets}/tpm", "--ctrl", f"type=unixio,path={sockets}/tpm.ctrl"]
    flags = ["--flags", "not-need-init,startup-clear"]
    return [tool("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={state}", *served, *flags]


def _bus(address: str) -> list[str]:
    return [tool("dbus-daemon"), "--session", "--nofork", "--nopidfile", f"--address={address}"]


def _resource_manager(sockets: Path) -> list[str]:
    as_root = ["--allow-root"] if os.geteuid() == 0 else []
    return [tool("tpm2-abrmd"), "--session", f"--tcti=swtpm:path={sockets}/tpm", *as_root]


@contextlib.contextmanager
def tpm_holder(kind: KeyKind, directory: Path) -> Iterator[Pkcs11Holder]:
    """For the contract suites."""
    with tpm(directory) as token:
        yield personalised(token, kind)


def require(*paths: Path) -> None:
    """Libraries that the test needs."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        lacks(", ".join(missing))


def _not_asked(scheme: SignatureScheme, content: bytes) -> bytes:
    raise AssertionError("certificates are signed by a CA")

"""A token whose handshakes OpenSSL runs: TLS 1.3, no resumption; the key block comes from the key log."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

from tests.support.pki import Identity
from vmtoken.errors import ServerCertificateInvalid, TlsHandshakeFailed
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import CipherSuite, ProtocolVersion
from vmtoken.tls.key_block import KeyBlock
from vmtoken.token import HandshakeFailed, HandshakeResult, HandshakeStart, HandshakeStep, ServerIdentity


class OpensslHandshake:
    """One handshake of a client that holds `identity`."""

    def __init__(self, identity: Identity, start: HandshakeStart) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="vmtoken-fake-")
        directory = Path(self._directory.name)
        self._keylog = directory / "keylog"
        files = identity.write(directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(files.chain, files.key)
        context.load_verify_locations(files.anchors)
        context.keylog_filename = str(self._keylog)
        if start.alpn:
            context.set_alpn_protocols(list(start.alpn))
        self._received, self._sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._sent, server_hostname=start.server_name)
        self._server_name = start.server_name

    def step(self, server_records: bytes = b"") -> HandshakeStep:
        self._received.write(server_records)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return HandshakeStep(self._sent.read())
        except ssl.SSLCertVerificationError as error:
            raise HandshakeFailed(
                ServerCertificateInvalid(error.verify_message), self._sent.read()
            ) from error
        except ssl.SSLError as error:
            raise HandshakeFailed(TlsHandshakeFailed(str(error.reason)), self._sent.read()) from error
        return HandshakeStep(self._sent.read(), self._result())

    def close(self) -> None:
        self._directory.cleanup()

    def _result(self) -> HandshakeResult:
        cipher, certificate = self._tls.cipher(), self._tls.getpeercert(binary_form=True)
        assert cipher is not None
        assert certificate is not None
        secrets = dict(line.split()[::2] for line in self._keylog.read_text().splitlines() if line[0] != "#")
        return HandshakeResult(
            key_block=KeyBlock(
                ProtocolVersion.TLS_1_3,
                CipherSuite[cipher[0]],
                SecretBytes(bytes.fromhex(secrets["CLIENT_TRAFFIC_SECRET_0"])),
                SecretBytes(bytes.fromhex(secrets["SERVER_TRAFFIC_SECRET_0"])),
                client_sequence=0,
                server_sequence=0,
            ),
            session=b"openssl",
            server=ServerIdentity(self._server_name, (), certificate),
            resumed=False,
            alpn=self._tls.selected_alpn_protocol(),
            group=None,
            client_certificate_sent=True,
        )

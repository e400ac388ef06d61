"""Files that the operator names: certificates and requests, PEM or DER."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vmtoken.tls.ocsp import UNPARSABLE


class UnusableFile(Exception):
    """A file that cannot be read or is not what was asked for; the message is one sentence."""


def pem(certificate: bytes) -> bytes:
    """A certificate, DER, as PEM."""
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)


def read_certificates(path: Path) -> list[bytes]:
    """Certificates of a file, PEM in its order or one in DER; each as DER. Raises `UnusableFile`."""
    content = _read(path)
    try:
        if b"-----BEGIN" in content:
            certificates = x509.load_pem_x509_certificates(content)
        else:
            certificates = [x509.load_der_x509_certificate(content)]
    except UNPARSABLE as error:
        raise UnusableFile(f"{path}: holds no certificates in PEM or DER.") from error
    return [certificate.public_bytes(Encoding.DER) for certificate in certificates]


_PEM_REQUEST = re.compile(rb"-----BEGIN (?:NEW )?CERTIFICATE REQUEST-----(.*?)-----END", re.DOTALL)


def read_request(path: Path) -> bytes:
    """A PKCS#10 request, PEM or DER, as DER. Raises `UnusableFile`."""
    content = _read(path)
    if b"-----BEGIN" not in content:
        return content
    request = _PEM_REQUEST.search(content)
    if request is None:
        raise UnusableFile(f"{path}: holds no certificate request.")
    try:
        return base64.b64decode(request[1])
    except ValueError as error:
        raise UnusableFile(f"{path}: is not PEM.") from error


def request_pem(request: bytes) -> str:
    """A PKCS#10 request, DER, as PEM."""
    return x509.load_der_x509_csr(request).public_bytes(Encoding.PEM).decode("ascii")


def write_private(path: Path, content: bytes) -> None:
    """Readable by its owner alone from the first moment on; an earlier file is replaced."""
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "wb") as stream:
        stream.write(content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableFile(f"{path}: cannot be read ({error.strerror}).") from error

"""One example of every handshake message and extension, with every field filled in."""

from __future__ import annotations

from vmtoken.tls.codes import (
    CipherSuite,
    EcPointFormat,
    KeyUpdateRequest,
    NamedGroup,
    ProtocolVersion,
    PskKeyExchangeMode,
    SignatureScheme,
)
from vmtoken.tls.extensions import (
    Alpn,
    AlpnSelection,
    CertificateAuthorities,
    Context,
    Cookie,
    EarlyData,
    EcPointFormats,
    ExtendedMasterSecret,
    Extension,
    Extensions,
    KeyShareClientHello,
    KeyShareEntry,
    KeyShareHelloRetryRequest,
    KeyShareServerHello,
    MaxEarlyDataSize,
    OcspStatus,
    OfferedPsks,
    OidFilter,
    OidFilters,
    PostHandshakeAuth,
    PskIdentity,
    PskKeyExchangeModes,
    RawExtension,
    RecordSizeLimit,
    RenegotiationInfo,
    SelectedPsk,
    SelectedVersion,
    ServerName,
    ServerNameAcknowledgement,
    SessionTicket,
    SignatureAlgorithms,
    SignatureAlgorithmsCert,
    StatusRequest,
    StatusRequestAcknowledgement,
    SupportedGroups,
    SupportedVersions,
)
from vmtoken.tls.messages import (
    HELLO_RETRY_REQUEST_RANDOM,
    Certificate12,
    Certificate13,
    CertificateEntry,
    CertificateRequest12,
    CertificateRequest13,
    CertificateStatus,
    CertificateVerify,
    ClientHello,
    ClientKeyExchange,
    EncryptedExtensions,
    EndOfEarlyData,
    Finished,
    HandshakeMessage,
    HelloRequest,
    HelloRetryRequest,
    KeyUpdate,
    NewSessionTicket12,
    NewSessionTicket13,
    ServerHello,
    ServerHelloDone,
    ServerKeyExchange,
)

TLS_1_2, TLS_1_3 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3

_SCHEMES = (SignatureScheme.ECDSA_SECP256R1_SHA256, SignatureScheme.ED25519)
_SHARE = KeyShareEntry(NamedGroup.X25519, bytes(range(32)))
_GREASE = RawExtension(0x1A1A, b"\x00")

EXTENSIONS: dict[Context, tuple[Extension, ...]] = {
    Context.CLIENT_HELLO: (
        _GREASE,
        ServerName("example.com"),
        StatusRequest(b"", b""),
        SupportedGroups((0x2A2A, NamedGroup.X25519)),
        EcPointFormats((EcPointFormat.UNCOMPRESSED,)),
        SignatureAlgorithms(_SCHEMES),
        Alpn((b"h2", b"http/1.1")),
        ExtendedMasterSecret(),
        RecordSizeLimit(16385),
        SessionTicket(b"ticket"),
        EarlyData(),
        SupportedVersions((0x3A3A, TLS_1_3, TLS_1_2)),
        Cookie(b"cookie"),
        PskKeyExchangeModes((PskKeyExchangeMode.PSK_DHE_KE,)),
        CertificateAuthorities((b"\x30\x00",)),
        PostHandshakeAuth(),
        SignatureAlgorithmsCert(_SCHEMES),
        KeyShareClientHello((KeyShareEntry(0x4A4A, b"\x00"), _SHARE)),
        RenegotiationInfo(b""),
        OfferedPsks((PskIdentity(b"identity", 0x01020304),), (bytes(32),)),
    ),
    Context.SERVER_HELLO_12: (
        ServerNameAcknowledgement(),
        StatusRequestAcknowledgement(),
        EcPointFormats((EcPointFormat.UNCOMPRESSED,)),
        AlpnSelection(b"h2"),
        ExtendedMasterSecret(),
        RecordSizeLimit(64),
        SessionTicket(),
        RenegotiationInfo(),
    ),
    Context.SERVER_HELLO_13: (SelectedVersion(TLS_1_3), KeyShareServerHello(_SHARE), SelectedPsk(0)),
    Context.HELLO_RETRY_REQUEST: (
        SelectedVersion(TLS_1_3),
        Cookie(b"cookie"),
        KeyShareHelloRetryRequest(NamedGroup.SECP384R1),
    ),
    Context.ENCRYPTED_EXTENSIONS: (
        ServerNameAcknowledgement(),
        SupportedGroups((NamedGroup.X25519,)),
        AlpnSelection(b"http/1.1"),
        RecordSizeLimit(16385),
        EarlyData(),
    ),
    Context.CERTIFICATE: (OcspStatus(b"\x30\x00"),),
    Context.CERTIFICATE_REQUEST: (
        StatusRequestAcknowledgement(),
        SignatureAlgorithms(_SCHEMES),
        CertificateAuthorities((b"\x30\x00", b"\x30\x01\x00")),
        OidFilters((OidFilter(b"\x55\x1d\x25", b"\x30\x00"),)),
        SignatureAlgorithmsCert(_SCHEMES),
    ),
    Context.NEW_SESSION_TICKET: (MaxEarlyDataSize(16384), _GREASE),
}


def extensions(context: Context) -> Extensions:
    """Every extension that the message may hold."""
    return Extensions(EXTENSIONS[context])


def _server_hello(context: Context) -> dict[str, object]:
    return {
        "random": bytes(range(32)),
        "legacy_session_id_echo": bytes(32),
        "cipher_suite": CipherSuite.TLS_AES_128_GCM_SHA256,
        "extensions": extensions(context),
    }


MESSAGES: tuple[tuple[ProtocolVersion, HandshakeMessage], ...] = (
    (TLS_1_2, HelloRequest()),
    (
        TLS_1_3,
        ClientHello(
            random=bytes(range(32)),
            legacy_session_id=bytes(32),
            cipher_suites=(0x0A0A, CipherSuite.TLS_AES_128_GCM_SHA256),
            extensions=extensions(Context.CLIENT_HELLO),
        ),
    ),
    (TLS_1_2, ClientHello(bytes(32), b"", (CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,))),
    (TLS_1_3, ServerHello(**_server_hello(Context.SERVER_HELLO_13))),  # type: ignore[arg-type]
    (TLS_1_2, ServerHello(**_server_hello(Context.SERVER_HELLO_12))),  # type: ignore[arg-type]
    (TLS_1_2, ServerHello(bytes(32), b"", CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)),
    (
        TLS_1_3,
        HelloRetryRequest(
            **_server_hello(Context.HELLO_RETRY_REQUEST) | {"random": HELLO_RETRY_REQUEST_RANDOM}  # type: ignore[arg-type]
        ),
    ),
    (TLS_1_3, EncryptedExtensions(extensions(Context.ENCRYPTED_EXTENSIONS))),
    (TLS_1_3, EncryptedExtensions(Extensions())),
    (
        TLS_1_3,
        Certificate13(
            b"", (CertificateEntry(b"leaf", extensions(Context.CERTIFICATE)), CertificateEntry(b"ca"))
        ),
    ),
    (TLS_1_3, Certificate13(b"context", ())),
    (TLS_1_2, Certificate12((b"leaf", b"ca"))),
    (TLS_1_2, Certificate12(())),
    (TLS_1_3, CertificateRequest13(b"context", extensions(Context.CERTIFICATE_REQUEST))),
    (TLS_1_2, CertificateRequest12((64, 1), _SCHEMES, (b"\x30\x00",))),
    (TLS_1_2, CertificateRequest12((64,), _SCHEMES)),
    (TLS_1_2, CertificateStatus(b"\x30\x00")),
    (
        TLS_1_2,
        ServerKeyExchange(NamedGroup.X25519, bytes(32), SignatureScheme.RSA_PSS_RSAE_SHA256, b"signature"),
    ),
    (TLS_1_2, ServerHelloDone()),
    (TLS_1_2, ClientKeyExchange(bytes(32))),
    (TLS_1_2, CertificateVerify(SignatureScheme.ED25519, b"signature")),
    (TLS_1_3, CertificateVerify(SignatureScheme.ED25519, b"signature")),
    (TLS_1_2, Finished(bytes(12))),
    (TLS_1_3, Finished(bytes(32))),
    (
        TLS_1_3,
        NewSessionTicket13(7200, 0x01020304, b"\x00\x01", b"ticket", extensions(Context.NEW_SESSION_TICKET)),
    ),
    (TLS_1_2, NewSessionTicket12(7200, b"ticket")),
    (TLS_1_2, NewSessionTicket12(0, b"")),
    (TLS_1_3, KeyUpdate(KeyUpdateRequest.UPDATE_REQUESTED)),
    (TLS_1_3, EndOfEarlyData()),
)
"""What the version knows, in both directions."""

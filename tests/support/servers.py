"""Real TLS servers, each asking for a client certificate, on a free port of the loopback interface.

    with PROGRAMS["nginx"].serve(directory, ServerOptions(groups=("secp384r1",))) as server:
        talk = server.talk(stream)          # the stream of any client that connected to server.port
        assert talk.seen().resumed
        talk.echo(data)

`Program.lacks` says what a server cannot do, and why. Servers that we write ourselves
(tests/interop/programs) take their options as one JSON argument, print `READY port`, send what
they saw of the session as a line of JSON, and echo everything after that.
"""

from __future__ import annotations

import enum
import fcntl
import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.conversations import Conversation, GnutlsEcho, Greeting, Http, ReversedLines, Stream
from tests.support.pki import SERVER_NAME, IdentityFiles, KeyKind, server_identity
from tests.support.processes import Child, ChildFailed, running
from tests.support.tools import tool

ROOT = Path(__file__).parents[2]
OWN_PROGRAMS = ROOT / "tests/interop/programs"
TLS_1_2, TLS_1_3 = _VERSIONS = ("1.2", "1.3")


class Feature(enum.Enum):
    """What not every server can do."""

    X25519MLKEM768 = "key exchange with X25519MLKEM768"
    ML_DSA = "ML-DSA certificates"
    STAPLES = "sends an OCSP response that it is given"
    STAPLES_REVOCATION = "sends an OCSP response that says revoked"
    SMALL_RECORDS = "sends records of a chosen size"


@dataclass(frozen=True)
class ServerOptions:
    """How a server is set up."""

    kind: KeyKind = KeyKind.ECDSA_P256
    minimum: str = TLS_1_2
    maximum: str = TLS_1_3
    groups: tuple[str, ...] = ()
    """IANA names; empty means the server's own choice."""

    alpn: tuple[str, ...] = ()
    tickets: bool = True
    keylog: bool = False
    ocsp_response: bytes | None = field(default=None, repr=False)
    record_size: int | None = None
    """Longest record that the server sends, in octets of plaintext."""

    arguments: tuple[str, ...] = ()
    """More options as the program spells them."""

    @property
    def versions(self) -> tuple[str, ...]:
        return tuple(version for version in _VERSIONS if self.minimum <= version <= self.maximum)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    port: int
    child: Child
    keylog: Path
    _conversation: Callable[[Stream, Child], Conversation]

    @property
    def server_name(self) -> str:
        """What its certificate proves."""
        return SERVER_NAME

    def talk(self, stream: Stream) -> Conversation:
        """Begin to talk as this server's clients do."""
        return self._conversation(stream, self.child)


Start = Callable[[Path, IdentityFiles, ServerOptions], AbstractContextManager[tuple[Child, int]]]
"""Runs a server and says on which port."""


@dataclass(frozen=True)
class Program:
    """A TLS server as the matrix sees it."""

    name: str
    _start: Start
    _conversation: Callable[[Stream, Child], Conversation]
    lacks: Mapping[Feature, str] = field(default_factory=dict)
    """What it cannot do, and why."""

    @contextmanager
    def serve(
        self, directory: Path, options: ServerOptions | None = None, files: IdentityFiles | None = None
    ) -> Iterator[Server]:
        """Run it as long as the block lasts; everything it writes goes below `directory`.

        `files` are of another server than the usual one; its anchors are those of clients.
        """
        options = options or ServerOptions()
        directory.mkdir(parents=True, exist_ok=True)
        files = files or server_identity(options.kind).write(directory, "server")
        with self._start(directory, files, options) as (child, port):
            yield Server(port, child, _keylog_path(directory), self._conversation)


# OpenSSL, GnuTLS, nginx -----------------------------------------------------------------------------


@contextmanager
def _openssl(
    directory: Path, files: IdentityFiles, options: ServerOptions, mode: Sequence[str] = ("-rev",)
) -> Iterator[tuple[Child, int]]:
    command = [tool("openssl"), "s_server", "-accept", "127.0.0.1:0", *mode, *_openssl_identity(files)]
    command += _openssl_versions(options)
    if options.groups:
        command += ["-groups", ":".join(_OPENSSL_GROUPS.get(group, group) for group in options.groups)]
    if options.alpn:
        command += ["-alpn", ",".join(options.alpn)]
    if not options.tickets:
        command += ["-no_ticket", "-num_tickets", "0"]
    if options.keylog:
        command += ["-keylogfile", str(_keylog_path(directory))]
    if options.record_size:
        command += ["-max_send_frag", str(options.record_size)]
    if options.ocsp_response is not None:
        command += ["-status_file", str(_ocsp_file(directory, options.ocsp_response))]
    with running([*command, *options.arguments], directory / "openssl.log") as child:
        yield child, int(child.wait_for(r"ACCEPT 127\.0\.0\.1:(\d+)")[1])


def _openssl_identity(files: IdentityFiles) -> list[str]:
    ours = ["-cert", str(files.chain), "-cert_chain", str(files.chain), "-key", str(files.key)]
    return [*ours, "-CAfile", str(files.anchors), "-Verify", "3", "-verify_return_error"]


def _openssl_versions(options: ServerOptions) -> list[str]:
    return [f"-no_tls{version.replace('.', '_')}" for version in _VERSIONS if version not in options.versions]


_OPENSSL_GROUPS = {"secp256r1": "P-256", "secp384r1": "P-384"}


@contextmanager
def _gnutls(directory: Path, files: IdentityFiles, options: ServerOptions) -> Iterator[tuple[Child, int]]:
    command = [tool("gnutls-serv"), "--echo", "--priority", _gnutls_priority(options)]
    command += ["--x509certfile", str(files.chain), "--x509keyfile", str(files.key)]
    command += ["--x509cafile", str(files.anchors), "--require-client-cert", "--verify-client-cert"]
    command += [f"--alpn={name}" for name in options.alpn]
    if not options.tickets:
        command += ["--noticket", "--nodb"]
    if options.record_size:
        command += ["--recordsize", str(options.record_size)]
    if options.ocsp_response is not None:
        command += ["--ocsp-response", str(_ocsp_file(directory, options.ocsp_response))]
    environment = {"SSLKEYLOGFILE": str(_keylog_path(directory))} if options.keylog else {}
    command += options.arguments

    def run(port: int) -> AbstractContextManager[Child]:
        return running([*command, "--port", str(port)], directory / "gnutls.log", environment=environment)

    with _on_a_free_port(run, r"IPv4 0\.0\.0\.0 port \d+\.\.\.done") as started:
        yield started


def _gnutls_priority(options: ServerOptions) -> str:
    words = ["NORMAL", "-VERS-ALL", *(f"+VERS-TLS{version}" for version in options.versions)]
    if options.groups:
        words += ["-GROUP-ALL", *(f"+GROUP-{group.upper()}" for group in options.groups)]
    return ":".join(words)


@contextmanager
def _nginx(directory: Path, files: IdentityFiles, options: ServerOptions) -> Iterator[tuple[Child, int]]:
    configuration = directory / "nginx.conf"
    (directory / "bulk").mkdir(exist_ok=True)

    def run(port: int) -> AbstractContextManager[Child]:
        configuration.write_text(_nginx_configuration(directory, files, options, port))
        command = [tool("nginx"), "-p", directory, "-e", "stderr", "-c", configuration]
        return running(command, directory / "nginx.log")

    with _on_a_free_port(run, "getrlimit") as started:
        yield started


def _nginx_configuration(directory: Path, files: IdentityFiles, options: ServerOptions, port: int) -> str:
    lines = [f"ssl_ecdh_curve {':'.join(options.groups)};" if options.groups else ""]
    if options.ocsp_response is not None:
        lines.append("ssl_stapling on;")
        lines.append(f"ssl_stapling_file {_ocsp_file(directory, options.ocsp_response)};")
    lines.append("ssl_session_cache shared:tls:1m;" if options.tickets else "ssl_session_cache off;")
    return _NGINX_CONFIGURATION.format(
        directory=directory,
        port=port,
        files=files,
        versions=" ".join(f"TLSv{version}" for version in options.versions),
        tickets="on" if options.tickets else "off",
        more="\n    ".join([*lines, *options.arguments]),
    )


_NGINX_CONFIGURATION = """\
daemon off;
master_process off;
error_log stderr notice;
pid {directory}/nginx.pid;
worker_rlimit_nofile 4096;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_max_body_size 1g;
  keepalive_timeout 300s;
  keepalive_requests 1000000;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {files.chain};
    ssl_certificate_key {files.key};
    ssl_client_certificate {files.anchors};
    ssl_verify_client on;
    ssl_verify_depth 3;
    ssl_protocols {versions};
    ssl_session_tickets {tickets};
    {more}
    location = /seen {{
      default_type application/json;
      return 200 '{{"version": "$ssl_protocol", "resumed": "$ssl_session_reused",
        "client": "$ssl_client_s_dn", "alpn": "$ssl_alpn_protocol", "server_name": "$ssl_server_name"}}';
    }}
    location = /small {{ root {directory}; }}
    location /bulk/ {{
      root {directory};
      dav_methods PUT;
    }}
  }}
}}
"""


# Our own ----------------------------------------------------------------------------------------------


def _own(
    command: Callable[[], Sequence[str | Path]],
) -> Callable[..., AbstractContextManager[tuple[Child, int]]]:
    @contextmanager
    def start(directory: Path, files: IdentityFiles, options: ServerOptions) -> Iterator[tuple[Child, int]]:
        argument = {
            "certificate": str(files.chain),
            "key": str(files.key),
            "trust": str(files.anchors),
            "minimum": options.minimum,
            "maximum": options.maximum,
            "groups": options.groups,
            "alpn": options.alpn,
            "tickets": options.tickets,
            "keylog": str(_keylog_path(directory)) if options.keylog else "",
        }
        with running([*command(), json.dumps(argument)], directory / "server.log") as child:
            yield child, int(child.wait_for(r"^READY (\d+)")[1])

    return start


def _go_server() -> list[Path]:
    """Build it when it is missing or old; the first time takes some 30 s."""
    source, binary = OWN_PROGRAMS / "go", ROOT / "build/interop/go-server"
    binary.parent.mkdir(parents=True, exist_ok=True)
    with (binary.parent / "go-server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists() or binary.stat().st_mtime < (source / "main.go").stat().st_mtime:
            _build_go(source, binary)
    return [binary]


def _build_go(source: Path, binary: Path) -> None:
    offline = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    cache = {"GOCACHE": str(binary.parent / "go-cache"), "GOPATH": str(binary.parent / "go")}
    subprocess.run(
        [tool("go"), "build", "-o", binary, "."],
        cwd=source,
        env={**os.environ, **offline, **cache},
        check=True,
    )


# What several need ------------------------------------------------------------------------------------


@contextmanager
def _on_a_free_port(
    run: Callable[[int], AbstractContextManager[Child]], ready: str, attempts: int = 3
) -> Iterator[tuple[Child, int]]:
    """For a program that cannot choose a port itself: somebody may take it before, so try again."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with run(port) as child:
        try:
            child.wait_for(ready)
        except ChildFailed:
            if attempts == 1:
                raise
        else:
            yield child, port
            return
    with _on_a_free_port(run, ready, attempts - 1) as started:
        yield started


def _keylog_path(directory: Path) -> Path:
    return directory / "keylog.txt"


def _ocsp_file(directory: Path, response: bytes) -> Path:
    path = directory / "ocsp.der"
    path.write_bytes(response)
    return path


_OPENSSL_3_0 = "built on OpenSSL 3.0, which has no post-quantum algorithms"
_OWN_LACKS = {
    Feature.STAPLES: "our program has no option for it",
    Feature.STAPLES_REVOCATION: "our program has no option for it",
    Feature.SMALL_RECORDS: "our program has no option for it",
}

PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "openssl",
            _openssl,
            ReversedLines,
            {
                Feature.X25519MLKEM768: _OPENSSL_3_0,
                Feature.ML_DSA: _OPENSSL_3_0,
            },
        ),
        Program(
            "gnutls",
            _gnutls,
            GnutlsEcho,
            {
                Feature.X25519MLKEM768: "GnuTLS has it from 3.8.8 on",
                Feature.ML_DSA: "GnuTLS has it from 3.8.8 on",
                Feature.STAPLES_REVOCATION: "it refuses to start with one",
            },
        ),
        Program(
            "nginx",
            _nginx,
            Http,
            {
                Feature.X25519MLKEM768: _OPENSSL_3_0,
                Feature.ML_DSA: _OPENSSL_3_0,
                Feature.SMALL_RECORDS: "ssl_buffer_size limits the answer's records only",
            },
        ),
        Program(
            "python-ssl",
            _own(lambda: [sys.executable, OWN_PROGRAMS / "ssl_server.py"]),
            Greeting,
            {**_OWN_LACKS, Feature.X25519MLKEM768: _OPENSSL_3_0, Feature.ML_DSA: _OPENSSL_3_0},
        ),
        Program(
            "pyopenssl",
            _own(lambda: [sys.executable, OWN_PROGRAMS / "pyopenssl_server.py"]),
            Greeting,
            _OWN_LACKS,
        ),
        Program(
            "go", _own(_go_server), Greeting, {**_OWN_LACKS, Feature.ML_DSA: "not in crypto/tls of Go 1.27"}
        ),
        Program(
            "node",
            _own(lambda: [tool("node"), OWN_PROGRAMS / "node_server.js"]),
            Greeting,
            {
                **_OWN_LACKS,
                Feature.X25519MLKEM768: "Node 20 is " + _OPENSSL_3_0,
                Feature.ML_DSA: "Node 20 is " + _OPENSSL_3_0,
            },
        ),
    )
}

OPENSSL_AT_THE_KEYBOARD = Program("openssl", functools.partial(_openssl, mode=()), ReversedLines)
"""What is typed goes to the client, but a `k`, `K`, `r` or `R` alone is a command (openssl-s_server(1))."""

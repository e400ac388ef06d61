"""A small HTTPS server that demands a client certificate, for machines without the openssl program.

python https_server.py PORT CERTIFICATE KEY CA
"""

from __future__ import annotations

import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Greeting(BaseHTTPRequestHandler):
    """Answers every GET with the subject of the client's certificate."""

    connection: ssl.SSLSocket

    def do_GET(self) -> None:  # the base class's name
        """Greet."""
        certificate = self.connection.getpeercert() or {}
        body = f"hello {certificate.get('subject')}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until killed."""
    port, certificate, key, ca = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Greeting)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()

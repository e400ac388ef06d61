"""nginx in dom0, which says on a page whom it sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xenlab import Machine

from tests.xen.links import DOM0, HOME

PORT = 4434

_CONFIGURATION = f"""\
daemon off;
master_process off;
error_log stderr notice;
pid {HOME}/nginx.pid;
events {{ worker_connections 512; }}
http {{
  access_log off;
  keepalive_timeout 3600s;
  keepalive_requests 1000000;
  server {{
    listen {DOM0}:{PORT} ssl;
    ssl_certificate {HOME}/ca/server.pem;
    ssl_certificate_key {HOME}/ca/server.key;
    ssl_client_certificate {HOME}/ca/ca.pem;
    ssl_verify_client on;
    ssl_verify_depth 2;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_ciphers ECDHE-ECDSA-AES256-GCM-SHA384;
    ssl_session_cache shared:tls:1m;
    location = /seen {{
      default_type application/json;
      return 200
        '{{"version": "$ssl_protocol", "resumed": "$ssl_session_reused", "client": "$ssl_client_s_dn"}}';
    }}
  }}
}}
"""


@contextmanager
def nginx(dom0: Machine) -> Iterator[None]:
    """With the certificate of the stage's server, as long as the block lasts."""
    dom0.write(f"{HOME}/nginx.conf", _CONFIGURATION)
    with dom0.start(["nginx", "-p", HOME, "-e", "stderr", "-c", f"{HOME}/nginx.conf"]) as process:
        dom0.wait_until(f"test -s {HOME}/nginx.pid || ! kill -0 {process.pid}")
        assert not process.has_ended, process.output
        yield

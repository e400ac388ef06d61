"""EAP (RFC 3748) and EAP-TLS (RFC 5216, RFC 9190): packets, flags, fragments."""

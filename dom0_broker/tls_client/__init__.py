"""TLS handshakes on the host's side, whoever holds the key: the software element, or the broker's engine."""

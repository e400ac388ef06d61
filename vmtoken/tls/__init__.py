"""A sans-IO TLS client: TLS 1.3 (RFC 8446) and TLS 1.2 (RFC 5246) with ECDHE and AEAD."""

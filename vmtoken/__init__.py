"""vmtoken: TLS client certificates for virtual machines, with the private key in a secure element."""

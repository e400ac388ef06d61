"""The agent in a guest: it relays handshakes to the broker and protects the records itself."""

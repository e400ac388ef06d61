"""The broker in dom0: it owns the tokens and decides which VM may use them for what."""

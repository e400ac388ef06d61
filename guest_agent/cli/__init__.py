"""vmtoken: TLS sessions with the identity of this machine, from the command line."""

from guest_agent.cli.main import main

__all__ = ["main"]

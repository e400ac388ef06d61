"""A device process for tests: what a library could do, good and bad."""

from __future__ import annotations

import os
import sys
import threading
import time

from dom0_broker.backends.child import in_background, outlet, serve
from vmtoken.errors import PinRejected
from vmtoken.secret import SecretBytes


def main() -> None:
    events = outlet()
    released = threading.Event()

    def hang() -> str:
        released.wait(60)
        events.emit("came back")
        return "too late"

    def reject(pin: SecretBytes) -> None:
        raise PinRejected(f"A PIN of {len(pin)} octets is wrong.", retries_left=2)

    serve(
        events,
        {
            "echo": lambda *values: list(values),
            "reverse": lambda pin: SecretBytes(pin.reveal()[::-1]),
            "sleep": time.sleep,
            "hang": hang,
            "release": released.set,
            "reject": reject,
            "break": lambda: {}["nothing"],
            "lose a thread": lambda: in_background(lambda: {}["nothing"], "lost"),
            "crash": lambda: os._exit(7),
            "lane": lambda: threading.current_thread().name,
            "environment": lambda: sorted(os.environ),
            "arguments": lambda: sys.argv[1:],
        },
    )


if __name__ == "__main__":
    main()

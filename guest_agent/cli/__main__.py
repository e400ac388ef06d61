"""`python -m guest_agent.cli` is `vmtoken`."""

import sys

from guest_agent.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

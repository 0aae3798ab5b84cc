"""`python -m infra COMMAND STAGE`; see `cli`."""

import sys

from infra.cli import main

if __name__ == "__main__":
    sys.exit(main())

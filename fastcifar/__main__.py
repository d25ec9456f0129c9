"""`python -m fastcifar`."""

import sys

from fastcifar.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

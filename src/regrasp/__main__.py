"""`python -m regrasp`, for an interpreter whose scripts are not on the path."""

import sys

from regrasp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

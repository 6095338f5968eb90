"""The reference's `train.py`, with its arguments: the same as `regrasp train`."""

from __future__ import annotations

import sys

from regrasp.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

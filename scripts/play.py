"""The reference's `play.py`, with its arguments: the same as `regrasp play`."""

from __future__ import annotations

import sys

from regrasp.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["play", *sys.argv[1:]]))

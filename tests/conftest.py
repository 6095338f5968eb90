"""What holds for all tests.

One thread per process: pytest-xdist runs several, and numbers then do not depend on the machine's cores.
"""

from __future__ import annotations

import gc
import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402  (reads the variables above when it is imported)

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What the imports made stays, and need not be looked through by every garbage collection of the tests."""
    gc.collect()
    gc.freeze()

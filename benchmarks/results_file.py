"""Where benchmarks keep their tables, and what they say about the machine."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import regrasp
from regrasp.device import available_cores

RESULTS = Path(__file__).parent / "results"


def revision() -> str:
    """The commit of this folder, empty where there is no git."""
    if shutil.which("git") is None:
        return ""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def save(name: str, command: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Print the rows as a table and write `results/<name>.json` with command, commit, machine and `more`."""
    document = {
        "command": command,
        "commit": revision(),
        "versions": {"regrasp": regrasp.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": f"{platform.machine()}, {available_cores()} cores, {torch.get_num_threads()} torch threads",
        "rows": rows,
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    columns = list(rows[0])
    widths = [max(len(column), *(len(_cell(row[column])) for row in rows)) for column in columns]
    for cells in (columns, *([_cell(row[column]) for column in columns] for row in rows)):
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

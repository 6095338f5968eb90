"""Damaged and hostile files: how many end in a traceback, and how many are read wrongly without a word.

    python benchmarks/fuzz_files.py

Model folders, runs, datasets, recordings, RLinf's weights, checkpoints and configurations are made at toy size, altered
one file and one place at a time by a seeded generator, and read by the functions behind `play`, `report`, `sft`,
`convert`, `train --resume_dir`, `train --dry_run` and `play --rl_model_path`. Each input ends in one of four ways: it
is refused (an error that names what is wrong), it is read as if nothing had been altered (which is what harmless
changes give), it ends in a traceback, or it is silently read as something else. The last two are failures.

Where a folder has checksums, every change of what is read has to be found. Where it has none, one valid value in place
of another is no damage that could be: there, only what is of the wrong kind (a text for a number, a key that nobody
knows, a negative size) has to be refused.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import multiprocessing
import random
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rich
import torch
import yaml

from fuzz_inputs import SURFACES, Surface
from regrasp.errors import RegraspError
from results_file import save

INPUTS = 2400
_WRONG: dict[type, list[Any]] = {
    bool: ["yes", 3, [], {}, 0.5],
    int: ["7", 0.5, -7, [1], {}, True, 2**70, 1e300],
    float: ["0.5", [0.5], {}, True, [], "nan"],
    str: [7, ["a"], {}, True, 0.5],
    list: [{}, "text", 7, True, [[{}]]],
    dict: [[], "text", 7, True],
    type(None): [[[{}]], {"": {}}],
}
"""Values that no key can have whose value is of the type."""


class Heard(logging.Handler):
    """What the package has warned of since it was last cleared."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.texts.append(record.getMessage())


@dataclass(frozen=True)
class Alteration:
    """What was done to which file."""

    file: str
    what: str
    wrong_kind: bool
    """The file as it is now holds something that no such file may."""


def alter(folder: Path, rng: random.Random, files: str) -> Alteration:
    """Alter one file of a folder, one that fits the pattern `files`, in one place."""
    file = rng.choice(sorted(path for path in folder.rglob(files) if path.is_file()))
    name = file.relative_to(folder).as_posix()
    documents = {".json": json.loads, ".jsonl": _load_lines, ".yaml": yaml.safe_load}
    if file.suffix in documents and rng.random() < 0.7:
        content = documents[file.suffix](file.read_text())
        what = _alter_value(content, rng)
        lines = "\n".join(json.dumps(line) for line in content) if file.suffix == ".jsonl" else ""
        file.write_text(lines or json.dumps(content, indent=1))  # JSON is YAML
        return Alteration(name, what, wrong_kind=True)
    if file.suffix == ".hdf5" and rng.random() < 0.6:
        return Alteration(name, _alter_recording(file, rng), wrong_kind=True)
    return Alteration(name, _alter_bytes(file, rng), wrong_kind=False)


def _load_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any, tuple[Any, ...]]]:
    """Every value inside a document, with what holds it and its key there."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield node, key, (*path, key)
        yield from _places(child, (*path, key))


def _alter_value(content: Any, rng: random.Random) -> str:
    # A value is chosen by its key first, so that long lists of numbers do not take all turns.
    by_keys: dict[tuple[Any, ...], list[tuple[Any, Any]]] = {}
    for holder, key, path in _places(content):
        by_keys.setdefault(tuple(step for step in path if isinstance(step, str)), []).append((holder, key))
    path = rng.choice(list(by_keys))
    holder, key = rng.choice(by_keys[path])
    where = f"{'.'.join(map(str, path))}[{key!r}]"
    wrong = copy.deepcopy(rng.choice(_WRONG[type(holder[key])]))
    holder[key] = wrong
    return f"{where} = {wrong!r}"


def _alter_recording(file: Path, rng: random.Random) -> str:
    """Give an attribute, or an array that is used, a value that no recording has."""
    with h5py.File(file, "a") as content:
        episode = content["data"][rng.choice(sorted(content["data"]))]
        if rng.random() < 0.4:
            places = [(content, "format_version"), (content["data"], "env_args")]
            holder, key = rng.choice([*places, (episode, "num_samples"), (episode, "success")])
            values = ["x", [1, 2, 3], np.nan, -1, b"\xff", h5py.Empty("f4")]
            number = rng.choice((0, 1, 2, 4, 5) if key == "format_version" else range(len(values)))
            holder.attrs[key] = values[number]
            return f"{holder.name}.attrs[{key!r}] = {values[number]!r}"
        path = rng.choice(["actions", "obs/eef_pos", "obs/eef_quat", "obs/gripper_pos", "obs/table_cam"])
        array = episode[path][()]
        del episode[path]
        kind = rng.choice(("gone", "text", "nan", "short", "scalar", "group", "soft", "external", "circle", "empty"))
        match kind:
            case "text":
                episode[path] = np.array([b"x"] * len(array))
            case "nan":
                episode[path] = np.full(array.shape, np.nan, np.float32)
            case "short":
                episode[path] = array[: len(array) // 2]
            case "scalar":
                episode[path] = array.reshape(-1)[0]
            case "group":
                episode.create_group(path)
            case "soft":
                episode[path] = h5py.SoftLink("/nowhere")
            case "external":
                episode[path] = h5py.ExternalLink("/etc/passwd", "/")
            case "circle":
                episode[path] = h5py.SoftLink(episode.name)
            case "empty":
                episode.create_dataset(path, data=h5py.Empty("f4"))
    return f"{episode.name}/{path}: {kind}"


def _alter_bytes(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    size = len(data)
    kind = rng.choice(("flip", "flip", "flip", "cut", "zeros", "longer", "empty", "gone", "folder", "noise", "deep"))
    at = rng.randrange(size) if size else 0
    match kind:
        case "flip" if size:
            data[at] ^= 1 << rng.randrange(8)
        case "cut":
            del data[at:]
        case "zeros":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        case "longer":
            data += rng.randbytes(16)
        case "noise":
            data[at : at + 16] = rng.randbytes(16)
        case "deep":
            data = bytearray(b"[" * 100_000)
        case "empty":
            data.clear()
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind != "gone":
        file.write_bytes(data)
    return f"{kind} at byte {at} of {size}"


def outcome(surface: Surface, folder: Path, expected: str, change: Alteration, heard: Heard) -> tuple[str, str]:
    """How an altered input ends, and what was said."""
    heard.texts.clear()
    try:
        found = surface.read(folder)
    except RegraspError as error:
        return ("refused" if error.exit_code == 2 else "wrong exit code"), str(error)
    except Exception:
        return "traceback", traceback.format_exc(limit=-6)
    must_be_found = change.wrong_kind or surface.has_checksums
    if found == expected or heard.texts or not must_be_found:
        return "harmless", ""
    return "silent", ""


def fuzz(number: int, seed: int, inputs: int) -> tuple[dict[str, Any], list[str]]:
    """Counts of one surface, and its failures in full."""
    surface = SURFACES[number]
    torch.set_num_threads(1)
    rich.get_console().quiet = True
    heard, counts, failures = Heard(), Counter[str](), []
    logger = logging.getLogger("regrasp")
    logger.addHandler(heard)
    logger.propagate = False
    with tempfile.TemporaryDirectory() as name:
        original = Path(name, "original")
        surface.make(original)
        expected = surface.read(original)
        assert surface.read(original) == expected, f"{surface.name}: reading is not deterministic"
        for index in range(max(1, round(inputs * surface.share))):
            rng = random.Random(f"{seed} {surface.name} {index}")
            folder = original.with_name(f"altered_{index}")
            shutil.copytree(original, folder)
            change = alter(folder, rng, surface.files)
            surface.after(folder)
            how, text = outcome(surface, folder, expected, change, heard)
            counts[how] += 1
            if how not in ("refused", "harmless"):
                failures.append(f"== {surface.name} {index}: {how}: {change.file}: {change.what}\n{text}")
            shutil.rmtree(folder)
    ends = ("refused", "harmless", "traceback", "silent", "wrong exit code")
    row = {"surface": surface.name, "seed": seed, "inputs": counts.total(), **{end: counts[end] for end in ends}}
    logger.removeHandler(heard)
    return row, failures


def main() -> None:
    """Fuzz, and save counts by surface."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--inputs", type=int, default=INPUTS, help="of each seed, about")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with a surface")
    parser.add_argument("--only", nargs="*", default=[], help="names of surfaces; nothing is saved")
    args = parser.parse_args()
    numbers = [n for n, surface in enumerate(SURFACES) if not args.only or surface.name in args.only]
    rows = []
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        work = [(number, seed) for seed in args.seeds for number in numbers]
        for row, failures in pool.map(fuzz, *zip(*work, strict=True), repeat(args.inputs)):
            rows.append(row)
            print(row, *failures, sep="\n", flush=True)
    if not args.only:
        seeds = " ".join(map(str, args.seeds))
        save("fuzz_files", f"python benchmarks/fuzz_files.py --seeds {seeds} --inputs {args.inputs}", rows)


if __name__ == "__main__":
    main()

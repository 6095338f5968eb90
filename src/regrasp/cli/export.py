"""`regrasp export`: a fine-tuned model as it is published; one without such a layout, as a model folder."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from regrasp.cli.experiment import MODEL_KEY, model_of_run
from regrasp.config.compose import as_override
from regrasp.folders import require_writable

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "--model_path",
        metavar="FOLDER",
        required=True,
        help="base model: a Hugging Face style folder, or org/name[@revision] of the Hugging Face hub",
    )
    parser.add_argument(
        "--rl_model_path",
        metavar="FOLDER",
        type=Path,
        help="global_step_N folder, or full_weights.pt, of the training; of a run's folder, the newest",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="new folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the written weights; default: as they are")
    parser.add_argument(
        "--max_shard_size", metavar="SIZE", type=size, default="5GB", help="largest weight file, such as 500MB or 2GiB"
    )
    parser.add_argument(
        "--with_value_head", action="store_true", help="keep the value head, to continue RL from the exported model"
    )

    parser.add_argument(
        "--config_name",
        metavar="NAME",
        help="experiment that the folder is to keep; default: the one that the policy was trained with",
    )


def size(text: str) -> int:
    """Bytes of a size with its unit.

    Raises:
        ArgumentTypeError: No positive number with a known unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", text.strip().upper())
    if not match or not (num_bytes := int(float(match[1]) * _UNITS[match[2]])):
        raise argparse.ArgumentTypeError(f"invalid size value: {text!r} (a number and its unit, such as 500MB or 2GiB)")
    return num_bytes


def run(args: argparse.Namespace) -> int:
    """Write the folder."""
    require_writable(args.output, key="--output")
    import torch

    from regrasp.checkpoint.read import checkpoint_of
    from regrasp.hub import fetch
    from regrasp.models.config import ExportOptions
    from regrasp.runner.evaluated import evaluation_at
    from regrasp.runner.run_folder import newest_of_run
    from regrasp.stages.export import export

    base = model_of_run(fetch(args.model_path, "model", key="--model_path") or Path(args.model_path))
    trained = args.rl_model_path and newest_of_run(args.rl_model_path)
    checkpoint = checkpoint_of(trained or base.parent)
    config = None
    if args.config_name is not None:
        from regrasp.experiment.load import load_config

        override = as_override(MODEL_KEY, str(base))
        loaded = args.loaded = load_config(args.config_name, [override], flags={override: "--model_path"}, trains=False)
        config = loaded.config
    folder = export(
        ExportOptions(
            model_path=base,
            output=args.output,
            rl_model_path=trained,
            evaluation=checkpoint and evaluation_at(checkpoint),
            dtype=args.dtype and getattr(torch, args.dtype),
            max_shard_bytes=args.max_shard_size,
            with_value_head=args.with_value_head,
        ),
        config,
    )
    print(f"Model: {folder.resolve()}")
    return 0

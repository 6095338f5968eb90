"""`regrasp push`: a model or a dataset, with its card, to the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from regrasp.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="model, dataset, checkpoint or run (its newest model)"
    )
    parser.add_argument("repo", metavar="REPO", help="org/name, or org/name@branch")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", metavar="TEXT", default="Upload by regrasp", help="of the commit")
    parser.add_argument(
        "--evaluation",
        metavar="RUN",
        type=Path,
        help="folder of a `regrasp play` whose result the model card is to show",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the card and the files, and send nothing")


def run(args: argparse.Namespace) -> int:
    """Upload."""
    from regrasp.hub import HubName, repo_name

    name: HubName | None = repo_name(args.repo)
    if name is None:
        raise UserError(
            "Not the name of a repository", key="REPO", value=args.repo, expected="org/name, or org/name@branch"
        )
    from regrasp.logging.text import byte_size, counted
    from regrasp.stages.push import prepare, push

    upload = prepare(args.folder, name.repo, args.evaluation)
    what = f"{upload.kind} {args.folder}: {counted(len(upload.files) + 1, 'file')}, {byte_size(upload.num_bytes)}"
    if args.dry_run:
        print(upload.card, *(f"# {file}" for file in upload.files), f"# The {what}, to {name}", sep="\n")
        return 0
    address = push(upload, name, private=args.private, message=args.message)
    print(f"Uploaded the {what}\n{address}")
    return 0

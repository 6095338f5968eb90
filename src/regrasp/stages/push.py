"""Uploads a model or a dataset to the Hugging Face hub, with a card that says what it is."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from regrasp.checkpoint.layout import EXPORT, MANIFEST
from regrasp.checkpoint.run_record import run_of
from regrasp.config.parse import parse, read_json
from regrasp.data.lerobot import DemonstrationDataset
from regrasp.data.lerobot.schema import CODEBASE_VERSION, INFO_PATH
from regrasp.errors import UserError
from regrasp.folders import CARD_FILE, check_checksums, file_names
from regrasp.hub import FILES, ONLINE, HubName, Kind, network_errors
from regrasp.logging.report import EvaluationSummary
from regrasp.logging.text import counted
from regrasp.models.card import as_text, model_card
from regrasp.models.config import CONFIG_FILE
from regrasp.models.registry import model_in
from regrasp.runner.evaluated import checkpoint_of_model, evaluation_at, experiment_of
from regrasp.runner.run_folder import newest_of_run
from regrasp.stages.play import EVALUATION_FILE

_log = logging.getLogger(__name__)

_KEY = "model"
"""Of an evaluation's file: the model that acted; earlier versions did not write it."""
_AGAIN = "give the folder of a `regrasp play`"
_MAX_INSTRUCTIONS = 20


@dataclass(frozen=True)
class Upload:
    """What is to be uploaded."""

    folder: Path
    kind: Kind
    files: tuple[str, ...]
    """Below the folder, without the card."""
    card: str
    """Markdown, which takes the place of the folder's own card."""

    @property
    def num_bytes(self) -> int:
        """Of the files together."""
        return sum((self.folder / name).stat().st_size for name in self.files)


def prepare(folder: Path, repo: str, evaluation: Path | None = None) -> Upload:
    """Find what a folder holds, check it, and write its card; nothing is sent.

    Args:
        folder: A model, a checkpoint with one, a run, whose newest is taken, or a dataset.
        repo: What it will be called, `org/name`.
        evaluation: Folder of an evaluation of this model, for the card; None: the run's own, where it has one.

    Raises:
        UserError: The folder holds none of these, or is damaged.
    """
    if (folder / INFO_PATH).is_file():
        if evaluation is not None:
            raise UserError("A dataset has no success", key="--evaluation", value=str(evaluation), fix="leave it out")
        dataset = DemonstrationDataset(folder)
        check_checksums(folder)
        return _upload(folder, "dataset", _dataset_card(dataset, repo))
    model = _model_folder(folder)
    model_in(model, "FOLDER")
    checkpoint = checkpoint_of_model(model)
    run = None if checkpoint is None else run_of(checkpoint)
    summary = None if checkpoint is None else evaluation_at(checkpoint)
    if evaluation is not None:
        summary = _evaluation_of(model, evaluation)
    experiment = None if run is None else experiment_of(run)
    return _upload(model, "model", model_card(model, summary, repo=repo, experiment=experiment))


def _evaluation_of(model: Path, evaluation: Path) -> EvaluationSummary:
    """What an evaluation's folder says of a model; a warning where the model that acted may be another.

    Raises:
        UserError: The folder holds no evaluation, or one in which no model acted.
    """
    file = evaluation / EVALUATION_FILE
    content = read_json(file, fix=_AGAIN, missing="There is no evaluation in this folder")
    summary = parse(EvaluationSummary, content, file=file, fix=_AGAIN)
    if summary.model is None and (_KEY in content or not summary.policy.startswith("Model")):
        raise UserError(
            f"This evaluation is of no model: {summary.policy}",
            file=file,
            key="--evaluation",
            value=str(evaluation),
            expected="an evaluation of the model that is uploaded",
            fix=f"`regrasp play --model_path {model}` makes one",
        )
    if summary.model is not None and Path(summary.model) not in (model.resolve(), model.resolve().parent):
        text = "--evaluation: the model that acted was %s; the card of %s shows its success, if that is the same model."
        _log.warning(text, summary.model, model)
    return summary


def _model_folder(folder: Path) -> Path:
    if (folder / CONFIG_FILE).is_file() or not folder.is_dir():
        return folder
    inside = newest_of_run(folder) / EXPORT
    if inside.is_dir():
        return inside
    raise UserError(
        "This folder cannot be uploaded",
        key="FOLDER",
        value=str(folder),
        expected=f"a model ({CONFIG_FILE}), a dataset ({INFO_PATH}), or a run or checkpoint with a model in it",
        fix="correct the path",
    )


def _upload(folder: Path, kind: Kind, card: str) -> Upload:
    names = [name for name in file_names(folder) if name != MANIFEST and name != CARD_FILE]
    wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in FILES[kind])]
    return Upload(folder, kind, tuple(wanted), card)


def push(upload: Upload, name: HubName, *, private: bool, message: str) -> str:
    """Make the repository where there is none, and upload; what the repository has beside loadable files stays.

    Returns:
        The address of the commit.

    Raises:
        UserError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

    api = HfApi(library_name="regrasp")
    try:
        api.create_repo(name.repo, repo_type=upload.kind, private=private or None, exist_ok=True)
        if name.revision is not None:
            api.create_branch(name.repo, branch=name.revision, repo_type=upload.kind, exist_ok=True)
        there = api.list_repo_files(name.repo, repo_type=upload.kind, revision=name.revision)
        stale = [
            file
            for file in there
            if file not in upload.files and file != CARD_FILE and any(fnmatch(file, p) for p in FILES[upload.kind])
        ]
        operations = [
            CommitOperationAdd(CARD_FILE, upload.card.encode()),
            *(CommitOperationAdd(file, upload.folder / file) for file in upload.files),
            *(CommitOperationDelete(file) for file in stale),
        ]
        commit = api.create_commit(
            name.repo, operations, commit_message=message, repo_type=upload.kind, revision=name.revision
        )
        if upload.kind == "dataset":  # LeRobot takes the revision that its format's version names
            with suppress(errors.RevisionNotFoundError):
                api.delete_tag(name.repo, tag=CODEBASE_VERSION, repo_type="dataset")
            api.create_tag(name.repo, tag=CODEBASE_VERSION, revision=commit.oid, repo_type="dataset")
    except (*network_errors(), RuntimeError) as error:  # the last of a file that did not go through
        raise _refused(error, name) from error
    return commit.commit_url


def _refused(error: Exception, name: HubName) -> UserError:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    expected = "a repository that you may write, as org/name, and a token that may write it"
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    if isinstance(cause, HfHubHTTPError):
        problem = f"The Hugging Face hub refused the upload: {str(cause).splitlines()[0]}"
        fix = "`hf auth login` with a token that may write, or name a repository of your own; then run it again"
    else:
        problem = f"The Hugging Face hub cannot be reached: {str(cause).splitlines()[0] if str(cause) else cause!r}"
        fix = f"{ONLINE}; then run it again" if constants.HF_HUB_OFFLINE else "run it again where there is a network"
    return UserError(problem, key="REPO", value=str(name), expected=expected, fix=fix)


def _dataset_card(dataset: DemonstrationDataset, repo: str) -> str:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        task_categories=["robotics"],
        tags=["LeRobot", "regrasp"],
        configs=[{"config_name": "default", "data_files": "data/*/*.parquet"}],
    )
    robot = f", {as_text(dataset.robot_type)}" if isinstance(dataset.robot_type, str) else ""
    shown = [f"- {as_text(words)}" for words in dataset.tasks[:_MAX_INSTRUCTIONS]]
    more = len(dataset.tasks) - _MAX_INSTRUCTIONS
    rows = [f"| {as_text(name)} | {one.dtype} | {list(one.shape)} |" for name, one in dataset.features.items()]
    return "\n".join(
        [
            f"---\n{data}\n---\n",
            f"# Demonstrations{robot}\n",
            f"{counted(dataset.num_episodes, 'episode')}, {counted(dataset.num_frames, 'frame')} at {dataset.fps} Hz, a"
            f" LeRobotDataset {CODEBASE_VERSION}.\n",
            "## Instructions\n",
            *shown,
            *([f"- and {more} more"] if more > 0 else []),
            "\n## Features\n",
            "| Name | Type | Shape |\n|---|---|---|",
            *rows,
            f"\n## How to use it\n\n```\nregrasp sft --data {repo} --output base\n```\n",
            f'```python\nfrom lerobot.datasets import LeRobotDataset\n\ndataset = LeRobotDataset("{repo}")\n```\n',
        ]
    )

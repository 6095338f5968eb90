"""Models and datasets of the Hugging Face hub, by name: `org/name`, or `org/name@revision`.

What is in the local cache is used as it is, without a word to the network; what is not is downloaded. Only files that
loading reads are fetched: neither code nor pickled weights.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from regrasp.errors import UserError
from regrasp.folders import CARD_FILE, CHECKSUMS

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_log = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]
FILES: dict[Kind, tuple[str, ...]] = {
    "model": ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.yaml", CARD_FILE, CHECKSUMS),
    "dataset": ("*.json", "*.jsonl", "*.parquet", "*.mp4", CARD_FILE, CHECKSUMS),
}
"""What is downloaded, and uploaded, of a folder of each kind."""
_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?")
_SIGNS: dict[Kind, tuple[str, ...]] = {
    "model": ("config.json", "*.safetensors"),
    "dataset": ("meta/info.json", "data/*/*.parquet"),
}
"""What a folder of each kind cannot be without: a cache may hold single files that another program wanted."""
_COMMIT = re.compile("[0-9a-f]{40}")
ONLINE = "unset the environment variable HF_HUB_OFFLINE, which keeps huggingface_hub from the network"
_PATIENCE = 10.0
"""Seconds after which a hub that does not answer counts as out of reach."""


class HubName(NamedTuple):
    """What a user calls a repository of the hub."""

    repo: str
    """`org/name`."""
    revision: str | None
    """Branch, tag or commit; None: the main branch."""

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


def hub_name(text: str) -> HubName | None:
    """The repository that a text names; None where it is the path of a folder.

    `outputs/base` is a path where there is a folder `outputs`, whether or not `base` is in it.
    """
    name = repo_name(text)
    return None if name is None or Path(text).exists() or Path(text).parts[0] in _folders_here() else name


def repo_name(text: str) -> HubName | None:
    """The repository that a text names; None where it has no such form."""
    match = _NAME.fullmatch(text)
    return HubName(match["repo"], match["revision"]) if match else None


def _folders_here() -> set[str]:
    return {path.name for path in Path().iterdir() if path.is_dir()}


def download_command(name: HubName, kind: Kind) -> str:
    """The command that brings a repository into the local cache."""
    options = " --repo-type dataset" if kind == "dataset" else ""
    return f"hf download {name.repo}{options}" + (f" --revision {name.revision}" if name.revision else "")


def fetch(text: str, kind: Kind, *, key: str, downloads: bool = True) -> Path | None:
    """The folder of what the hub has under a name: in the local cache, or downloaded into it.

    Args:
        text: What the user gave: a name, or a path.
        kind: What it has to be.
        key: The flag or configuration key that has the name, for errors.
        downloads: Whether what is not in the cache is downloaded.

    Returns:
        The folder; None where the text is a path, or nothing may be downloaded and the cache lacks it.

    Raises:
        UserError: The hub does not have it, does not give it, or cannot be reached.
    """
    name = hub_name(text)
    if name is None:
        return None
    folder = _cached(name, kind)
    if folder is not None:
        newer = (
            "" if _COMMIT.fullmatch(name.revision or "") else f"; `{download_command(name, kind)}` looks for a newer"
        )
        _log.info("%s %s: commit %s, from the cache%s.", kind.capitalize(), name, folder.name[:8], newer)
        return folder
    if not downloads:
        return None
    folder = _downloaded(name, kind, key)
    _log.info("%s %s: commit %s, downloaded to %s.", kind.capitalize(), name, folder.name[:8], folder)
    return folder


def _cached(name: HubName, kind: Kind) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name.repo,
            repo_type=kind,
            revision=name.revision,
            allow_patterns=list(FILES[kind]),
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    folder = Path(found)
    return folder if all(any(folder.glob(sign)) for sign in _SIGNS[kind]) else None


def _downloaded(name: HubName, kind: Kind, key: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        found = snapshot_download(
            name.repo,
            repo_type=kind,
            revision=name.revision,
            allow_patterns=list(FILES[kind]),
            library_name="regrasp",
            etag_timeout=_PATIENCE,
        )
    except (*network_errors(), errors.LocalEntryNotFoundError) as error:
        raise _complaint(error, name, kind, key) from error
    return Path(found)


def network_errors() -> tuple[type[Exception], ...]:
    """What a client of the hub raises where the network, or the hub, fails."""
    from huggingface_hub.errors import HfHubHTTPError

    by_http = HfHubHTTPError.__mro__[1]  # every error of the HTTP library that huggingface_hub uses, whichever it is
    assert issubclass(by_http, Exception)
    return (by_http, ConnectionError)


def _complaint(error: Exception, name: HubName, kind: Kind, key: str) -> UserError:
    """What a user has to know of a download that failed."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name.repo}"
    expected = f"a folder, or a {kind} of the Hugging Face hub, as org/name or org/name@revision"
    match error:
        case errors.GatedRepoError():
            problem = f"The hub gives this {kind} only to those who accepted its terms"
            fix = f"accept them at {page}, then `hf auth login`, and run the command again"
        case errors.RevisionNotFoundError():
            problem = f"The hub's {kind} {name.repo} has no such revision"
            expected, fix = "a branch, a tag or a commit of it", f"choose one of {page}/commits/main"
        case errors.HfHubHTTPError() if isinstance(error, errors.RepositoryNotFoundError) or _unknown(error):
            problem = f"There is neither such a folder here nor such a {kind} on the Hugging Face hub"
            fix = "correct it; for a private one, `hf auth login` first"
        case errors.HfHubHTTPError():
            problem = f"The Hugging Face hub refused: {str(error).splitlines()[0]}"
            fix = f"try again later, or fetch it by hand: `{download_command(name, kind)}`"
        case _:
            problem = f"There is no such folder here, no such {kind} in the local cache, and no way to the hub"
            fix = f"`{download_command(name, kind)}` fetches it, where there is a network; or correct the path"
            if constants.HF_HUB_OFFLINE:
                fix = f"{ONLINE}, and run the command again; or correct the path"
    return UserError(problem, key=key, value=str(name), expected=expected, fix=fix)


def _unknown(error: HfHubHTTPError) -> bool:
    """Whether who asks is not known: that is also what the hub answers of a repository that it does not have."""
    return error.response.status_code == 401


def shown(folder: Path) -> str:
    """What to call a model's folder: `org/name` and the commit where it is one of the hub's cache, else its name."""
    repo = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repo.startswith("models--"):
        return folder.name
    return f"{repo.removeprefix('models--').replace('--', '/')}@{folder.name[:8]}"

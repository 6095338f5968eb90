"""Models and datasets of the Hugging Face hub, by its own client, against a server on loopback with real files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from run_toys import SMALL, STAGES, checkpoint

from hub_stand_in import StandIn, serve
from regrasp import load_policy
from regrasp.cli.main import main
from regrasp.errors import UserError
from regrasp.folders import CHECKSUMS, atomic_folder, check_checksums
from regrasp.hub import fetch, hub_name
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.origin import Origin

MLP = ["--config_name", "pick_cube_ppo_mlp", *SMALL, "env.eval.num_episodes=2"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A hub, an empty cache, an empty working folder, and nobody logged in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve() as stand_in:
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        template = f"{stand_in.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield stand_in


@pytest.fixture
def logged_in(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with checksums and a card."""
    policy = MlpPolicy(state_dim=16, action_dim=4, num_action_chunks=4, hidden=(64, 64))
    policy.origin = Origin(("Regrasp-Pick-Cube-v0",), ("pick up the red | cube",))
    folder = tmp_path_factory.mktemp("models") / "mlp"
    with atomic_folder(folder, checksums=True) as draft:
        policy.write_folder(draft)
    return folder


def downloads(hub: StandIn) -> list[str]:
    return [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]


def test_a_model_is_played_from_the_hub_and_then_from_the_cache(
    hub: StandIn, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.add("acme/mlp", model)
    command = ["play", *MLP, "--model_path", "acme/mlp"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert f"[INFO] Model acme/mlp: commit {commit[:8]}, downloaded to " in first
    assert {request.rpartition("/")[2] for request in downloads(hub)} == {
        *("config.json", "model.safetensors", "made_for.json", "README.md", CHECKSUMS)
    }
    (run,) = (tmp_path / "here" / "logs" / "regrasp" / "eval").iterdir()
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert Path(settings["actor"]["model"]["model_path"]).parts[-3:] == ("models--acme--mlp", "snapshots", commit)
    assert f"Model acme/mlp@{commit[:8]}" in (run / "evaluation.json").read_text()

    hub.requests.clear()
    assert main(command) == 0
    second = capsys.readouterr().out
    assert not hub.requests
    assert "from the cache; `hf download acme/mlp` looks for a newer" in second
    assert first.splitlines()[-3:] == second.splitlines()[-3:]


def test_only_what_loading_reads_is_fetched(hub: StandIn, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "more")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    hub.add("acme/more", folder)
    found = fetch("acme/more", "model", key="--model_path")
    assert found is not None
    assert {file.name for file in found.iterdir()} == {file.name for file in model.iterdir()}
    assert load_policy("acme/more").origin.tasks == load_policy(model).origin.tasks


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: StandIn, model: Path, tmp_path: Path) -> None:
    old = hub.add("acme/mlp", model)
    hub.repos["model", "acme/mlp"].refs["v1"] = old
    other = shutil.copytree(model, tmp_path / "other")
    (other / "README.md").write_text("# New\n")
    new = hub.add("acme/mlp", other)
    names = {"acme/mlp": new, "acme/mlp@main": new, "acme/mlp@v1": old, f"acme/mlp@{old}": old}
    assert {name: fetch(name, "model", key="k").name for name in names} == names  # type: ignore[union-attr]
    with pytest.raises(UserError, match="no such revision"):
        fetch("acme/mlp@v2", "model", key="k")


def test_a_base_model_is_trained_on_a_dataset_of_the_hub(
    hub: StandIn, demos: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("acme/demos", demos, "dataset")
    hub.add("acme/backbone", backbone)
    arguments = ["--config_name", "pick_cube_ppo_groot", *SMALL, *STAGES, "sft.steps=2"]
    where = ["--data", "acme/demos", "--backbone", "acme/backbone", "--output", "base"]
    assert main(["sft", *arguments, *where, "--dry_run"]) == 0
    dry = capsys.readouterr()
    assert "hf download acme/demos --repo-type dataset" in dry.err
    assert not hub.requests
    assert main(["sft", *arguments, *where]) == 0
    assert "Dataset acme/demos: commit" in capsys.readouterr().out
    assert any(request.startswith("GET /datasets/acme/demos/resolve/") for request in hub.requests)
    card = Path("base/README.md").read_text()
    assert "Regrasp-Pick-Cube-v0" in card
    assert "regrasp play --model_path FOLDER" in card


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    for text in ("outputs/base", "./a/b", "/a/b", "~/a", "a", "a/b/c", "a/b@", "../a/b"):
        assert hub_name(text) is None, text
    assert hub_name("acme/model-1.5_b@v1/x") == ("acme/model-1.5_b", "v1/x")
    (tmp_path / "acme" / "there").mkdir(parents=True)
    assert hub_name("acme/there") is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme/absent", "neither such a folder here nor such a model on the Hugging Face hub"),
        ("acme/private", "`hf auth login` first"),
        ("acme/gated", "accept them at http://127.0.0.1"),
        ("acme/mlp@v9", "no such revision"),
    ],
)
def test_what_the_hub_refuses_is_a_mistake_of_the_user(
    hub: StandIn, model: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for repo in ("private", "gated", "mlp"):
        hub.add(f"acme/{repo}", model)
    hub.repos["model", "acme/private"].private = hub.repos["model", "acme/gated"].gated = True
    assert main(["play", *MLP, "--model_path", name]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "--model_path" in error
    assert "Traceback" not in error
    assert not list(Path().iterdir())


def test_a_private_model_is_given_to_who_is_logged_in(logged_in: StandIn, model: Path) -> None:
    logged_in.add("acme/private", model)
    logged_in.repos["model", "acme/private"].private = True
    assert fetch("acme/private", "model", key="k") is not None


def test_a_hub_that_is_out_of_order_or_out_of_reach(hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("acme/mlp", model)
    hub.broken = True
    with pytest.raises(UserError, match=r"refused: .*500"):
        fetch("acme/mlp", "model", key="k")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"`hf download acme/mlp --revision v1` fetches it, where there is a network"):
        fetch("acme/mlp@v1", "model", key="k")


def test_a_cache_with_a_part_of_a_model_is_completed(hub: StandIn, model: Path) -> None:
    commit = hub.add("acme/mlp", model)
    snapshot = Path(constants.HF_HUB_CACHE) / "models--acme--mlp" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((model / "config.json").read_bytes())
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    assert fetch("acme/mlp", "model", key="k", downloads=False) is None
    assert fetch("acme/mlp", "model", key="k") == snapshot
    check_checksums(snapshot)


def test_a_damaged_download_is_found(hub: StandIn, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "damaged")
    (folder / "made_for.json").write_text('{"tasks": [], "instructions": []}')
    hub.add("acme/damaged", folder)
    with pytest.raises(UserError, match="not as it was written"):
        load_policy("acme/damaged")


def test_a_model_is_pushed_with_its_card_and_loads_again(
    logged_in: StandIn, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(model), "acme/pushed", "--private"]) == 0
    assert f"{logged_in.url}/acme/pushed/commit/" in capsys.readouterr().out
    files = logged_in.files("acme/pushed")
    assert files.keys() == {".gitattributes", *(file.name for file in model.iterdir())}
    assert logged_in.repos["model", "acme/pushed"].private
    for file in model.iterdir():
        assert file.name == "README.md" or files[file.name] == file.read_bytes()
    head, _, text = files["README.md"].decode().removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head)["library_name"] == "regrasp"
    assert 'regrasp.load_policy("acme/pushed")' in text
    assert "pick up the red \\| cube" in text
    loaded = load_policy("acme/pushed").state_dict()
    assert all((loaded[name] == tensor).all() for name, tensor in load_policy(model).state_dict().items())

    once = logged_in.repos["model", "acme/pushed"]
    once.commit({**files, "old.json": b"{}", "photo.png": b"picture"})
    assert main(["push", str(model), "acme/pushed"]) == 0
    assert logged_in.files("acme/pushed").keys() == {*files, "photo.png"}


def test_a_run_is_pushed_with_its_own_evaluation(logged_in: StandIn, finished_run: Path) -> None:
    """Four episodes were evaluated after update 4; the interval is that of R's binom.confint(0, 4, method="wilson")."""
    assert main(["push", str(finished_run), "acme/run@dev"]) == 0
    repo = logged_in.repos["model", "acme/run"]
    assert repo.refs["dev"] != repo.refs["main"]
    assert repo.commits[repo.refs["main"]].keys() == {".gitattributes"}
    files = logged_in.files("acme/run", revision="dev")
    weights = checkpoint(finished_run, 4) / "model" / "model.safetensors"
    assert files["model.safetensors"] == weights.read_bytes()
    card = files["README.md"].decode()
    assert "after update 4, in its run's own evaluation, 4 episodes" in card
    assert "| all | 0.0% | 0.0% to 49.0% | 4 |" in card
    assert "Experiment: `small`" in card
    result = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == 0.0
    assert result["dataset"]["name"] == "Regrasp-Pick-Cube-v0"


def test_the_card_shows_an_evaluation_that_is_named(
    hub: StandIn, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", *MLP, "--model_path", str(model)]) == 0
    (run,) = Path("logs/regrasp/eval").iterdir()
    capsys.readouterr()
    assert main(["push", str(model), "acme/mlp", "--evaluation", str(run), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "Model mlp, 2 episodes in simulation." in shown
    assert "| all | 0.0% |" in shown
    assert "# model.safetensors" in shown
    assert not hub.requests


def test_an_experiment_that_a_model_of_the_hub_keeps_is_read_through_the_cache_s_links(
    logged_in: StandIn, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(finished_run), "acme/run"]) == 0
    card = logged_in.files("acme/run")["README.md"].decode()
    assert "regrasp play --model_path acme/run --video" in card
    capsys.readouterr()
    assert main(["play", "--model_path", "acme/run", "env.eval.num_episodes=2"]) == 0
    shown = capsys.readouterr().out
    (link,) = Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/experiment.yaml")
    assert link.is_symlink()
    assert f"[INFO] Experiment: {link}, of the model {link.parent}" in shown
    assert "all episodes" in shown


def test_an_evaluation_of_something_else_is_no_success_of_a_model(
    hub: StandIn, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", *MLP, "--policy", "expert"]) == 0
    (run,) = Path("logs/regrasp/eval").iterdir()
    push = ["push", str(model), "acme/mlp", "--dry_run", "--evaluation"]
    assert main([*push, str(run)]) == 2
    assert "This evaluation is of no model: Scripted expert" in capsys.readouterr().err
    file = run / "evaluation.json"
    content = json.loads(file.read_text())
    del content["model"]  # as an earlier version wrote it
    file.write_text(json.dumps(content))
    assert main([*push, str(run)]) == 2

    other = shutil.copytree(model, tmp_path / "other")
    file.write_text(json.dumps({**content, "policy": "Model other", "model": str(other)}))
    capsys.readouterr()
    assert main([*push, str(run)]) == 0
    assert f"the model that acted was {other}" in capsys.readouterr().err


def test_a_dataset_is_pushed_as_lerobot_expects_it(logged_in: StandIn, demos: Path) -> None:
    for _ in range(2):
        assert main(["push", str(demos), "acme/demos"]) == 0
    repo = logged_in.repos["dataset", "acme/demos"]
    assert repo.refs["v3.0"] == repo.refs["main"]
    files = logged_in.files("acme/demos", "dataset")
    assert {"meta/info.json", "meta/tasks.parquet"} <= files.keys()
    head = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert "LeRobot" in head["tags"]
    assert fetch("acme/demos@v3.0", "dataset", key="k") is not None


def test_what_cannot_be_pushed(hub: StandIn, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    for arguments, said in (
        (["empty", "acme/x"], "expected: a model (config.json), a dataset (meta/info.json)"),
        ([str(model), "noslash"], "org/name, or org/name@branch"),
        ([str(model), "acme/x"], "refused the upload: Client error '401 Unauthorized'"),
        ([str(model), "acme/x", "--evaluation", "empty"], "There is no evaluation in this folder"),
    ):
        assert main(["push", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not hub.repos


def test_the_hub_is_chosen_by_the_environment_of_huggingface_hub(hub: StandIn, model: Path, tmp_path: Path) -> None:
    commit = hub.add("acme/mlp", model)
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", "from regrasp.hub import fetch; print(fetch('acme/mlp', 'model', key='k').name)"]
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(command, env={**os.environ, **told, **more}, capture_output=True, text=True, check=True)
        assert done.stdout == f"{commit}\n"
    assert (tmp_path / "home" / "hub" / "models--acme--mlp" / "snapshots" / commit).is_dir()

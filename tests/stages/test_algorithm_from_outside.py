"""The tutorial of docs/algorithms.md: an algorithm of a package of its own, found by its entry point."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from run_toys import checkpoint, metrics, mlp_experiment

from regrasp.errors import UserError
from regrasp.learner.learner import Learner
from regrasp.stages.train import train
from rl_toys import mlp_policy, rollout_of

TUTORIAL = Path(__file__).parents[2] / "docs" / "algorithms.md"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tutorial's two code blocks as an installed package."""
    text = TUTORIAL.read_text().partition("<!-- tutorial -->")[2]
    module, package = re.findall(r"```(?:python|toml)\n(.*?)```", text, re.DOTALL)[:2]
    assert len(module.splitlines()) < 110
    site = tmp_path / "site"
    information = site / "my_algorithms-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "my_algorithms.py").write_text(module)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-algorithms\nVersion: 1.0\n")
    settings = tomllib.loads(package)
    assert settings["tool"]["setuptools"]["py-modules"] == ["my_algorithms"]
    ((group, entries),) = settings["project"]["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {place}" for name, place in entries.items())]
    (information / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("my_algorithms", None)


@pytest.mark.usefixtures("installed")
def test_the_tutorials_algorithm_trains_and_its_keys_are_checked(start_model: Path, tmp_path: Path) -> None:
    chosen = ("algorithm.adv_type=imitate", "algorithm.loss_type=imitation", f"actor.model.model_path={start_model}")
    loaded = mlp_experiment(*chosen, "runner.force=true", "runner.max_epochs=2")
    assert type(loaded.config.algorithm).__name__ == "ImitateConfig"
    run = tmp_path / "run"
    run.mkdir()
    assert train(loaded, run)
    assert len(metrics(run)) == 2
    weights = torch.load(checkpoint(run, 2) / "actor" / "model_state_dict" / "full_weights.pt", weights_only=True)
    assert not any(name.startswith("value_head") for name in weights)
    policy, algorithm = mlp_policy(), loaded.config.algorithm.build()
    prepared = algorithm.prepare(rollout_of(policy, 16).with_columns(column=torch.arange(16)))
    assert 0 < len(prepared) < 16
    learner = Learner(policy, algorithm, loaded.config.actor, num_updates=1, seed=0, device=torch.device("cpu"))
    updated = learner.update(prepared, 0, lambda: False)
    assert [column.tag in updated for column in loaded.config.algorithm.shown] == [True]
    with torch.no_grad():
        after = policy.evaluate(prepared.table, prepared.trace).log_probs
    assert after.mean() > prepared["log_probs"].mean()
    with pytest.raises(UserError) as caught:
        mlp_experiment(*chosen, "algorithm.weight=-1")
    assert caught.value.key == "algorithm.weight"


@pytest.mark.usefixtures("installed")
def test_it_is_listed_where_an_algorithm_is_unknown(start_model: Path) -> None:
    with pytest.raises(UserError, match="imitate"):
        mlp_experiment("algorithm.adv_type=imitation", f"actor.model.model_path={start_model}")

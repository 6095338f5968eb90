from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Literal

import pytest
from groot_toys import ACTION_DIM, STATE_DIM, toy_policy
from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK
from regrasp.errors import UserError
from regrasp.experiment.load import load_config
from regrasp.models import registry
from regrasp.models.config import ModelConfig
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.inputs import InputNames
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.mlp.settings import MlpModelConfig

NAMES = ("gr00t", "gr00t_n1_5", "gr00t_n1d5", "mlp", "regrasp_mlp")


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class Mine(ModelConfig):
    """A model from elsewhere."""

    model_type: Literal["mine"] = "mine"
    """Which model."""
    depth: int = 2
    """A key of its own."""

    @classmethod
    def open(cls, folder: Path, inputs: InputNames | None = None) -> MlpPolicy:
        assert inputs is None or inputs.embodiment_tag in ("arm", "new_embodiment")
        return MlpPolicy(state_dim=STATE_DIM, action_dim=ACTION_DIM)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_models", [*registry._models])
    registry.register_model(Mine)


def model_folder(folder: Path, model_type: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def test_a_registered_model_loads_and_a_name_is_taken_once(mine, tmp_path):
    assert isinstance(registry.load_policy(model_folder(tmp_path, "mine")), MlpPolicy)
    assert registry.load_policy(tmp_path, InputNames(embodiment_tag="arm")).spec.num_views == 0
    for taken in (Mine, GrootModelConfig):
        with pytest.raises(ValueError, match=taken.names()[0]):
            registry.register_model(taken)


def test_a_registered_model_has_keys_of_its_own(mine):
    overrides = ["actor.model.model_type=mine", "+actor.model.depth=3", "~actor.model.mlp"]
    loaded = load_config("pick_cube_ppo_mlp", overrides)
    assert isinstance(loaded.config.actor.model, Mine)
    assert loaded.config.actor.model.depth == 3
    assert "depth: 3" in loaded.to_yaml()
    with pytest.raises(UserError, match=r"actor\.model\.depth"):
        load_config("pick_cube_ppo_mlp", ["actor.model.model_type=mine", "+actor.model.depth=deep"])


def test_an_installed_package_can_bring_a_model(tmp_path, monkeypatch):
    entry = EntryPoint("theirs", f"{__name__}:Mine", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", EntryPoints([entry]).select)
    assert "mine" in registry.known_models()
    assert isinstance(registry.load_policy(model_folder(tmp_path, "mine")), MlpPolicy)


@pytest.mark.parametrize("name", ["pi0", None, 5])
def test_an_unknown_kind_names_itself_and_the_known_ones(tmp_path, name):
    with pytest.raises(UserError) as error:
        registry.load_policy(model_folder(tmp_path, name))
    assert error.value.value == name
    assert all(known in str(error.value) for known in NAMES)


def test_an_experiment_of_an_unknown_kind_is_refused():
    with pytest.raises(UserError) as error:
        load_config("pick_cube_ppo_groot", ["actor.model.model_type=openpi"])
    assert error.value.key == "actor.model.model_type"
    assert all(known in str(error.value) for known in NAMES)


@pytest.mark.parametrize(
    ("name", "version"), [("Gr00tN1d6", "N1.6"), ("gr00t_n1_6", "N1.6"), ("Gr00tN1d7", "N1.7"), ("gr00t_n1.7", "N1.7")]
)
def test_later_gr00t_is_named_as_unsupported(tmp_path, name, version):
    with pytest.raises(UserError, match=version):
        registry.load_policy(model_folder(tmp_path, name))
    with pytest.raises(UserError, match=version) as error:
        load_config("pick_cube_ppo_groot", [f"actor.model.model_type={name}"])
    assert error.value.key == "actor.model.model_type"


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_model_means_it(name):
    shipped = "mlp" if "mlp" in name else "groot"
    loaded = load_config(f"pick_cube_ppo_{shipped}", [f"actor.model.model_type={name}"])
    assert isinstance(loaded.config.actor.model, MlpModelConfig if shipped == "mlp" else GrootModelConfig)
    assert loaded.warnings == ()


def test_a_folder_of_another_model_is_named_with_both(tmp_path):
    toy_policy().save(tmp_path)
    model = MlpModelConfig(num_action_chunks=3, action_dim=ACTION_DIM)
    with pytest.raises(UserError, match="another model") as error:
        registry.check_folder(model, tmp_path)
    assert (error.value.key, error.value.value) == ("actor.model.model_type", "mlp")
    assert "gr00t" in str(error.value)


def test_a_folder_may_be_named_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved = MlpPolicy(state_dim=STATE_DIM, action_dim=ACTION_DIM)
    saved.save(tmp_path / "base")
    assert isinstance(registry.load_policy("~/base"), MlpPolicy)
    assert registry.check_folder(MlpModelConfig(num_action_chunks=1, action_dim=1), "~/base") == tmp_path / "base"


def test_only_loading_tells_the_size_of_a_model_that_is_plugged_in(tmp_path):
    assert Mine(action_dim=1, num_action_chunks=1).preview(tmp_path, InputNames()) is None


def test_a_model_without_a_beginning_says_so():
    model = Mine(action_dim=1, num_action_chunks=1)
    with pytest.raises(UserError, match="No pretrained model"):
        model.build(state_dim=1, seed=0)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(UserError, match="No such model folder"):
        registry.load_policy(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json"):
        registry.load_policy(tmp_path)


@pytest.mark.parametrize("module", ["config", "inputs", "registry", "groot.processing.data_config"])
def test_what_the_configuration_imports_is_light(module):
    code = f"import sys, regrasp.models.{module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

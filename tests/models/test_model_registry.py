from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from groot_toys import ACTION_DIM, STATE_DIM

from regrasp.errors import UserError
from regrasp.models import registry
from regrasp.models.inputs import InputNames
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.settings import RlHeadSettings


def plug_in(folder: Path, settings: object, inputs: object) -> MlpPolicy:
    assert settings is None
    assert inputs is None or inputs == InputNames(embodiment_tag="arm")
    return MlpPolicy(state_dim=STATE_DIM, action_dim=ACTION_DIM)


def model_folder(folder: Path, model_type: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def test_a_registered_loader_is_used_and_a_name_is_taken_once(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    registry.register_model("mine", plug_in)
    assert isinstance(registry.load_policy(model_folder(tmp_path, "mine")), MlpPolicy)
    assert registry.load_policy(tmp_path, inputs=InputNames(embodiment_tag="arm")).spec.num_views == 0
    for name in ("mine", "gr00t_n1_5"):
        with pytest.raises(ValueError, match=name):
            registry.register_model(name, plug_in)


def test_an_installed_package_can_bring_a_model(tmp_path, monkeypatch):
    entry = EntryPoint("theirs", f"{__name__}:plug_in", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", EntryPoints([entry]).select)
    assert "theirs" in registry.known_models()
    assert isinstance(registry.load_policy(model_folder(tmp_path, "theirs")), MlpPolicy)


@pytest.mark.parametrize("name", ["pi0", None, 5])
def test_an_unknown_kind_names_itself_and_the_known_ones(tmp_path, name):
    with pytest.raises(UserError) as error:
        registry.load_policy(model_folder(tmp_path, name))
    assert error.value.value == name
    assert "gr00t_n1_5" in str(error.value)
    assert "regrasp_mlp" in str(error.value)


@pytest.mark.parametrize(
    ("name", "version"), [("Gr00tN1d6", "N1.6"), ("gr00t_n1_6", "N1.6"), ("Gr00tN1d7", "N1.7"), ("gr00t_n1.7", "N1.7")]
)
def test_later_gr00t_is_named_as_unsupported(tmp_path, name, version):
    with pytest.raises(UserError, match=version):
        registry.load_policy(model_folder(tmp_path, name))


def test_a_folder_may_be_named_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved = MlpPolicy(state_dim=STATE_DIM, action_dim=ACTION_DIM)
    saved.save(tmp_path / "base")
    settings = RlHeadSettings(1, ACTION_DIM)
    for policy in (
        registry.load_policy("~/base"),
        registry.preview_policy("~/base", settings, InputNames()),
    ):
        assert isinstance(policy, MlpPolicy)


def test_only_a_loader_knows_the_size_of_a_model_that_is_plugged_in(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    registry.register_model("mine", plug_in)
    assert registry.preview_policy(model_folder(tmp_path, "mine"), RlHeadSettings(1, ACTION_DIM), InputNames()) is None


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(UserError, match="No such model folder"):
        registry.load_policy(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json"):
        registry.load_policy(tmp_path)


@pytest.mark.parametrize("module", ["settings", "inputs", "groot.processing.data_config"])
def test_what_the_configuration_imports_is_light(module):
    code = f"import sys, regrasp.models.{module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

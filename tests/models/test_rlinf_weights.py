"""Weights as RLinf and the tools around it write them: evaluated, exported, and trained on with a new value head."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from official_layout import INPUTS, OUTPUT_LAYER, write_official
from test_groot_export import SETTINGS, observation, trained_policy
from torch import Tensor

from regrasp.engine.policies import overlay_rl_weights
from regrasp.errors import UserError
from regrasp.models.config import ExportOptions, RlHeadConfig
from regrasp.models.groot.checkpoint import load_groot
from regrasp.stages.export import export

Weights = dict[str, Tensor]
EMBEDDING = "backbone.eagle_model.language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    write_official(folder, embedding="both")
    return folder


def of_rlinf(weights: Weights) -> Weights:
    """With RLinf's critic, four layers with biases but the last, and its noise network."""
    sizes = [(16, 12), (8, 16), (4, 8), (1, 4)]
    critic = {f"action_head.value_head.mlp.{2 * i}.weight": torch.ones(size) for i, size in enumerate(sizes)}
    noise = {"action_head.reinflow_explore_noise_net.mlp_logvar.moduleList.0.linear_1.weight": torch.ones(2, 2)}
    return without_critic(weights) | critic | noise


def without_critic(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("value_head.")}


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def wrapped_inside(weights: Weights) -> Weights:
    return {
        name.replace("action_head.", "action_head._fsdp_wrapped_module._orig_mod."): t for name, t in weights.items()
    }


FORMS: dict[str, Callable[[Weights], Weights]] = {
    "own": dict,
    "rlinf": of_rlinf,
    "without critic": without_critic,
    "critic of another size": lambda weights: weights | {"value_head.mlp.0.weight": torch.ones(3, 3)},
    "lm_head": lambda weights: weights | {OUTPUT_LAYER: weights[EMBEDDING]},
    "lerobot": lambda weights: prefixed("_groot_model.")(of_rlinf(weights)),
    "ddp": prefixed("module."),
    "compiled ddp": lambda weights: prefixed("module._orig_mod.")(of_rlinf(weights)),
    "fsdp": prefixed("_fsdp_wrapped_module."),
    "fsdp inside": wrapped_inside,
    "bfloat16": lambda weights: {name: tensor.bfloat16() for name, tensor in of_rlinf(weights).items()},
}


QUICK = ("rlinf", "lm_head", "fsdp inside")


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=() if form in QUICK else pytest.mark.full) for form in FORMS]
)
def test_weights_are_evaluated_and_exported_whatever_wrote_them(base: Path, tmp_path: Path, form: str) -> None:
    policy, file = trained_policy(base), tmp_path / "full_weights.pt"
    torch.save(FORMS[form](dict(policy.state_dict())), file)
    if form == "bfloat16":
        policy.load_state_dict({name: tensor.bfloat16().float() for name, tensor in policy.state_dict().items()})
    expected = policy.predict(observation())

    for settings in (SETTINGS, replace(SETTINGS, add_value_head=False), replace(SETTINGS, value_head_hidden=(6, 6))):
        played = load_groot(base, settings, INPUTS)
        critic = {name: t.clone() for name, t in played.state_dict().items() if name.startswith("value_head.")}
        overlay_rl_weights(played, file)
        assert torch.equal(played.predict(observation()), expected)
        if form == "rlinf":
            assert all(torch.equal(played.state_dict()[name], tensor) for name, tensor in critic.items())

    exported = load_groot(export(ExportOptions(base, tmp_path / "out", rl_model_path=file)), SETTINGS, INPUTS)
    assert torch.equal(exported.predict(observation()), expected)
    assert exported.value_head is not None


def test_a_critic_that_is_left_out_is_said(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "full_weights.pt"
    torch.save(of_rlinf(dict(trained_policy(base).state_dict())), file)
    with caplog.at_level("INFO"):
        export(ExportOptions(base, tmp_path / "out", rl_model_path=file))
    assert "training starts a new one" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {name: tensor for name, tensor in weights.items() if "action_decoder" not in name},
        lambda weights: weights | {"action_head.other.weight": torch.ones(2)},
        lambda weights: weights | {name: torch.ones(2) for name in list(weights)[:1]},
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_weights_of_another_model_are_refused(base: Path, tmp_path: Path, change: Callable[[Weights], Weights]) -> None:
    file = tmp_path / "full_weights.pt"
    torch.save(change(of_rlinf(dict(trained_policy(base).state_dict()))), file)
    with pytest.raises(UserError, match="do not fit the base model"):
        overlay_rl_weights(load_groot(base, SETTINGS, INPUTS), file)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_found_by_the_sums_that_torch_wrote(base: Path, tmp_path: Path, place: float) -> None:
    file, policy = tmp_path / "full_weights.pt", load_groot(base, SETTINGS, INPUTS)
    torch.save(of_rlinf(dict(trained_policy(base).state_dict())), file)
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    data = bytearray(file.read_bytes())
    data[largest.header_offset + 200 + int(place * (largest.file_size - 200))] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="damaged") as caught:
        overlay_rl_weights(policy, file)
    assert caught.value.file == str(file)


def test_weights_in_the_format_without_sums_are_read(base: Path, tmp_path: Path) -> None:
    file, trained = tmp_path / "full_weights.pt", trained_policy(base)
    torch.save(of_rlinf(dict(trained.state_dict())), file, _use_new_zipfile_serialization=False)
    played = load_groot(base, SETTINGS, INPUTS)
    overlay_rl_weights(played, file)
    assert torch.equal(played.predict(observation()), trained.predict(observation()))


def test_a_noise_network_is_kept_where_it_fits(base: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, rl_head_config=RlHeadConfig(noise_method="flow_noise"))
    trained = load_groot(base, settings, INPUTS, seed=1)
    file = tmp_path / "full_weights.pt"
    torch.save(dict(trained.state_dict()), file)
    played = load_groot(base, settings, INPUTS, seed=2)
    overlay_rl_weights(played, file)
    assert all(torch.equal(tensor, played.state_dict()[name]) for name, tensor in trained.state_dict().items())

"""Exported folders: the published layout, bit-equal when loaded again, and whole or not there."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from official_layout import (
    INPUTS,
    INSTRUCTION,
    OUTPUT_LAYER,
    SMALL,
    config_json,
    metadata_json,
    official_shapes,
    write_official,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from regrasp.checkpoint.run_record import RunRecord
from regrasp.checkpoint.write import CheckpointContent, write_checkpoint
from regrasp.cli.main import main
from regrasp.engine.policies import overlay_rl_weights
from regrasp.envs.contract import Observation
from regrasp.errors import UserError
from regrasp.folders import CHECKSUMS
from regrasp.models.config import ExportOptions, RlHeadConfig
from regrasp.models.groot import export as exporting
from regrasp.models.groot.checkpoint import load_groot
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.origin import Origin, read_origin
from regrasp.stages.export import export

SETTINGS = GrootModelConfig(num_action_chunks=3, action_dim=5, value_head_hidden=(8,))
PADDED = replace(SETTINGS, rl_head_config=RlHeadConfig(padding_value=60))
BATCH = 2


def observation() -> Observation:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (BATCH, 2, 28, 28, 3), generator=generator, dtype=torch.uint8)
    return Observation(
        images={"main": images[:, 0], "extra_0": images[:, 1]},
        state={"state": torch.randn(BATCH, 5, generator=generator)},
        instruction=[INSTRUCTION] * BATCH,
    )


def trained_policy(base: Path) -> GrootPolicy:
    """The base model with a head that training has changed."""
    policy = load_groot(base, SETTINGS, INPUTS)
    generator = torch.Generator().manual_seed(9)
    for _, parameter in policy.trainable("head"):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    return policy


def checkpoint(policy: GrootPolicy, folder: Path, *, with_model: bool = True) -> Path:
    content = CheckpointContent(
        model_state=policy.state_dict(),
        frozen_names=frozenset(),
        optimizer_state={},
        tensors={},
        state={},
        export=policy.save if with_model else None,
    )
    return write_checkpoint(folder, 7, content)


def weights(folder: Path) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        merged |= load_file(file)
    return merged


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    write_official(folder, embedding="both")
    return folder


@pytest.mark.parametrize("with_model", [True, False], ids=["model", "full_weights"])
def test_a_trained_policy_comes_back_bit_for_bit(base: Path, tmp_path: Path, with_model: bool):
    policy = trained_policy(base)
    step = checkpoint(policy, tmp_path / "checkpoints", with_model=with_model)
    out = export(ExportOptions(base, tmp_path / "out", rl_model_path=step, max_shard_bytes=100_000))
    again = load_groot(out, inputs=None if with_model else INPUTS)
    expected = {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith("value_head.")}
    assert again.state_dict().keys() == expected.keys() == weights(out).keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in expected.items())
    played = load_groot(base, inputs=INPUTS, dtype=torch.float32)
    overlay_rl_weights(played, step)
    assert torch.equal(again.predict(observation()), played.predict(observation()))


@pytest.mark.parametrize("place", ["actor", "actor/model_state_dict/full_weights.pt"])
def test_a_place_inside_a_checkpoint_is_exported_as_the_checkpoint_is(base: Path, tmp_path: Path, place: str):
    settings = replace(PADDED, denoising_steps=6)
    step = checkpoint(load_groot(base, settings, INPUTS), tmp_path / "checkpoints")
    out = export(ExportOptions(base, tmp_path / "out", rl_model_path=step / place))
    again = load_groot(out)
    assert again.processor.config.sequence_length == 60
    assert again.settings.denoising_steps == 6
    assert json.loads((out / "config.json").read_text())["action_head_cfg"]["num_inference_timesteps"] == 6


def test_other_weights_that_lie_in_a_checkpoint_are_exported_themselves(base: Path, tmp_path: Path):
    step = checkpoint(load_groot(base, SETTINGS, INPUTS), tmp_path / "checkpoints")
    other = step / "other" / "full_weights.pt"
    other.parent.mkdir()
    trained = trained_policy(base).state_dict()
    torch.save(trained, other)
    out = weights(export(ExportOptions(base, tmp_path / "out", rl_model_path=other)))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in out.items())


def test_a_checkpoint_of_which_only_the_model_is_left_is_exported(base: Path, tmp_path: Path):
    step = checkpoint(trained_policy(base), tmp_path / "checkpoints")
    shutil.rmtree(step / "actor")
    out = weights(export(ExportOptions(base, tmp_path / "out", rl_model_path=step)))
    stored = weights(step / "model")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in out.items())


def test_a_policy_loads_with_the_denoising_steps_it_was_saved_with(base: Path, tmp_path: Path):
    policy = load_groot(base, replace(SETTINGS, num_action_chunks=4, denoising_steps=2, add_value_head=False), INPUTS)
    policy.save(tmp_path / "saved")
    again = load_groot(tmp_path / "saved")
    assert again.settings.denoising_steps == 2
    assert torch.equal(again.predict(observation())[:, :4], policy.predict(observation()))
    assert load_groot(base, inputs=INPUTS).settings.denoising_steps == 4


def test_weights_are_not_laid_over_a_base_model_with_other_inputs(base: Path, tmp_path: Path):
    policy = load_groot(base, PADDED, INPUTS)
    step = checkpoint(policy, tmp_path / "checkpoints")
    with pytest.raises(UserError, match="inputs in another way") as caught:
        overlay_rl_weights(load_groot(base, SETTINGS, INPUTS), step)
    assert (caught.value.key, caught.value.value) == ("--rl_model_path", "sequence_length")
    assert str(step / "model") in str(caught.value.fix)
    overlay_rl_weights(load_groot(base, PADDED, INPUTS), step)
    sibling = tmp_path / "sibling"
    shutil.copytree(base, sibling)
    metadata = json.loads((sibling / "experiment_cfg/metadata.json").read_text())
    entry = metadata[INPUTS.embodiment_tag]["statistics"]["action"]
    next(iter(entry.values()))["max"][0] += 1.0
    (sibling / "experiment_cfg/metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="inputs in another way") as caught:
        overlay_rl_weights(load_groot(sibling, PADDED, INPUTS), step)
    assert caught.value.value == "statistics"


def test_the_base_model_itself_keeps_its_dtype(base: Path, tmp_path: Path):
    out = export(ExportOptions(base, tmp_path / "out"))
    stored, written = weights(base), weights(out)
    assert OUTPUT_LAYER not in written
    assert not any("vision_model.head." in name for name in written)
    assert all(tensor.dtype == torch.bfloat16 and torch.equal(tensor, stored[name]) for name, tensor in written.items())


def test_a_dtype_that_is_asked_for(base: Path, tmp_path: Path):
    policy = trained_policy(base)
    step = checkpoint(policy, tmp_path)
    out = export(ExportOptions(base, tmp_path / "out", step, dtype=torch.bfloat16))
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, policy.state_dict()[name].bfloat16())


def test_the_files_are_the_published_ones(base: Path, tmp_path: Path):
    step = checkpoint(trained_policy(base), tmp_path)
    out = export(ExportOptions(base, tmp_path / "out", step, max_shard_bytes=200_000))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(file.name for file in out.glob("*.safetensors"))
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert len(shards) > 2
    held = {}
    for shard in shards:
        with safe_open(out / shard, "pt") as content:
            held |= dict.fromkeys(content.keys(), shard)
    assert index["weight_map"] == held
    assert held.keys() == official_shapes(SMALL).keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights(out).values())
    sizes = [sum(tensor.nbytes for tensor in load_file(out / shard).values()) for shard in shards]
    largest = max(tensor.nbytes for tensor in weights(out).values())
    assert max(sizes) <= max(200_000, largest)
    assert {path.name for path in out.iterdir()} - {CHECKSUMS} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "experiment_cfg",
        "made_for.json",
        "model.safetensors.index.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        *shards,
    }
    assert json.loads((out / "experiment_cfg" / "metadata.json").read_text()) == metadata_json()


def test_config_json_keeps_every_published_key_and_value(base: Path, tmp_path: Path):
    def contained(part: Any, whole: Any) -> bool:
        if not isinstance(part, dict):
            return part == whole
        return all(key in whole and contained(value, whole[key]) for key, value in part.items())

    content = json.loads((export(ExportOptions(base, tmp_path / "a")) / "config.json").read_text())
    assert contained(config_json(SMALL), content)
    trained_policy(base).save(tmp_path / "ours")
    content = json.loads((export(ExportOptions(tmp_path / "ours", tmp_path / "b")) / "config.json").read_text())
    published = config_json(SMALL)
    published["backbone_cfg"]["eagle_path"] = None
    assert contained({**published, "torch_dtype": "float32"}, content)
    assert content["backbone_cfg"].keys() == published["backbone_cfg"].keys()


def test_the_value_head_stays_only_where_asked_for(base: Path, tmp_path: Path):
    policy = trained_policy(base)
    step = checkpoint(policy, tmp_path)
    plain = export(ExportOptions(base, tmp_path / "plain", step))
    assert not any(name.startswith("value_head.") for name in weights(plain))
    kept = export(ExportOptions(base, tmp_path / "kept", step, with_value_head=True))
    again = load_groot(kept, SETTINGS)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in policy.state_dict().items())
    with pytest.raises(UserError, match="no value head"):
        export(ExportOptions(plain, tmp_path / "none", with_value_head=True))


def test_the_experiment_that_is_asked_for_is_kept_and_not_that_of_the_model(base: Path, tmp_path: Path):
    given = shutil.copytree(base, tmp_path / "given")
    Origin(("Other-Task",)).made_with("theirs", "actor: {}\n").save(given)
    origin = Origin(("Regrasp-Pick-Cube-v0",)).made_with("mine", "env: {}\n")
    assert read_origin(exporting.export(ExportOptions(given, tmp_path / "out", origin=origin))) == origin


def test_nothing_is_overwritten(base: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    export(ExportOptions(base, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    with pytest.raises(UserError, match="not empty") as error:
        export(ExportOptions(base, tmp_path / "out"))
    assert error.value.key == "--output"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [100, 3_000, 60_000], ids=["config", "tokenizer", "weights"])
def test_a_disk_that_fills_up_leaves_nothing(base: Path, tmp_path: Path, room: int):
    with largest_file(room), pytest.raises(UserError, match="could not be written") as error:
        export(ExportOptions(base, tmp_path / "out", dtype=torch.float32))
    assert error.value.file == str(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_too_small_a_disk_is_noticed_before_writing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"GB are needed and 0\.00 GB are free"):
        export(ExportOptions(base, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "save_shards", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(ExportOptions(base, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_mistakes_are_named(base: Path, tmp_path: Path):
    out = tmp_path / "out"
    MlpPolicy(state_dim=3, action_dim=2).save(tmp_path / "mlp")
    with pytest.raises(UserError, match="No such model folder"):
        export(ExportOptions(tmp_path / "nowhere", out))
    with pytest.raises(UserError, match=r"full_weights\.pt"):
        export(ExportOptions(base, out, tmp_path / "mlp"))
    assert not out.exists()


def test_rl_weights_of_another_model_or_with_adapters(base: Path, tmp_path: Path):
    other = tmp_path / "other"
    write_official(other, sizes=replace(SMALL, dit_layers=2))
    policy = load_groot(other, SETTINGS, INPUTS)
    with pytest.raises(UserError, match="another model") as error:
        export(ExportOptions(base, tmp_path / "out", checkpoint(policy, tmp_path / "a")))
    assert error.value.key == "--rl_model_path"
    with pytest.raises(UserError, match=r"missing: action_head\.model\.transformer_blocks\.2"):
        export(ExportOptions(base, tmp_path / "out", checkpoint(policy, tmp_path / "b", with_model=False)))
    torch.save({"x.lora_A.default.weight": torch.zeros(1)}, tmp_path / "full_weights.pt")
    with pytest.raises(UserError, match="adapters that are not merged"):
        export(ExportOptions(base, tmp_path / "out", tmp_path / "full_weights.pt"))


def test_a_damaged_checkpoint_is_not_exported(base: Path, tmp_path: Path):
    step = checkpoint(trained_policy(base), tmp_path)
    file = step / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"not sound: model/model\.safetensors"):
        export(ExportOptions(base, tmp_path / "out", step))


def test_the_command(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    step = checkpoint(trained_policy(base), tmp_path)
    arguments = ["export", "--model_path", str(base), "--rl_model_path", str(step), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--dtype", "bfloat16", "--max_shard_size", "0.1MB"]) == 0
    assert f"Model: {tmp_path / 'out'}" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert main(arguments) == 2
    assert "error: The output folder is not empty" in capsys.readouterr().err


def test_the_newest_checkpoint_of_a_runs_folder_is_exported(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, policy = tmp_path / "run", trained_policy(base)
    step = checkpoint(policy, run / "experiment" / "checkpoints")
    RunRecord(run).begin(0, "regrasp train", "seed: 1\n")
    RunRecord(run).add(step)
    output = tmp_path / "out"
    assert main(["export", "--model_path", str(base), "--rl_model_path", str(run), "--output", str(output)]) == 0
    assert f"The newest checkpoint of {run}: {step}\n" in capsys.readouterr().out
    trained = policy.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in weights(output).items())

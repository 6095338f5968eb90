"""Bad model folders on the command line: each one clear line that names file, key and value, and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import official_layout as official
import pytest
import torch
from official_layout import OUTPUT_LAYER, SMALL, embodiment, write_official
from safetensors.torch import load_file, save_file

from regrasp.cli.main import main

WIDTHS = {"state": {"arm": 3, "gripper": 1}, "action": {"arm": 3, "gripper": 1}}
KEYS = "[{key: arm, mode: min_max}, {key: gripper, mode: min_max}]"
SLICES = "[{gr00t_key: arm, slice: [0, 3]}, {gr00t_key: gripper, slice: [3, 4]}]"
CONFIG, METADATA, EAGLE = "config.json", "experiment_cfg/metadata.json", "eagle2_hg_model/config.json"
INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00002.safetensors"
PPO = ("--config_name", "pick_cube_ppo_groot")
Damage = Callable[[Path], Any]


def mapping(slices: str = SLICES, data: str = f"state: {KEYS}, action: {KEYS}", *more: str) -> list[str]:
    """The shipped experiment, with the checkpoint's names."""
    names = (
        f"gr00t_mapping={{video: {{main_images: video.front}}, state: {slices}}}",
        f"data_config={{video: [front], {data}}}",
        "embodiment_tag_id=null",
        *more,
    )
    return ["~pretrain", *(f"env.{name}.mapping.{text}" for name in ("train", "eval") for text in names)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of the shipped task in the published layout."""
    made = {}
    for layout, num_shards in (("one file", 1), ("two shards", 2)):
        made[layout] = folder = tmp_path_factory.mktemp("published")
        write_official(folder, num_shards=num_shards)
        official.write(folder / METADATA, {"new_embodiment": embodiment("new_embodiment", WIDTHS, ("front",))})
    return made


@pytest.fixture
def shards(folders: dict[str, Path]) -> Path:
    return folders["two shards"]


@pytest.fixture(autouse=True)
def _no_cached_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regrasp.models.groot.processing.tokenizer.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("regrasp.models.groot.processing.tokenizer.constants.HF_HOME", str(tmp_path / "home"))


def edited(name: str, *path: str, **changes: Any) -> Damage:
    """Change keys of an object in a JSON file; a value of `...` removes the key."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        place = content
        for step in path:
            place = place[step]
        for key, value in changes.items():
            if value is ...:
                del place[key]
            else:
                place[key] = value
        (folder / name).write_text(json.dumps(content))

    return damage


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def cut(name: str, part: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * part)])

    return damage


def removed(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def tensors(**changes: torch.Tensor | None) -> Damage:
    """Replace, add or (None) remove tensors of the action head, in a checkpoint of one file."""

    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        for name, value in changes.items():
            key = "action_head." + name.replace("__", ".")
            if value is None:
                del state[key]
            else:
                state[key] = value
        save_file(state, folder / "model.safetensors")

    return damage


def duplicated(folder: Path) -> None:
    first, second = (load_file(folder / name) for name in ("model-00001-of-00002.safetensors", SECOND))
    name = min(first)
    save_file({**second, name: first[name].clone()}, folder / SECOND)


def pickled(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def without_tokenizer(folder: Path) -> None:
    for file in (*folder.rglob("tokenizer*.json"), *folder.rglob("vocab.json")):
        file.unlink()


def complain(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command says."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error[error.index("error: ") :]


HEAD = ("action_head_cfg",)
DIT = (*HEAD, "diffusion_model_cfg")
ARM = ("new_embodiment", "statistics", "state", "arm")
COSMOS = {"model_name": "nvidia/Cosmos-Reason2-2B", "select_layer": 12, "max_action_dim": 132}
IN_BOTH: dict[str, tuple[Damage, list[str]]] = {
    "N1.6 by its type": (edited(CONFIG, model_type="gr00t_n1_6"), ["GR00T N1.6", CONFIG, "'gr00t_n1_6'"]),
    "N1.7 by its class": (
        edited(CONFIG, model_type="custom", architectures=["Gr00tN1d7"]),
        ["GR00T N1.7", "Gr00tN1d7"],
    ),
    "N1.7 by its backbone": (text(CONFIG, json.dumps(COSMOS)), ["GR00T N1.7", "model_name", "Cosmos-Reason2"]),
    "no type": (edited(CONFIG, model_type=...), [CONFIG, "model_type", "gr00t_n1_5"]),
    "config is no JSON": (text(CONFIG, '{"model_type": '), ["Not valid JSON", CONFIG]),
    "config is no object": (text(CONFIG, "[]"), ["Not a JSON object", CONFIG]),
    "config is a folder": (lambda f: ((f / CONFIG).unlink(), (f / CONFIG).mkdir()), ["cannot be read", CONFIG]),
    "no action head": (edited(CONFIG, action_head_cfg=...), ["lacks a block", CONFIG, "action_head_cfg"]),
    "no network": (edited(CONFIG, *DIT, num_layers=-1), ["diffusion_model_cfg.num_layers", "-1"]),
    "no heads": (edited(CONFIG, *DIT, num_attention_heads=0), ["num_attention_heads", "at least 1"]),
    "no patches": (edited(EAGLE, "vision_config", patch_size=0), [EAGLE, "vision_config.patch_size"]),
    "odd heads": (
        edited(EAGLE, "vision_config", num_attention_heads=3),
        [EAGLE, "vision_config.hidden_size", "multiple"],
    ),
    "too few positions": (edited(CONFIG, *HEAD, max_seq_len=4), ["action_head_cfg.max_seq_len", "at least 5"]),
    "no eagle": (removed(EAGLE), ["backbone_embedding_dim", "24", "2048", f"as {EAGLE}"]),
    "eagle is no JSON": (text(EAGLE, "{"), ["Not valid JSON", EAGLE]),
    "other sizes": (
        edited(CONFIG, *HEAD, max_state_dim=32),
        ["of another shape", "(32, 64, 12) instead of (32, 32, 12)"],
    ),
    "no metadata": (removed(METADATA), [METADATA, "complete model folder"]),
    "metadata is no JSON": (text(METADATA, "{"), ["Not valid JSON", METADATA]),
    "no tokenizer": (without_tokenizer, ["without a tokenizer", "hf download lerobot/eagle2hg-processor-groot-n1p5"]),
    "tokenizer is no JSON": (text("vocab.json", "{"), ["Not valid JSON", "vocab.json"]),
}


SHARDS: dict[str, tuple[Damage, list[str]]] = {
    "half a shard": (cut(SECOND, 0.5), ["Not a sound safetensors file", SECOND, "Download"]),
    "an empty shard": (cut(SECOND, 0.0), ["Not a sound safetensors file", SECOND]),
    "a git-lfs pointer": (text(SECOND, "version https://git-lfs.github.com/spec/v1\n"), ["git lfs pull", SECOND]),
    "a missing shard": (removed(SECOND), ["1 of 2 weight files are missing", SECOND, INDEX]),
    "a tensor in two shards": (duplicated, ["Two weight files hold action_head.", SECOND]),
    "a missing index": (
        removed(INDEX),
        ["index of the weights is missing; 2 weight files", INDEX, "Download"],
    ),
    "an index without a map": (text(INDEX, "{}"), ["weight_map", INDEX]),
    "an index that is no JSON": (text(INDEX, "{"), ["Not a JSON file", INDEX]),
    "a tensor that is not there": (edited(INDEX, "weight_map", lost=SECOND), ["does not hold", "lost", SECOND]),
    "pickled weights": (pickled, ["No weights", "pickled ones are not read"]),
    "no weights": (lambda f: [file.unlink() for file in f.glob("model*")], ["No weights", "model.safetensors"]),
}


def without_embedding(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state[OUTPUT_LAYER]
    save_file(state, folder / "model.safetensors")


TENSORS: dict[str, tuple[Damage, list[str]]] = {
    "missing": (tensors(vlln__weight=None), ["1 missing: action_head.vlln.weight"]),
    "unexpected": (tensors(mask_token=torch.zeros(3)), ["1 unexpected: action_head.mask_token"]),
    "misshapen": (
        tensors(vlln__weight=torch.zeros(3)),
        ["1 of another shape: action_head.vlln.weight (3,) instead of (24,)"],
    ),
    "whole numbers": (tensors(vlln__weight=torch.zeros(24, dtype=torch.int32)), ["Whole numbers", "vlln.weight"]),
    "quantised": (tensors(vlln__weight=torch.zeros(24).to(torch.float8_e4m3fn)), ["F8_E4M3", "quantised"]),
    "no word embedding": (without_embedding, ["1 missing", "embed_tokens.weight"]),
}


CASES = [("two shards", *item) for item in (IN_BOTH | SHARDS).items()] + [
    ("one file", *item) for item in TENSORS.items()
]


@pytest.mark.parametrize(
    ("layout", "damage", "parts"), [(layout, *case) for layout, _, case in CASES], ids=[name for _, name, _ in CASES]
)
def test_a_bad_folder_is_refused_by_training_and_export(
    folders: dict[str, Path],
    layout: str,
    damage: Damage,
    parts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(folders[layout], tmp_path / "model")
    damage(folder)
    output = tmp_path / "out"
    for arguments in (
        ["train", "--model_path", str(folder), "--dry_run", *mapping()],
        ["export", "--model_path", str(folder), "--output", str(output)],
    ):
        error = complain(arguments, capsys)
        assert all(part in error for part in (*parts, str(folder))), error
    assert not output.exists()


NUMBERS: dict[str, tuple[Damage, list[str]]] = {
    "no statistics": (edited(METADATA, "new_embodiment", statistics=...), [METADATA, "new_embodiment.statistics"]),
    "no modalities": (edited(METADATA, "new_embodiment", modalities=...), [METADATA, "new_embodiment.modalities"]),
    "no maximum": (edited(METADATA, *ARM, max=...), ["Not a list of numbers", "statistics.state.arm.max"]),
    "words": (edited(METADATA, *ARM, max=["a"] * 3), ["Not a list of numbers", "statistics.state.arm.max"]),
    "a matrix": (edited(METADATA, *ARM, max=[[1.0] * 3]), ["Not a list of numbers", "statistics.state.arm.max"]),
    "one number": (edited(METADATA, *ARM, max=3), ["Not a list of numbers", "statistics.state.arm.max", "3"]),
    "null": (edited(METADATA, *ARM[:-1], arm=None), ["Not a list of numbers", "statistics.state.arm"]),
    "two widths": (edited(METADATA, *ARM, max=[1.0]), ["as many numbers", "statistics.state.arm"]),
    "not a number": (edited(METADATA, *ARM, max=[float("nan")] * 3), ["not finite", "min_max", "statistics.state.arm"]),
    "other widths": (
        edited(METADATA, "new_embodiment", "modalities", "state", "arm", shape=[4]),
        ["another width", "statistics.state.arm", "3", "4, as new_embodiment.modalities.state.arm.shape"],
    ),
    "a shape that is none": (
        edited(METADATA, "new_embodiment", "modalities", "state", "arm", shape=[3, 1]),
        ["[3, 1]", "modalities.state.arm"],
    ),
    "no embodiment": (text(METADATA, "{}"), ["Metadata of no embodiment", METADATA]),
    "an embodiment that is none": (edited(METADATA, new_embodiment=[]), ["Not an object", "new_embodiment"]),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_metadata_that_does_not_say(
    shards: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, parts = NUMBERS[case]
    folder = shutil.copytree(shards, tmp_path / "model")
    damage(folder)
    error = complain(["train", "--model_path", str(folder), "--dry_run", *mapping()], capsys)
    assert all(part in error for part in parts), error


NAMES: dict[str, tuple[list[str], list[str]]] = {
    "an embodiment that is not there": (
        mapping(SLICES, f"state: {KEYS}, action: {KEYS}", "embodiment_tag=franka"),
        ["mapping.embodiment_tag", "'franka'", "new_embodiment", METADATA],
    ),
    "slices of other widths": (
        mapping("[{gr00t_key: arm, slice: [0, 2]}, {gr00t_key: gripper, slice: [2, 4]}]"),
        ["arm [0, 2] (2 wide)", "arm 3 wide", "mapping.gr00t_mapping.state"],
    ),
    "slices that overlap": (
        mapping("[{gr00t_key: arm, slice: [0, 3]}, {gr00t_key: gripper, slice: [2, 3]}]"),
        ["mapping.gr00t_mapping.state", "arm [0, 3] and gripper [2, 3]", "gripper [3, 4]"],
    ),
    "a state that has no slice": (
        mapping("[{gr00t_key: arm, slice: [0, 3]}]"),
        ["gripper missing", "gripper 1 wide"],
    ),
    "a state that is not there": (
        mapping(SLICES, "state: [legs], action: [arm, gripper]"),
        ["A key of the data configuration", "statistics.state.legs", "arm, gripper", METADATA],
    ),
    "an action that is not there": (
        mapping(SLICES, f"state: {KEYS}, action: [legs]"),
        ["A key of the data configuration", "action.legs", METADATA],
    ),
    "an action of another width": (
        [
            *mapping(SLICES, f"state: {KEYS}, action: {KEYS}", "action_mapping={suffix_pad: 1}"),
            "actor.model.action_dim=3",
        ],
        ["actor.model.action_dim", "3", "4: arm 3, gripper 1 wide (new_embodiment)", METADATA],
    ),
    "a chunk that is too long": (
        [*mapping(), "actor.model.num_action_chunks=6"],
        ["actor.model.num_action_chunks", "6", "1 to 5"],
    ),
    "no room for words": (
        [*mapping(), "actor.model.rl_head_config.padding_value=5"],
        ["actor.model.rl_head_config.padding_value", "no room for words"],
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_an_experiment_that_does_not_match_the_metadata(
    shards: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, parts = NAMES[case]
    error = complain(["train", *PPO, "--model_path", str(shards), "--dry_run", *overrides], capsys)
    assert all(part in error for part in parts), error


@pytest.mark.parametrize("command", ["play", "train --only_eval"])
def test_play_refuses_it_too_and_leaves_nothing(
    shards: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(shards, tmp_path / "model")
    cut(SECOND, 0.5)(folder)
    monkeypatch.chdir(tmp_path)
    error = complain(
        [*command.split(), "--model_path", str(folder), "--num_envs", "2", "env.eval.num_workers=1", *mapping()], capsys
    )
    assert "Not a sound safetensors file" in error
    assert not list(tmp_path.rglob("*.yaml"))


@pytest.mark.parametrize("layout", ["one file", "two shards"])
def test_a_good_one_is_described(folders: dict[str, Path], layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *PPO, "--model_path", str(folders[layout]), "--dry_run", *mapping()]) == 0
    features = 4 * ((82 + (SMALL.image // SMALL.patch) ** 2) * SMALL.text_width + SMALL.state)
    assert f"1536 decisions x {features / 1e3:.0f} kB" in capsys.readouterr().out

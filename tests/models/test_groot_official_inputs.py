"""Inputs of a folder in the published layout: no processor_config.json, several embodiments, the experiment's names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_tokenizer import write_eagle_tokenizer
from groot_toys import toy_config, toy_settings

from regrasp.envs.contract import Observation, numbered_cameras
from regrasp.envs.mapping import named_state
from regrasp.envs.selection import Range
from regrasp.errors import UserError
from regrasp.models.config import DatasetFacts
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.metadata import METADATA_FILE
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.inputs import InputNames
from regrasp.models.normalization import Statistics

PARTS: tuple[str, ...] = ("left_arm", "right_arm", "left_hand", "right_hand")
TROCAR = InputNames(
    embodiment_tag="new_embodiment",
    data_config="gr00t_config:IsaacLabDataConfig",
)
VIEWS = ("room_view", "left_wrist_view", "right_wrist_view")
RANGES = {key: (7 * i, 7 * i + 7) for i, key in enumerate(PARTS)}
DROID = InputNames(embodiment_tag="oxe_droid")


def entry(
    video: list[str], state: dict[str, int], action: dict[str, int], **modalities: dict[str, Any]
) -> dict[str, Any]:
    """One embodiment of a published metadata.json; minimum -1 - i and maximum 1 + 2 i in dimension i."""

    def numbers(widths: dict[str, int]) -> dict[str, Any]:
        return {
            key: {
                "max": [1.0 + 2 * i for i in range(width)],
                "min": [-1.0 - i for i in range(width)],
                "mean": [0.5] * width,
                "std": [2.0] * width,
                "q01": [-0.5] * width,
                "q99": [0.5] * width,
            }
            for key, width in widths.items()
        }

    def described(widths: dict[str, int]) -> dict[str, Any]:
        plain = {"absolute": True, "rotation_type": None, "continuous": True}
        return {key: plain | {"shape": [width]} | modalities.get(key, {}) for key, width in widths.items()}

    return {
        "statistics": {"state": numbers(state), "action": numbers(action)},
        "modalities": {
            "video": {key: {"resolution": [256, 256], "channels": 3, "fps": 20.0} for key in video},
            "state": described(state),
            "action": described(action),
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    joints = dict.fromkeys(PARTS, 7)
    metadata = {
        "new_embodiment": entry(["room_view", "left_wrist_view", "right_wrist_view"], joints, joints),
        "oxe_droid": entry(
            ["exterior_image_1", "exterior_image_2", "wrist_image"],
            {"eef_position": 3, "eef_rotation": 3, "gripper_position": 1},
            {"eef_position_delta": 3, "eef_rotation_delta": 3, "gripper_position": 1},
            eef_rotation={"rotation_type": "euler_angles_rpy"},
            eef_rotation_delta={"rotation_type": "euler_angles_rpy", "absolute": False},
        ),
        "franka": entry(["front", "wrist"], {"single_arm": 7, "gripper": 1}, {"single_arm": 7, "gripper": 1}),
    }
    (tmp_path / "experiment_cfg").mkdir()
    (tmp_path / METADATA_FILE).write_text(json.dumps(metadata))
    return tmp_path


@pytest.fixture
def groot(folder: Path) -> GrootConfig:
    ids = write_eagle_tokenizer(folder, trained=True)
    config = toy_config(max_state_dim=64, max_action_dim=32, num_embodiments=32, vocab_size=400)
    eagle = dataclasses.replace(
        config.eagle_cfg, image_token_index=ids["<IMG_CONTEXT>"], pad_token_index=ids["<|endoftext|>"]
    )
    return dataclasses.replace(config, eagle_cfg=eagle)


def load(groot: GrootConfig, folder: Path, inputs: InputNames | None, **changes: Any) -> GrootProcessor:
    return GrootProcessor.load(groot, folder, inputs and dataclasses.replace(inputs, **changes))


def observation(
    state_dim: int, batch: int = 2, names: tuple[str, ...] | None = None, ranges: Mapping[str, Range] | None = None
) -> Observation:
    """Camera v of three shows only the number v."""
    images = torch.arange(3, dtype=torch.uint8)[None, :, None, None, None].expand(batch, -1, 28, 28, 3)
    state = torch.linspace(-1, 1, batch * state_dim).reshape(batch, state_dim)
    return Observation(
        images=dict(zip(names or numbered_cameras(3), images.unbind(1), strict=True)),
        state=named_state(state, ranges or {}),
        instruction=["go"] * batch,
    )


def edit_metadata(folder: Path, *path: str, value: Any = None) -> None:
    """Replace a value of metadata.json, or remove it."""
    file = folder / METADATA_FILE
    content = node = json.loads(file.read_text())
    for step in path[:-1]:
        node = node[step]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    file.write_text(json.dumps(content))


def test_the_trocar_experiment(groot: GrootConfig, folder: Path) -> None:
    processor = load(groot, folder, TROCAR).padded_to(400)
    seen = observation(28, names=VIEWS, ranges=RANGES)
    inputs = processor.prepare(seen)
    assert inputs["images"].shape == (2, 3, 28, 28, 3)
    assert inputs["images"][0, :, 0, 0, 0].tolist() == [1, 2, 0]
    assert inputs["input_ids"].shape == (2, 400)
    expected = [f(seen.state["state"][:, 7 * i : 7 * i + 7]) for i in range(4) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(inputs["state"][:, :56], torch.cat(expected, 1))
    assert not inputs["state"][:, 56:].any()
    assert (processor.config.embodiment_id, processor.state.width, processor.action.width) == (31, 28, 28)


def test_its_actions_are_min_max_of_each_part(groot: GrootConfig, folder: Path) -> None:
    processor = load(groot, folder, TROCAR)
    low = torch.tensor([-1.0 - i for i in range(7)]).repeat(4)
    high = torch.tensor([1.0 + 2 * i for i in range(7)]).repeat(4)
    torch.testing.assert_close(processor.unnormalize_actions(torch.full((28,), -1.0)), low)
    torch.testing.assert_close(processor.unnormalize_actions(torch.full((28,), 1.0)), high)
    actions = torch.randn(3, 4, 28, generator=torch.Generator().manual_seed(0))
    assert processor.normalize_actions(actions).shape == (3, 4, 32)
    back = processor.unnormalize_actions(processor.normalize_actions(actions)[..., :28])
    torch.testing.assert_close(back, actions)


def test_slices_may_name_the_parts_in_any_order_and_leave_some_out(groot: GrootConfig, folder: Path) -> None:
    ranges = {key: (1 + 7 * i, 8 + 7 * i) for i, key in enumerate(reversed(PARTS))} | {
        "torso": (0, 1),
        "neck": (29, 31),
    }
    states = torch.randn(2, 28, generator=torch.Generator().manual_seed(1))
    parts = states.unflatten(1, (4, 7))
    wide = torch.cat([torch.zeros(2, 1), parts.flip(1).flatten(1), torch.ones(2, 2)], 1)
    processor = load(groot, folder, TROCAR)
    whole = dataclasses.replace(observation(28), state={"state": states})
    named = dataclasses.replace(whole, state=named_state(wide, ranges))
    assert torch.equal(processor.prepare(named)["state"], processor.prepare(whole)["state"])
    del named.state["left_hand"]
    with pytest.raises(UserError, match=r"missing: left_hand; unknown: torso, neck, state"):
        processor.prepare(named)


def test_a_pretrained_embodiment_needs_no_data_config(groot: GrootConfig, folder: Path) -> None:
    processor = load(groot, folder, DROID)
    assert processor.config.embodiment_id == 17
    assert processor.state.normalized_width == 3 + 6 + 1
    states = torch.tensor([[-1.0, 3.0, 5.0, 0.0, 0.0, torch.pi / 2, 0.0]])
    expected = torch.tensor([-1.0, 1.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    seen = dataclasses.replace(observation(7, 1), state={"state": states})
    torch.testing.assert_close(processor.prepare(seen)["state"][0, :10], expected, atol=1e-6, rtol=0)
    assert processor.prepare(seen)["images"][0, :, 0, 0, 0].tolist() == [0, 1, 2]


def test_its_actions_are_raw_a_rotation_and_a_switch(groot: GrootConfig, folder: Path) -> None:
    processor = load(groot, folder, DROID)
    policy_units = torch.tensor([0.1, 0.2, 0.3, 0.0, 0.0, 1.2, 0.7])
    physical = processor.unnormalize_actions(policy_units)
    torch.testing.assert_close(physical, torch.tensor([0.1, 0.2, 0.3, 0.0, 0.0, 1.2, 1.0]), atol=1e-6, rtol=0)


def test_a_policy_takes_its_sizes_from_the_names(groot: GrootConfig, folder: Path) -> None:
    processor = load(groot, folder, TROCAR)
    spec = GrootPolicy(groot, processor, toy_settings(action_dim=28)).spec
    assert (spec.state_dim, spec.action_dim, spec.num_views, spec.embodiment_id) == (28, 28, 3, 31)
    assert spec.state_parts == tuple((key, 7) for key in PARTS)
    with pytest.raises(UserError) as error:
        GrootPolicy(groot, processor, toy_settings(action_dim=27))
    assert error.value.key == "actor.model.action_dim"
    assert str(error.value.expected).startswith("28: ")


def test_saved_and_loaded_it_is_the_same(groot: GrootConfig, folder: Path, tmp_path: Path) -> None:
    processor = load(groot, folder, TROCAR)
    saved = tmp_path / "saved"
    saved.mkdir()
    processor.save(saved)
    assert json.loads((saved / METADATA_FILE).read_text()) == json.loads((folder / METADATA_FILE).read_text())
    for names in (TROCAR, dataclasses.replace(TROCAR, data_config=None)):
        again = load(groot, saved, names)
        assert again.config == processor.config
        before, after = (p.prepare(observation(28)) for p in (processor, again))
        assert all(torch.equal(before[key], after[key]) for key in ("images", "input_ids", "state"))
    bare = GrootProcessor.load(groot, saved)
    assert bare.prepare(observation(28))["images"][0, :, 0, 0, 0].tolist() == [0, 1, 2]


def test_another_data_config_than_the_folders_is_an_error(groot: GrootConfig, folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    load(groot, folder, TROCAR).save(saved)
    with pytest.raises(UserError, match="Another data configuration") as error:
        load(groot, saved, TROCAR, data_config="unitree_g1")
    assert error.value.key == "mapping.data_config"


def test_the_only_embodiment_needs_no_name(groot: GrootConfig, folder: Path) -> None:
    for tag in ("new_embodiment", "franka"):
        edit_metadata(folder, tag)
    assert GrootProcessor.load(groot, folder).config.embodiment_tag == "oxe_droid"


@pytest.mark.parametrize(
    ("changes", "key", "parts"),
    [
        ({"embodiment_tag": None}, "mapping.embodiment_tag", ("new_embodiment, oxe_droid, franka", "several")),
        ({"embodiment_tag": "gr1"}, "mapping.embodiment_tag", ("'gr1'", "new_embodiment, oxe_droid, franka")),
        ({"embodiment_tag": "franka"}, "mapping.embodiment_tag_id", ("'franka'", "oxe_droid 17")),
        ({"data_config": None}, "mapping.data_config", ("'new_embodiment'", "data_config:", "mode: min_max")),
        ({"data_config": "my:Config"}, "mapping.data_config", ("'my:Config'", "data_config:")),
        ({"embodiment_tag_id": 32}, "mapping.embodiment_tag_id", ("0 to 31",)),
        ({"data_config": "so100"}, "new_embodiment.modalities.video.webcam", ("room_view, left_wrist_view",)),
        ({"data_config": "unitree_g1_full_body"}, "new_embodiment.modalities.video.rs_view", ("room_view",)),
    ],
)
def test_what_does_not_fit_is_named(
    groot: GrootConfig, folder: Path, changes: dict[str, Any], key: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as error:
        load(groot, folder, TROCAR, **changes)
    assert error.value.key == key
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (("statistics", "state", "left_arm"), None, "statistics.state.left_arm"),
        (("modalities", "action", "left_hand"), None, "modalities.action.left_hand"),
        (
            ("modalities", "state", "left_arm", "shape"),
            [6],
            "6, as new_embodiment.modalities.state.left_arm.shape says",
        ),
        (("modalities", "state", "left_arm", "shape"), [6, 1], "[width]"),
        (("modalities", "video"), None, "modalities.video"),
        (("statistics", "action", "left_arm", "q99"), None, "q99"),
    ],
)
def test_damaged_metadata_names_the_key(
    groot: GrootConfig, folder: Path, path: tuple[str, ...], value: Any, part: str
) -> None:
    edit_metadata(folder, "new_embodiment", *path, value=value)
    with pytest.raises(UserError) as error:
        load(groot, folder, TROCAR)
    assert part in str(error.value)
    assert error.value.file == str(folder / METADATA_FILE)


@pytest.mark.parametrize(
    ("kind", "key", "config", "part"),
    [
        ("state", "eef_position", {"key": "eef_position", "mode": "none", "rotation": "rotation_6d"}, "rotation_type"),
        ("state", "eef_rotation", {"key": "eef_rotation", "mode": "q99", "rotation": "rotation_6d"}, "mode none"),
        ("action", "eef_rotation_delta", {"key": "eef_rotation_delta", "rotation": "axis_angle"}, "mode none"),
        (
            "action",
            "eef_rotation_delta",
            {"key": "eef_rotation_delta", "mode": "none", "rotation": "quaternion"},
            "changes its width",
        ),
    ],
)
def test_rotations_that_cannot_be_scaled_or_undone(
    groot: GrootConfig, folder: Path, kind: str, key: str, config: dict[str, str], part: str
) -> None:
    block = {"video": ["wrist_image"], "state": ["eef_position"], "action": ["eef_position_delta"], kind: [config]}
    with pytest.raises(UserError) as error:
        load(groot, folder, DROID, data_config=block)
    assert part in str(error.value)


def test_new_data_keep_the_words_of_the_model_and_bring_the_rest(groot: GrootConfig, folder: Path) -> None:
    samples = torch.randn(50, 28, generator=torch.Generator().manual_seed(2))
    state, action = Statistics.of(samples), Statistics.of(3 * samples)
    facts = DatasetFacts(state, action, TROCAR, VIEWS, RANGES, fps=50.0)
    processor = GrootProcessor.for_data(groot, folder, facts)
    assert (processor.config.prompt, processor.config.embodiment_id) == ("eagle", 31)
    assert processor.config.sequence_length == 82 + 3 * 4
    assert processor.state.normalized_width == 56
    seen = processor.normalize_actions(3 * samples)[:, :28]
    torch.testing.assert_close(seen.amax(0), torch.ones(28))
    torch.testing.assert_close(seen.amin(0), -torch.ones(28))
    saved = processor.metadata.content
    assert saved["modalities"]["video"]["room_view"]["fps"] == 50.0
    assert saved["statistics"]["state"]["left_hand"] == state.columns(14, 21).to_mapping()


def test_new_data_without_names_are_one_state_and_one_action(groot: GrootConfig, folder: Path) -> None:
    samples = Statistics.of(torch.randn(50, 6, generator=torch.Generator().manual_seed(2)))
    names = InputNames(embodiment_tag="arm", embodiment_tag_id=5)
    facts = DatasetFacts(samples, samples.columns(0, 4), names, numbered_cameras(2), {}, fps=10.0)
    processor = GrootProcessor.for_data(groot, folder, facts)
    assert processor.config.data_config.video == ("main", "extra_0")
    assert (processor.state.width, processor.action.width, processor.config.embodiment_id) == (6, 4, 5)
    assert processor.metadata.tag == "arm"


@pytest.mark.parametrize(
    ("tag", "ranges", "key"),
    [
        ("new_embodiment", {}, "mapping.gr00t_mapping.state"),
        ("new_embodiment", {"left_arm": (0, 7), "right_arm": (7, 14)}, "mapping.data_config.action"),
        ("arm", RANGES, "mapping.embodiment_tag_id"),
    ],
)
def test_new_data_that_do_not_fit_the_data_config(
    groot: GrootConfig, folder: Path, tag: str, ranges: dict[str, Range], key: str
) -> None:
    samples = Statistics.identity(28)
    inputs = dataclasses.replace(TROCAR, embodiment_tag=tag)
    with pytest.raises(UserError) as error:
        GrootProcessor.for_data(groot, folder, DatasetFacts(samples, samples, inputs, VIEWS, ranges, fps=10.0))
    assert error.value.key == key

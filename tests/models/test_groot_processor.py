from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from groot_toys import ACTION_DIM, STATE_DIM, TEXT_LENGTH, toy_config, toy_observation, toy_processor, with_statistics

from regrasp.envs.data_config import KeyConfig
from regrasp.errors import UserError
from regrasp.models.groot.processing.data_config import PROCESSOR_FILE
from regrasp.models.groot.processing.metadata import METADATA_FILE, Kind, Metadata
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.normalization import Statistics


def test_prepare_gives_fixed_shapes_and_pads_with_zeros():
    config = toy_config()
    inputs = toy_processor(config, num_views=3).prepare(toy_observation(5, num_views=3))
    assert inputs["images"].shape == (5, 3, 28, 28, 3)
    assert inputs["images"].dtype == torch.uint8
    assert inputs["input_ids"].shape == (5, TEXT_LENGTH + 3 * 4)
    assert inputs["state"].shape == (5, 5)
    assert not inputs["state"][:, STATE_DIM:].any()


def test_state_is_normalised_by_its_range():
    processor = toy_processor(toy_config())
    observation = toy_observation(4)
    statistics = processor.metadata.statistics("state", "state")
    expected = 2 * (observation.state["state"] - statistics.min) / (statistics.max - statistics.min) - 1
    torch.testing.assert_close(processor.prepare(observation)["state"][:, :STATE_DIM], expected)


def test_actions_come_back_and_are_not_clamped():
    processor = toy_processor(toy_config())
    actions = torch.randn(2, 4, ACTION_DIM) * 10
    padded = processor.normalize_actions(actions)
    assert padded.shape == (2, 4, 4)
    assert not padded[..., ACTION_DIM:].any()
    torch.testing.assert_close(processor.unnormalize_actions(padded[..., :ACTION_DIM]), actions, rtol=1e-5, atol=1e-5)


def test_images_of_another_size_are_resized():
    processor = toy_processor(toy_config())
    observation = toy_observation(2, size=56)
    observation.images["main"][:] = torch.arange(56, dtype=torch.uint8)[None, :, None, None]
    resized = processor.prepare(observation)["images"]
    assert resized.shape == (2, 1, 28, 28, 3)
    assert (resized[0, 0, 1:-1, 3, 0].int() - (2 * torch.arange(28)[1:-1] + 0.5)).abs().max() <= 1


def test_wrong_inputs_are_named():
    processor = toy_processor(toy_config())
    good = toy_observation(2)
    main = good.images["main"]
    cases = [
        *(
            ("images.main", dataclasses.replace(good, images={"main": images}))
            for images in (main.float(), main[..., :1], main[:, :0], main.permute(0, 3, 1, 2))
        ),
        ("images", toy_observation(2, num_views=2)),
        ("images", dataclasses.replace(good, images={})),
        ("state.state", dataclasses.replace(good, state={"state": torch.zeros(2, STATE_DIM + 1)})),
        ("state", dataclasses.replace(good, state={"arm": torch.zeros(2, STATE_DIM)})),
        ("images, state, instruction", dataclasses.replace(good, state={"state": torch.zeros(3, STATE_DIM)})),
    ]
    for key, observation in cases:
        with pytest.raises(UserError) as error:
            processor.prepare(observation)
        assert error.value.key == key
        assert error.value.expected


def test_cameras_are_asked_for_by_name_and_may_differ_in_size():
    processor = toy_processor(toy_config(), num_views=2)
    good = toy_observation(2, num_views=2)
    main, extra = good.images.values()
    swapped = dataclasses.replace(good, images={"extra_0": extra, "main": main})
    assert torch.equal(processor.prepare(swapped)["images"], torch.stack([main, extra], 1))
    large = dataclasses.replace(good, images={"main": main, "extra_0": torch.full_like(extra, 7).repeat(1, 2, 1, 1)})
    assert (processor.prepare(large)["images"][:, 1] == 7).all()
    with pytest.raises(UserError, match=r"missing: main; unknown: front[^']*'\n  expected: main, extra_0"):
        processor.prepare(dataclasses.replace(good, images={"front": main, "extra_0": extra}))


def test_save_and_load_in_the_published_layout(tmp_path):
    config = toy_config()
    processor = toy_processor(config, num_views=2)
    processor.save(tmp_path)
    metadata = json.loads((tmp_path / METADATA_FILE).read_text())
    entry = metadata["new_embodiment"]
    assert entry["embodiment_tag"] == "new_embodiment"
    assert set(entry["statistics"]["state"]["state"]) == {"max", "min", "mean", "std", "q01", "q99"}
    assert entry["modalities"]["video"]["extra_0"] == {"resolution": [28, 28], "channels": 3, "fps": 10.0}
    assert entry["modalities"]["action"]["action"]["shape"] == [ACTION_DIM]
    loaded = GrootProcessor.load(config, tmp_path)
    assert loaded.config == processor.config
    observation = toy_observation(3, num_views=2)
    before, after = processor.prepare(observation), loaded.prepare(observation)
    assert all(torch.equal(before[name], after[name]) for name in ("images", "input_ids", "state"))


def test_several_keys_are_laid_end_to_end(tmp_path):
    config = toy_config()
    base = toy_processor(config)
    parts = {"right_arm": Statistics.of(torch.tensor([[0.0], [10.0]])), "left_arm": Statistics.identity(2)}
    data = dataclasses.replace(base.config.data_config, state=(KeyConfig("left_arm"), KeyConfig("right_arm")))
    every: dict[Kind, dict[str, Statistics]] = {"state": parts, "action": {"action": Statistics.identity(2)}}
    metadata = Metadata.of("new_embodiment", every, ["main"], 28, 10.0)
    settings = dataclasses.replace(base.config, data_config=data)
    GrootProcessor(config, settings, metadata, base.tokenizer).save(tmp_path)
    loaded = GrootProcessor.load(config, tmp_path)
    assert loaded.state.normalize(torch.tensor([[0.5, -0.5, 10.0]])).tolist() == [[0.5, -0.5, 1.0]]
    known = loaded.state_range
    assert known is not None
    assert known.parts == (("left_arm", 2), ("right_arm", 1))
    assert (known.low.tolist(), known.high.tolist()) == ([-1, -1, 0], [1, 1, 10])
    assert [known.name(column) for column in range(3)] == ["left_arm[0]", "left_arm[1]", "right_arm[0]"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda c: c.pop("prompt"), "prompt"),
        (lambda c: c.update(typo=1), "typo"),
        (lambda c: c.update(prompt="chat"), "plain_text_first"),
        (lambda c: c.update(sequence_length="10"), "sequence_length"),
        (lambda c: c["data_config"]["state"][0].update(mode="minmax"), r"data_config\.state\[0\]\.mode"),
        (lambda c: c["data_config"].update(state=["elbow"]), "elbow"),
        (lambda c: c.update(embodiment_tag="gr1"), "gr1"),
        (lambda c: c.update(embodiment_id=31), "31"),
    ],
)
def test_damaged_processor_files_name_what_is_wrong(tmp_path, change, key):
    config = toy_config()
    toy_processor(config).save(tmp_path)
    file = tmp_path / PROCESSOR_FILE
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=key):
        GrootProcessor.load(config, tmp_path)


def test_more_dimensions_than_the_model_has_are_refused():
    processor = toy_processor(toy_config())
    with pytest.raises(UserError, match="state dimensions"):
        with_statistics(processor, Statistics.identity(6), Statistics.identity(2), embodiment_id=0)


def test_padding_value_is_the_length_of_the_whole_sequence():
    processor = toy_processor(toy_config(), num_views=2)
    short, long = (processor.padded_to(length).prepare(toy_observation(2, num_views=2)) for length in (14, 30))
    assert short["input_ids"].shape == (2, 14)
    assert long["input_ids"].shape == (2, 30)
    words = [
        [token for token in row if token not in (0, 1)]
        for row in (short["input_ids"].tolist()[0], long["input_ids"].tolist()[0])
    ]
    assert words[0] == words[1]


def test_a_padding_value_without_room_for_words_is_named():
    with pytest.raises(UserError) as error:
        toy_processor(toy_config(), num_views=2).padded_to(8)
    assert error.value.key == "actor.model.rl_head_config.padding_value"

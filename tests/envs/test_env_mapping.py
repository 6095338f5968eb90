"""From simulator observations to policy inputs and from policy outputs to simulator actions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regrasp.envs.mapping import ActionMapping, ObservationMapping
from regrasp.envs.mapping_config import ActionMapping as ActionMappingConfig
from regrasp.envs.mapping_config import Gr00tMapping, Gr00tStateEntry, Gr00tVideoMapping, MappingConfig, StateEntry
from regrasp.envs.process.simulator import ArraySpec
from regrasp.errors import UserError

RAW = {
    "camera_images/front": ArraySpec((4, 6, 3), "uint8"),
    "camera_images/left_wrist": ArraySpec((2, 3, 3), "uint8"),
    "camera_images/right_wrist": ArraySpec((2, 3, 3), "uint8"),
    "camera_images/depth": ArraySpec((4, 6, 1), "float32"),
    "camera_images/mask": ArraySpec((4, 6), "uint8"),
    "camera_images/rgba": ArraySpec((4, 6, 4), "uint8"),
    "policy/joint_pos": ArraySpec((7,), "float32"),
    "policy/pose": ArraySpec((3, 4), "float64"),
    "policy/phase": ArraySpec((), "int64"),
    "policy/object": ArraySpec((3,), "float32"),
    "critic/object": ArraySpec((6,), "float32"),
    "ungrouped": ArraySpec((2,), "float32"),
}
LOCATION = "env.train.mapping"


def mapping(**fields) -> ObservationMapping:
    return ObservationMapping(MappingConfig(**fields), RAW, LOCATION)


def refused(**fields) -> UserError:
    with pytest.raises(UserError) as caught:
        mapping(**fields)
    assert caught.value.key is not None
    assert caught.value.key.startswith(LOCATION)
    assert caught.value.fix
    return caught.value


def raw_values(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: (100 * rng.random((count, *spec.shape))).astype(spec.dtype) for key, spec in RAW.items()}


def test_states_are_the_slices_in_the_order_of_the_configuration():
    entries = (StateEntry("pose", (2, 5)), "joint_pos", "phase", StateEntry("joint_pos", (6, 7)), "critic/object")
    arranged = mapping(states=entries)
    raw = raw_values(5)
    states = arranged(raw, ["go"] * 5).state["state"]
    expected = [
        [*pose.ravel()[2:5], *joints, phase, joints[6], *objects]
        for pose, joints, phase, objects in zip(
            raw["policy/pose"], raw["policy/joint_pos"], raw["policy/phase"], raw["critic/object"], strict=True
        )
    ]
    assert arranged.state_dim == states.shape[1] == 3 + 7 + 1 + 1 + 6
    assert states.dtype == torch.float32
    assert torch.equal(states, torch.tensor(np.array(expected), dtype=torch.float32))


def test_images_keep_their_order_and_values():
    arranged = mapping(main_images="front", extra_view_images=("right_wrist", "camera_images/left_wrist"))
    raw = raw_values(2)
    seen = arranged(raw, ["a", "b"])
    keys = {"main": "front", "extra_0": "right_wrist", "extra_1": "left_wrist"}
    assert list(seen.images) == list(keys)
    for name, key in keys.items():
        assert torch.equal(seen.images[name], torch.from_numpy(raw[f"camera_images/{key}"]))
        assert seen.images[name].data_ptr() == raw[f"camera_images/{key}"].ctypes.data, "no copy"
    assert seen.state["state"].shape == (2, 0)


_TRANSFORMED = {
    ("rotate_90",): lambda image: np.rot90(image, -1),
    ("rotate_180",): lambda image: np.rot90(image, 2),
    ("rotate_270",): lambda image: np.rot90(image, 1),
    ("flip_horizontal",): np.fliplr,
    ("flip_vertical",): np.flipud,
    ("rotate_90", "flip_vertical"): lambda image: np.flipud(np.rot90(image, -1)),
    ("flip_vertical", "rotate_90"): lambda image: np.rot90(np.flipud(image), -1),
    ("rotate_90", "rotate_270"): np.array,
}


@pytest.mark.parametrize("names", _TRANSFORMED, ids="_then_".join)
def test_a_camera_is_turned_and_flipped_as_its_key_says(names: tuple[str, ...]):
    arranged = mapping(main_images="front", extra_view_images=("left_wrist",), image_transform={"front": names})
    raw = raw_values(2)
    seen = arranged(raw, ["a", "b"])
    expected = np.stack([_TRANSFORMED[names](image) for image in raw["camera_images/front"]])
    assert np.array_equal(seen.images["main"].numpy(), expected)
    assert np.array_equal(seen.images["extra_0"].numpy(), raw["camera_images/left_wrist"]), "the others stay"
    assert arranged.camera_shapes == (expected.shape[1:], (2, 3, 3))


def test_the_transform_of_a_camera_that_is_not_there_is_refused():
    config = MappingConfig(main_images="front", states=(), image_transform={"wrist": ("rotate_180",)})
    (error,) = config.problems(LOCATION)
    assert (error.key, error.value) == (f"{LOCATION}.image_transform", ["wrist"])


def test_names_of_gr00t_are_those_of_the_observation():
    video = Gr00tVideoMapping("video.room", ("wrist",))
    names = Gr00tMapping(video, (Gr00tStateEntry("state.hand", (7, 9)), Gr00tStateEntry("arm", (0, 7))))
    arranged = mapping(
        main_images="front", extra_view_images=("left_wrist",), states=("joint_pos", "ungrouped"), gr00t_mapping=names
    )
    seen = arranged(raw_values(2), ["a", "b"])
    assert list(seen.images) == ["room", "wrist"]
    assert torch.equal(seen.state["hand"], seen.state["state"][:, 7:9])
    assert torch.equal(seen.state["arm"], seen.state["state"][:, :7])


def test_only_what_is_mapped_is_computed_and_once():
    arranged = mapping(
        main_images="front", extra_view_images=("front",), states=("phase", StateEntry("phase"), "ungrouped")
    )
    assert arranged.keys == ("camera_images/front", "policy/phase", "ungrouped")


def test_the_instruction_of_the_configuration_wins():
    assert mapping().__call__({}, ["pick", "place"]).instruction == ["pick", "place"]
    assert mapping(task_description="do it")({}, ["pick", "place"]).instruction == ["do it", "do it"]


def test_no_rows_give_no_rows():
    seen = mapping(main_images="front", states=("pose", "phase"))(raw_values(0), [])
    assert seen.images["main"].shape == (0, 4, 6, 3)
    assert seen.state["state"].shape == (0, 13)


@pytest.mark.parametrize(
    ("fields", "key", "hint"),
    [
        ({"main_images": "frnt"}, "main_images", "'front'"),
        ({"main_images": "camera_images/frnt"}, "main_images", "'camera_images/front'"),
        ({"main_images": "front", "extra_view_images": ("left_wirst",)}, "extra_view_images", "'left_wrist'"),
        ({"states": ("phase", "joint_position")}, "states[1]", "'joint_pos'"),
        ({"states": ("policy/joint_poss",)}, "states[0]", "'policy/joint_pos'"),
    ],
)
def test_a_misspelt_key_is_an_error_that_names_the_nearest(fields: dict, key: str, hint: str):
    error = refused(**fields)
    assert "offers no observation named" in error.problem
    assert error.key == f"{LOCATION}.{key}"
    assert error.fix is not None
    assert hint in error.fix
    assert error.expected is not None
    assert all(name in error.expected for name in RAW), "everything on offer is listed"


def test_a_key_like_none_has_no_hint():
    assert refused(states=("xyzzy",)).fix == "correct the name"


def test_a_key_of_several_groups_must_be_written_in_full():
    error = refused(states=("object",))
    assert "several observations named 'object'" in error.problem
    assert error.expected == "one of ['policy/object', 'critic/object']"
    assert error.fix == "write it as group/key"
    assert mapping(states=("policy/object",)).state_dim == 3
    assert mapping(states=("critic/object",)).state_dim == 6


@pytest.mark.parametrize(("bounds", "width"), [((0, 7), 7), ((6, 7), 1), ((0, 1), 1)])
def test_slices_up_to_the_end_are_accepted(bounds: tuple[int, int], width: int):
    assert mapping(states=(StateEntry("joint_pos", bounds),)).state_dim == width


@pytest.mark.parametrize(("name", "bounds"), [("joint_pos", (0, 8)), ("joint_pos", (7, 9)), ("phase", (0, 2))])
def test_a_slice_past_the_end_is_an_error_and_never_a_shorter_vector(name: str, bounds: tuple[int, int]):
    error = refused(states=("ungrouped", StateEntry(name, bounds)))
    assert "past the end" in error.problem
    assert error.key == f"{LOCATION}.states[1].slice"
    assert error.value == list(bounds)


@pytest.mark.parametrize("name", ["depth", "mask", "rgba", "joint_pos"])
@pytest.mark.parametrize("field", ["main_images", "extra_view_images"])
def test_what_is_no_colour_image_is_no_camera(field: str, name: str):
    error = refused(**{field: name if field == "main_images" else (name,)})
    assert "is not a camera image" in error.problem
    assert error.fix is not None
    cameras = ["camera_images/front", "camera_images/left_wrist", "camera_images/right_wrist"]
    assert error.fix.startswith(f"choose one of {cameras}, or have the task give 8-bit RGB")


def test_an_image_is_no_state():
    error = refused(states=("front",))
    assert "is an image" in error.problem
    assert error.fix is not None
    assert "policy/joint_pos" in error.fix


def actions(**fields) -> MappingConfig:
    return MappingConfig(action_mapping=ActionMappingConfig(**fields))


def test_actions_are_scaled_then_padded_and_the_inverse_undoes_it():
    mapped = ActionMapping(actions(prefix_pad=2, suffix_pad=1, scale=(2.0, -0.5, 10.0)), 3, 6, LOCATION)
    policy = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    simulator = mapped(policy)
    assert simulator.shape == (4, 5, 6)
    assert not simulator[..., [0, 1, 5]].any()
    torch.testing.assert_close(simulator[..., 2:5], policy * torch.tensor([2.0, -0.5, 10.0]), rtol=0, atol=0)
    torch.testing.assert_close(mapped.inverse(simulator), policy)
    torch.testing.assert_close(mapped.inverse(simulator[0, 0]), policy[0, 0])


def test_one_factor_serves_every_dimension():
    mapped = ActionMapping(actions(scale=0.25), 2, 2, LOCATION)
    assert mapped(torch.ones(1, 1, 2)).tolist() == [[[0.25, 0.25]]]


@pytest.mark.parametrize(("fields", "policy", "simulator"), [({}, 3, 4), ({}, 5, 4), ({"prefix_pad": 2}, 3, 4)])
def test_an_action_of_another_width_is_refused(fields: dict, policy: int, simulator: int):
    with pytest.raises(UserError) as caught:
        ActionMapping(actions(**fields), policy, simulator, LOCATION)
    assert caught.value.key == f"{LOCATION}.action_mapping"
    assert caught.value.expected == f"{simulator} in total"


@pytest.mark.parametrize("scale", [(1.0,), (1.0, 2.0), (1.0, 2.0, 3.0, 4.0), (1.0, 0.0, 1.0), 0.0])
def test_a_scale_of_another_length_or_with_a_zero_is_refused(scale):
    with pytest.raises(UserError) as caught:
        ActionMapping(actions(scale=scale), 3, 3, LOCATION)
    assert caught.value.key == f"{LOCATION}.action_mapping.scale"


def test_an_offset_moves_the_scaled_action_and_the_inverse_undoes_it():
    mapped = ActionMapping(actions(scale=(1.0, 2.0), offset=(0.0, -1.0)), 2, 2, LOCATION)
    gripper = torch.tensor([[[0.3, 0.0], [0.3, 1.0]]])
    assert mapped(gripper).tolist() == torch.tensor([[[0.3, -1.0], [0.3, 1.0]]]).tolist()
    assert torch.equal(mapped.inverse(mapped(gripper)), gripper)
    with pytest.raises(UserError) as caught:
        ActionMapping(actions(offset=(1.0,)), 2, 2, LOCATION)
    assert caught.value.key == f"{LOCATION}.action_mapping.offset"

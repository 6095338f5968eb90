"""Datasets that others wrote: which features are cameras, state, action and instruction."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.stages.conftest import groot_experiment

from regrasp.data.lerobot import DatasetWriter, DemonstrationDataset, FeatureSpec
from regrasp.errors import UserError
from regrasp.stages.dataset_features import find_features

IMAGES = "observation.images.{}"
TWO_CAMERAS = "env.train.mapping.extra_view_images=[camera_images/wrist_camera]"
NAMED = [
    f"env.{side}.mapping.gr00t_mapping={{video: {{main_images: front, extra_view_images: [wrist]}},"
    " state: [{gr00t_key: arm, slice: [0, 3]}, {gr00t_key: hand, slice: [3, 4]}]}"
    for side in ("train", "eval")
]
MODALITY = {
    "state": {
        "hand": {"start": 0, "end": 1, "original_key": "joints"},
        "arm": {"start": 1, "end": 4, "original_key": "joints"},
    },
    "video": {"front": {"original_key": "cam_a"}, "wrist": {"original_key": "cam_b"}},
}


def write(root: Path, vectors: dict[str, int], cameras: tuple[str, ...]) -> dict[str, np.ndarray]:
    """A dataset of two episodes as others write it, without checksums; returns its columns."""
    rng = np.random.default_rng(0)
    features = {name: FeatureSpec("float32", (width,)) for name, width in vectors.items()}
    features |= {name: FeatureSpec("video", (32, 32, 3)) for name in cameras}
    columns = {name: rng.normal(size=(10, width)).astype(np.float32) for name, width in vectors.items()}
    with DatasetWriter(root, fps=10, robot_type="made up", features=features) as writer:
        for rows in (slice(0, 4), slice(4, 10)):
            length = len(range(*rows.indices(10)))
            episode: dict[str, np.ndarray] = {name: column[rows] for name, column in columns.items()}
            for number, name in enumerate(cameras):
                episode[name] = np.full((length, 32, 32, 3), 40 * number + 40, np.uint8)
            writer.add_episode(episode, f"task {rows.start}", True)
    return columns


@pytest.mark.parametrize(
    ("vectors", "cameras", "overrides", "expected"),
    [
        ({"state": 4, "actions": 4}, ("front_camera", "wrist_camera", "depth"), (), ("front_camera", "wrist_camera")),
        (
            {"observation.state": 4, "action.arm": 4},
            (IMAGES.format("wrist_camera"), IMAGES.format("front_camera")),
            (),
            (IMAGES.format("front_camera"), IMAGES.format("wrist_camera")),
        ),
        (
            {"observation.state": 4, "action": 4},
            (IMAGES.format("extra_0"), IMAGES.format("main")),
            (),
            (IMAGES.format("main"), IMAGES.format("extra_0")),
        ),
        (
            {"a": 4, "b": 4},
            ("left", "top"),
            ("sft.features={cameras: [top, left], states: [a], action: [b]}",),
            ("top", "left"),
        ),
    ],
    ids=["openpi", "observations", "numbered", "given"],
)
def test_features_by_name(
    tmp_path: Path,
    vectors: dict[str, int],
    cameras: tuple[str, ...],
    overrides: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    columns = write(tmp_path / "d", vectors, cameras)
    found = find_features(DemonstrationDataset(tmp_path / "d"), groot_experiment(TWO_CAMERAS, *overrides).config)
    assert tuple(found.cameras.values()) == expected
    state, action = vectors
    np.testing.assert_array_equal(found.load_states(), columns[state])
    np.testing.assert_array_equal(found.load_actions(), columns[action])
    assert found.load_instructions() == ["task 0"] * 4 + ["task 4"] * 6


def test_modality_names_cameras_and_parts(tmp_path: Path) -> None:
    columns = write(tmp_path / "d", {"joints": 4, "action": 4}, ("cam_b", "cam_a"))
    (tmp_path / "d/meta/modality.json").write_text(json.dumps(MODALITY))
    found = find_features(
        DemonstrationDataset(tmp_path / "d"),
        groot_experiment(TWO_CAMERAS, TWO_CAMERAS.replace("train", "eval"), *NAMED).config,
    )
    assert found.cameras == {"front": "cam_a", "wrist": "cam_b"}
    np.testing.assert_array_equal(found.load_states(), columns["joints"][:, [1, 2, 3, 0]])


@pytest.mark.parametrize(
    "changes",
    [
        {"state": {"a": {"start": "0", "end": 1}}},
        {"state": {"a": {"start": 0.5, "end": 1}}},
        {"state": {"a": {"start": -1, "end": 1}}},
        {"state": {"a": {"start": 2, "end": 1}}},
        {"action": {"a": {"start": 0, "end": 2**70}}},
        {"action": {"a": {"start": 0}}},
        {"action": []},
        {"state": {"a": {"start": 0, "end": 1, "original_key": 7}}},
        {"video": {"a": {"original_key": ["x"]}}},
        {"video": {"a": "x"}},
    ],
    ids=str,
)
def test_a_modality_file_with_other_values_is_damaged(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path / "d", {"joints": 4, "action": 4}, ("cam_b", "cam_a"))
    file = tmp_path / "d/meta/modality.json"
    file.write_text(json.dumps(MODALITY | changes))
    config = groot_experiment(TWO_CAMERAS, TWO_CAMERAS.replace("train", "eval"), *NAMED).config
    with pytest.raises(UserError, match=r"damaged: it does not name cameras and ranges") as caught:
        find_features(DemonstrationDataset(tmp_path / "d"), config)
    assert str(caught.value.file) == str(file)


def test_parts_of_several_features(tmp_path: Path) -> None:
    columns = write(tmp_path / "d", {"arm": 6, "hand": 1, "action.arm": 3, "action.hand": 1}, ())
    config = groot_experiment(
        "actor.model.model_type=mlp",
        "sft.features={states: [{key: arm, slice: [2, 5]}, hand], action: [action.arm, action.hand]}",
    ).config
    found = find_features(DemonstrationDataset(tmp_path / "d"), config)
    np.testing.assert_array_equal(found.load_states(), np.hstack([columns["arm"][:, 2:5], columns["hand"]]))
    np.testing.assert_array_equal(found.load_actions(), np.hstack([columns["action.arm"], columns["action.hand"]]))


@pytest.mark.parametrize(
    ("vectors", "cameras", "override", "key"),
    [
        ({"observation.state": 4, "action": 4}, ("front", "wrist"), None, "sft.features.cameras"),
        ({"observation.state": 4, "action": 4}, ("front",), "sft.features.cameras=[front]", "sft.features.cameras"),
        ({"observation.state": 4, "action": 4}, ("a", "b"), "sft.features.cameras=[a, c]", "sft.features.cameras"),
        ({"observation.state": 4, "action": 4}, ("a", "b"), "sft.features.cameras=[a, a]", "sft.features.cameras"),
        ({"joints": 4, "action": 4}, ("front_camera", "wrist_camera"), None, "sft.features.states"),
        ({"state": 4, "action.a": 2, "action.b": 2}, ("front_camera", "wrist_camera"), None, "sft.features.action"),
        (
            {"state": 4, "action": 4},
            ("front_camera", "wrist_camera"),
            "sft.features.states=[{key: state, slice: [2, 5]}]",
            "sft.features.states",
        ),
        ({"state": 4, "action": 3}, ("front_camera", "wrist_camera"), None, "actor.model.action_dim"),
        (
            {"state": 4, "action": 4},
            ("front_camera", "wrist_camera"),
            "sft.features.instruction=text",
            "sft.features.instruction",
        ),
    ],
)
def test_what_names_do_not_tell_is_asked_for(
    tmp_path: Path, vectors: dict[str, int], cameras: tuple[str, ...], override: str | None, key: str
) -> None:
    write(tmp_path / "d", vectors, cameras)
    config = groot_experiment(TWO_CAMERAS, *([override] if override else [])).config
    with pytest.raises(UserError) as caught:
        find_features(DemonstrationDataset(tmp_path / "d"), config)
    assert caught.value.key == key


def png(value: int, size: tuple[int, int] = (32, 32), kind: str = "RGB", form: str = "PNG") -> dict[str, Any]:
    content = io.BytesIO()
    Image.new(kind, size, (value, 2, 3) if kind == "RGB" else value).save(content, form)
    return {"bytes": content.getvalue(), "path": None}


def with_images(root: Path, images: list[Any]) -> DemonstrationDataset:
    """A dataset whose camera `image` is stored in its table."""
    write(root, {"state": 4, "actions": 4}, ())
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["image"] = {"dtype": "image", "shape": [32, 32, 3], "names": ["height", "width", "channel"]}
    (root / "meta/info.json").write_text(json.dumps(info))
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).append_column("image", pa.array(images)), path)
    return DemonstrationDataset(root)


def test_images_in_the_table_are_read(tmp_path: Path) -> None:
    dataset = with_images(tmp_path / "d", [png(20 * row) for row in range(10)])
    assert dataset.cameras == ("image",)
    images = dataset.load_images("image", [1])
    assert images[:, 5, 5].tolist() == [[20 * row, 2, 3] for row in range(4, 10)]
    found = find_features(dataset, groot_experiment("sft.features.cameras=[image]").config)
    assert found.cameras == {"main": "image"}


@pytest.mark.parametrize(
    "bad",
    [
        {"bytes": b"png", "path": None},
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": png(5)["bytes"][:60], "path": None},
        png(1, (16, 16)),
        png(1, kind="I;16"),
        png(1, form="BMP"),
    ],
    ids=["no image", "a path", "cut off", "small", "16 bit", "another format"],
)
def test_a_bad_image_in_the_table_is_located(tmp_path: Path, bad: dict[str, Any]) -> None:
    dataset = with_images(tmp_path / "d", [png(1)] * 6 + [bad] + [png(1)] * 3)
    with pytest.raises(UserError, match="Column image cannot be used: episode 1, frame 2"):
        dataset.load_images("image")

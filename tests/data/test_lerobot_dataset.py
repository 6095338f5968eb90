"""Writing and reading back demonstrations, and what the files look like to others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrasp.data.lerobot import DatasetWriter, DemonstrationDataset, FeatureSpec
from regrasp.data.lerobot.schema import VIDEO_PATH, FileIndex
from regrasp.data.lerobot.video import VideoReader
from regrasp.data.lerobot.writer import LIMITS
from regrasp.errors import UserError

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
FEATURES = {
    "observation.state": FeatureSpec("float32", (4,), ("x", "y", "z", "opening")),
    "action": FeatureSpec("float32", (4,)),
    "next.reward": FeatureSpec("float32", (1,)),
    FRONT: FeatureSpec("video", (84, 84, 3)),
    WRIST: FeatureSpec("video", (48, 64, 3)),
}
LENGTHS = (12, 7, 15)
TASKS = ("pick up the red cube", "pick up the blue cube", "pick up the red cube")


def smooth_images(length: int, height: int, width: int, seed: int) -> np.ndarray:
    """(L, H, W, 3) uint8: a slowly moving coloured gradient, different for each seed and frame."""
    t = np.arange(length)[:, None, None]
    y, x = np.mgrid[0:height, 0:width]
    channels = [
        127 + 90 * np.sin(x / 25 + t / 7 + seed),
        110 + 80 * np.cos(y / 20 - t / 9),
        100 + (x + y) / 3 + t + seed,
    ]
    return np.stack(np.broadcast_arrays(*channels), axis=-1).clip(0, 255).astype(np.uint8)


def make_episode(length: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "observation.state": rng.normal(size=(length, 4)).astype(np.float32),
        "action": rng.uniform(-1, 1, size=(length, 4)).astype(np.float32),
        "next.reward": np.eye(1, length, length - 1, dtype=np.float32)[0],
        FRONT: smooth_images(length, 84, 84, seed),
        WRIST: smooth_images(length, 48, 64, seed + 5),
    }


EPISODES = [make_episode(length, seed) for seed, length in enumerate(LENGTHS)]


def write(root: Path) -> Path:
    with DatasetWriter(
        root,
        fps=10,
        robot_type="gripper",
        features=FEATURES,
        modality={"state": {"position": {"start": 0, "end": 3}}},
    ) as writer:
        for episode, task, success in zip(EPISODES, TASKS, (True, False, True), strict=True):
            writer.add_episode(episode, task, success)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("demonstrations") / "pick")


@pytest.fixture(scope="module")
def dataset(root: Path) -> DemonstrationDataset:
    return DemonstrationDataset(root)


def stacked(name: str) -> np.ndarray:
    return np.concatenate([episode[name] for episode in EPISODES])


def image_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found.astype(int) - expected.astype(int)).mean())


def test_numbers_come_back_exactly(dataset: DemonstrationDataset) -> None:
    columns = dataset.load_columns(["action", "observation.state", "next.reward"])
    assert list(columns) == ["action", "observation.state", "next.reward"]
    for name, column in columns.items():
        assert column.dtype == np.float32
        np.testing.assert_array_equal(column, stacked(name))


def test_default_columns(dataset: DemonstrationDataset) -> None:
    columns = dataset.load_columns(["timestamp", "frame_index", "episode_index", "index", "task_index"])
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    np.testing.assert_array_equal(columns["frame_index"], frame)
    np.testing.assert_array_equal(columns["timestamp"], (frame / 10).astype(np.float32))
    np.testing.assert_array_equal(columns["episode_index"], np.repeat([0, 1, 2], LENGTHS))
    np.testing.assert_array_equal(columns["index"], np.arange(34))
    np.testing.assert_array_equal(columns["task_index"], np.repeat([0, 1, 0], LENGTHS))


def test_episode_table(dataset: DemonstrationDataset) -> None:
    assert (dataset.num_frames, dataset.num_episodes, dataset.fps) == (34, 3, 10)
    assert dataset.tasks == ("pick up the red cube", "pick up the blue cube")
    table = dataset.episodes
    assert [e.task for e in table] == list(TASKS)
    assert [(e.start, e.stop, e.length) for e in table] == [(0, 12, 12), (12, 19, 7), (19, 34, 15)]
    seen = dataset.load_columns(["next.success"])["next.success"]
    assert [bool(seen[e.start : e.stop].any()) for e in table] == [True, False, True]
    span = table[1].videos[FRONT]
    assert (span.from_timestamp, span.to_timestamp) == pytest.approx((1.2, 1.9))


@pytest.mark.parametrize("camera", [FRONT, WRIST])
def test_images_within_codec_tolerance(dataset: DemonstrationDataset, camera: str) -> None:
    images = dataset.load_images(camera)
    assert images.dtype == np.uint8
    assert image_error(images, stacked(camera)) < 1.5
    signed = (images.astype(int) - stacked(camera)).mean(axis=(0, 1, 2))
    assert np.abs(signed).max() < 0.5


def test_images_of_chosen_episodes(dataset: DemonstrationDataset) -> None:
    images = dataset.load_images(FRONT)
    chosen = dataset.load_images(FRONT, episodes=[2, 0, 1])
    np.testing.assert_array_equal(chosen, np.concatenate([images[19:], images[:12], images[12:19]]))
    assert dataset.load_images(FRONT, episodes=[]).shape == (0, 84, 84, 3)


def test_random_access_equals_sequential(dataset: DemonstrationDataset) -> None:
    images = {camera: dataset.load_images(camera) for camera in dataset.cameras}
    for index in (33, 0, 11, 12, 18, 5):
        for camera in dataset.cameras:
            image = np.empty_like(images[camera][:1])
            with VideoReader(
                dataset.root / FileIndex().path(VIDEO_PATH, camera), image.shape[1:3], dataset.fps
            ) as video:
                video.read(index, image)
            np.testing.assert_array_equal(image[0], images[camera][index])


def test_files_roll_over_and_read_the_same(
    tmp_path: Path, dataset: DemonstrationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("data", "video"):
        monkeypatch.setitem(LIMITS, f"{kind}_files_size_in_mb", 1e-3)
    small = DemonstrationDataset(write(tmp_path / "small"))
    assert len(list((tmp_path / "small/data").glob("*/*.parquet"))) == 3
    assert [e.data_file.file for e in small.episodes] == [0, 1, 2]
    assert [e.videos[FRONT].file.file for e in small.episodes] == [0, 1, 2]
    assert small.episodes[2].videos[FRONT].from_timestamp == 0.0
    np.testing.assert_array_equal(small.load_columns(["action"])["action"], stacked("action"))
    assert image_error(small.load_images(FRONT), stacked(FRONT)) < 1.5
    for name in ("action", FRONT):
        for key, value in dataset.stats[name].items():
            np.testing.assert_array_equal(small.stats[name][key], value)


def test_chunk_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "data_files_size_in_mb", 1e-6)
    monkeypatch.setitem(LIMITS, "chunks_size", 2)
    features = {"action": FEATURES["action"]}
    with DatasetWriter(tmp_path / "d", fps=10, robot_type="", features=features) as writer:
        for seed in range(3):
            writer.add_episode({"action": make_episode(4, seed)["action"]}, "t", True)
    files = sorted(str(path.relative_to(tmp_path / "d/data")) for path in (tmp_path / "d/data").glob("*/*"))
    assert files == ["chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"]
    assert DemonstrationDataset(tmp_path / "d").num_frames == 12


def test_statistics_are_those_of_the_arrays(dataset: DemonstrationDataset) -> None:
    action = stacked("action").astype(np.float64)
    np.testing.assert_allclose(dataset.stats["action"]["mean"], action.mean(axis=0))
    np.testing.assert_allclose(dataset.stats["action"]["std"], action.std(axis=0))
    upper = np.average([np.quantile(episode["action"], 0.99, axis=0) for episode in EPISODES], axis=0, weights=LENGTHS)
    assert (np.abs(dataset.stats["action"]["q99"] - upper) < 0.1 * np.ptp(action, axis=0)).all()
    pixels = stacked(FRONT).reshape(-1, 3) / 255
    assert dataset.stats[FRONT]["mean"].shape == (3, 1, 1)
    np.testing.assert_allclose(dataset.stats[FRONT]["mean"].ravel(), pixels.mean(axis=0))
    assert set(dataset.stats) == set(dataset.features)


def test_info_follows_the_format(root: Path) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": "gripper",
        "total_episodes": 3,
        "total_frames": 34,
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 10,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    assert features["action"] == {"dtype": "float32", "shape": [4], "names": None}
    assert features["observation.state"]["names"] == ["x", "y", "z", "opening"]
    assert features["next.success"] == {"dtype": "bool", "shape": [1], "names": None}
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    camera = features[WRIST]
    assert (camera["dtype"], camera["shape"], camera["names"]) == (
        "video",
        [48, 64, 3],
        ["height", "width", "channels"],
    )
    expected = {
        "video.height": 48,
        "video.width": 64,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": 10,
        "video.channels": 3,
        "has_audio": False,
    }
    assert expected.items() <= camera["info"].items()


def test_parquet_schemas_follow_the_format(root: Path) -> None:
    data = pq.read_schema(root / "data/chunk-000/file-000.parquet")
    vector = pa.list_(pa.float32(), 4)
    assert {field.name: field.type for field in data} == {
        "observation.state": vector,
        "action": vector,
        "next.reward": pa.float32(),
        "next.success": pa.bool_(),
        "timestamp": pa.float32(),
        "frame_index": pa.int64(),
        "episode_index": pa.int64(),
        "index": pa.int64(),
        "task_index": pa.int64(),
    }
    episodes = pq.read_schema(root / "meta/episodes/chunk-000/file-000.parquet")
    types = {field.name: field.type for field in episodes}
    for name in ("episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index"):
        assert types[name] == pa.int64()
    for name in ("dataset_to_index", "meta/episodes/chunk_index", f"videos/{FRONT}/file_index"):
        assert types[name] == pa.int64()
    assert types["tasks"] == pa.list_(pa.string())
    assert types[f"videos/{FRONT}/to_timestamp"] == pa.float64()
    assert types["stats/action/q01"] == pa.list_(pa.float64())
    assert types["stats/action/count"] == pa.list_(pa.int64())
    assert types[f"stats/{FRONT}/mean"] == pa.list_(pa.list_(pa.list_(pa.float64())))


def test_tasks_are_a_pandas_frame_indexed_by_instruction(root: Path) -> None:
    table = pq.read_table(root / "meta/tasks.parquet")
    assert table.to_pydict() == {
        "task_index": [0, 1],
        "__index_level_0__": ["pick up the red cube", "pick up the blue cube"],
    }
    assert table.schema.pandas_metadata["index_columns"] == ["__index_level_0__"]


def test_video_is_h264_with_short_groups_at_the_dataset_rate(root: Path) -> None:
    with av.open(str(root / f"videos/{FRONT}/chunk-000/file-000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 10)
        frames = list(container.decode(stream))
    assert [frame.time for frame in frames] == pytest.approx([i / 10 for i in range(34)])
    starts = np.cumsum([0, *LENGTHS[:-1]])
    keyframes = [start + i for start, length in zip(starts, LENGTHS, strict=True) for i in range(0, length, 2)]
    assert [number for number, frame in enumerate(frames) if frame.key_frame] == keyframes


@pytest.mark.parametrize("camera", [FRONT, WRIST])
def test_episodes_cut_out_without_encoding_show_the_same_frames(
    tmp_path: Path, dataset: DemonstrationDataset, camera: str
) -> None:
    """As `ffmpeg -ss <from> -i <file> -t <length> -c copy` of Isaac-GR00T's convert_v3_to_v2.py does."""
    for episode in dataset.episodes:
        span = episode.videos[camera]
        source = dataset.root / span.file.path(VIDEO_PATH, camera)
        with av.open(str(source)) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
            stream = whole.streams.video[0]
            copy = cut.add_stream_from_template(stream)
            assert stream.time_base is not None
            whole.seek(round(float(f"{span.from_timestamp:.6f}") / stream.time_base), stream=stream)
            packets = [packet for packet in whole.demux(stream) if packet.size][: episode.length]
            first = packets[0].dts
            assert first is not None
            for packet in packets:
                packet.dts, packet.pts = packet.dts - first, packet.pts - first  # pyright: ignore[reportOptionalOperand]
                packet.stream = copy
                cut.mux(packet)
        images = np.empty((episode.length, *dataset.features[camera].shape), dtype=np.uint8)
        with VideoReader(tmp_path / "cut.mp4", dataset.features[camera].image_size, dataset.fps) as video:
            video.read(0, images)
        np.testing.assert_array_equal(images, dataset.load_images(camera, [episode.index]))


def test_modality_is_written_as_given(root: Path) -> None:
    assert json.loads((root / "meta/modality.json").read_text()) == {"state": {"position": {"start": 0, "end": 3}}}


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, root: Path) -> None:
    again = write(tmp_path / "again")
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((root / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert list(tmp_path.iterdir()) == [again]


ENCODE = """
import sys
from pathlib import Path
import numpy as np
from regrasp.data.lerobot.video import open_encoder
drifts = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
encoder = open_encoder(Path(sys.argv[1]), (224, 224), 30)
for frame in range(40):
    encoder.write(drifts[frame : frame + 224, frame // 2 : frame // 2 + 224] // (1 + frame // 10))
encoder.close()
"""


def test_video_does_not_depend_on_what_memory_held_before(tmp_path: Path) -> None:
    files = [tmp_path / "0.mp4", tmp_path / "1.mp4"]
    for fill, file in enumerate(files):
        environment = {**os.environ, "MALLOC_PERTURB_": str(fill)}
        subprocess.run([sys.executable, "-c", ENCODE, str(file)], env=environment, check=True)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_missing_feature_names_those_there_are(dataset: DemonstrationDataset) -> None:
    with pytest.raises(UserError, match="no feature observation"):
        dataset.load_columns(["observation.velocity"])
    with pytest.raises(UserError, match="front"):
        dataset.load_images("observation.images.side")


def test_a_dataset_opens_by_name(root: Path) -> None:
    assert DemonstrationDataset.open(str(root)).num_episodes == len(EPISODES)

"""Images, words and actions of OpenVLA, on cases worked out by hand and by the libraries that the original uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from openvla_layout import EMPTY, INSTRUCTION, statistics, write_tokenizer
from PIL import Image

from regrasp.errors import UserError
from regrasp.models.openvla.processing.action_scaling import choose_key, known_statistics, read_scaling
from regrasp.models.openvla.processing.action_tokens import ActionTokens
from regrasp.models.openvla.processing.images import LETTERBOX, ImageSettings, normalized, prepare_images
from regrasp.models.openvla.processing.prompt import PromptEncoder, prompt_of
from regrasp.models.openvla.processing.tokenizer import load_tokenizer

FILE = Path("config.json")
LLAMA = ActionTokens(32000)


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_action_tokens_are_the_last_ids() -> None:
    values = torch.tensor([-1.0, -0.999, 0.0, 0.999, 1.0, 5.0, -5.0])
    # numpy.digitize of 256 points: -1 is in bin 1, 0 in bin 128 of [-1/255, 1/255), 1 in bin 256.
    assert LLAMA.encode(values).tolist() == [31999, 31999, 31872, 31745, 31744, 31744, 31999]
    points = np.linspace(-1, 1, 256)
    many = np.random.default_rng(0).uniform(-1.2, 1.2, 500)
    expected = 32000 - np.digitize(np.clip(many, -1, 1), points)
    assert LLAMA.encode(torch.from_numpy(many)).tolist() == expected.tolist()


def test_an_id_is_the_centre_of_its_bin() -> None:
    ids = torch.tensor([31999, 31998, 31872, 31745, 31744])
    # Centres are -1 + (i + 1/2) 2/255 for i = 0 .. 254; the last two ids are the last bin.
    expected = [-1 + 1 / 255, -1 + 3 / 255, -1 + 255 / 255, 1 - 1 / 255, 1 - 1 / 255]
    torch.testing.assert_close(LLAMA.decode(ids), torch.tensor(expected))
    every = torch.arange(31745, 32000)
    assert torch.equal(LLAMA.encode(LLAMA.decode(every)), every)


def test_actions_are_scaled_by_the_percentiles_where_the_mask_says_so() -> None:
    stats = {"robot": {"action": {"q01": [-0.2, 1.0, 0.0], "q99": [0.6, 3.0, 1.0], "mask": [True, True, False]}}}
    scaling = read_scaling(stats, "robot", "q99", FILE)
    physical = torch.tensor([[0.2, 3.0, 0.75], [-9.0, 1.5, -0.5]])
    policy = torch.tensor([[0.0, 1.0, 0.75], [-1.0, -0.5, -0.5]])
    torch.testing.assert_close(scaling.normalize(physical), policy)
    torch.testing.assert_close(scaling.unnormalize(policy[:1]), physical[:1])
    torch.testing.assert_close(scaling.unnormalize(torch.tensor([0.5, 0.5, 0.5])), torch.tensor([0.4, 2.5, 0.5]))


def test_the_statistics_are_chosen_by_name() -> None:
    stats = known_statistics({"norm_stats": {"a": statistics(7), "b_no_noops": statistics(7)}}, None, FILE)
    assert choose_key(stats, "a", FILE) == "a"
    assert choose_key(stats, "b", FILE) == "b_no_noops"
    with pytest.raises(UserError) as error:
        choose_key(stats, None, FILE)
    assert error.value.key == "actor.model.unnorm_key"
    assert "a, b_no_noops" in str(error.value)
    with pytest.raises(UserError, match="no statistics of this name"):
        choose_key(stats, "c", FILE)
    assert choose_key(known_statistics({}, {"mine": statistics(2)}, FILE), None, FILE) == "mine"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"q99": [1.0]}, "action.q99"),
        ({"mask": [True]}, "action.mask"),
        ({"q01": "none"}, "action.q01"),
        ({"mask": [1, 0]}, "action.mask"),
    ],
)
def test_statistics_of_another_width_are_refused(change: dict[str, object], key: str) -> None:
    action = {"q01": [0.0, 0.0], "q99": [1.0, 1.0], "mask": [True, True], **change}
    with pytest.raises(UserError) as error:
        read_scaling({"robot": {"action": action}}, "robot", "q99", FILE)
    assert key in str(error.value.key)


def test_the_prompt_is_the_published_one_and_ends_with_the_empty_token(tmp_path: Path) -> None:
    assert prompt_of("Pick up the RED cube") == "In: What action should the robot take to pick up the red cube?\nOut:"
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    encoder = PromptEncoder(tokenizer, length=20, pad_token=400)
    words = tokenizer.convert_ids_to_tokens(encoder.ids(INSTRUCTION))
    assert words == ["<s>", *prompt_of(INSTRUCTION).split(), EMPTY]
    rows = encoder.encode([INSTRUCTION, "push it"])
    assert rows.shape == (2, 20)
    assert rows[0].tolist() == encoder.ids(INSTRUCTION) + [400] * (20 - len(words))
    with pytest.raises(UserError, match="room for 5") as error:
        PromptEncoder(tokenizer, length=5, pad_token=400).encode([INSTRUCTION])
    assert "max_prompt_length" in str(error.value)


@pytest.mark.parametrize("shape", [(40, 56), (20, 20), (28, 61), (28, 28)])
def test_resizing_is_pillows_bicubic(shape: tuple[int, int]) -> None:
    images = random_images(3, *shape, 3)
    found = prepare_images([images], ImageSettings(28), center_crop=False)[:, 0]
    resized = [Image.fromarray(image.numpy()).resize((28, 28), Image.Resampling.BICUBIC) for image in images]
    difference = (found.int() - torch.from_numpy(np.stack([np.asarray(image) for image in resized])).int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.02


def crop_and_resize(image: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow's op, pixel by pixel, on the middle 90 % of the area, and its conversion to bytes."""
    height, width, _ = image.shape
    side = 0.9**0.5
    low = (1 - side) / 2
    result = np.zeros((size, size, 3), np.uint8)
    for row in range(size):
        for column in range(size):
            y = (low + side * row / (size - 1)) * (height - 1)
            x = (low + side * column / (size - 1)) * (width - 1)
            top, left = int(np.floor(y)), int(np.floor(x))
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            value = (upper * (1 - (y - top)) + lower * (y - top)) / 255
            result[row, column] = np.clip(value * 255.5, 0, 255).astype(np.uint8)
    return result


def test_the_centre_crop_is_tensorflows() -> None:
    images = random_images(1, 30, 40, 3)
    found = prepare_images([images], ImageSettings(14), center_crop=True)[0, 0]
    expected = torch.from_numpy(crop_and_resize(images[0].numpy().astype(np.float64), 14))
    assert (found.int() - expected.int()).abs().max() <= 1


def test_a_letterbox_is_padded_with_the_mean_colour() -> None:
    images = torch.full((1, 10, 20, 3), 200, dtype=torch.uint8)
    found = prepare_images([images], ImageSettings(20, strategy=LETTERBOX), center_crop=False)[0, 0]
    assert found[0, 0].tolist() == [int(0.485 * 255), int(0.456 * 255), int(0.406 * 255)]
    assert (found[5:15] == 200).all()
    assert torch.equal(found[4], found[15])


def test_both_normalisations_are_there() -> None:
    image = torch.tensor([[[[255, 0, 51]]]], dtype=torch.uint8)
    found = normalized(image, ImageSettings(1), torch.float32)[0, :, 0, 0]
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225, 1.0, -1.0, -0.6]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("content", [{"means": [[0.5] * 3]}, {"stds": [[0.0] * 3] * 2}, {"image_resize_strategy": "x"}])
def test_unknown_preparation_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(UserError):
        ImageSettings.read(content, 28, "resize-naive", FILE)

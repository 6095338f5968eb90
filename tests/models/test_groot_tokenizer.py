from __future__ import annotations

from pathlib import Path

import pytest
import torch
from eagle_tokenizer import write_eagle_tokenizer
from huggingface_hub import constants

from regrasp.errors import UserError
from regrasp.models.groot.processing.prompt import PromptFormat
from regrasp.models.groot.processing.tokenizer import TextEncoder, load_tokenizer, train_tokenizer

SENTENCES = ("pick up the red cube", "pick up the green cube", "push it")


def encoder(*, prompt: PromptFormat = "plain_text_first", sequence_length: int = 11) -> TextEncoder:
    return TextEncoder(
        train_tokenizer(SENTENCES, 400),
        prompt=prompt,
        sequence_length=sequence_length,
        num_views=1,
        tokens_per_view=3,
        image_token=1,
        pad_token=0,
    )


def test_any_text_round_trips():
    tokenizer = train_tokenizer(SENTENCES, 400)
    for text in (*SENTENCES, "Würfel 方块 \U0001f9ca", "<pad> <image>"):
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.decode(ids) == text
        assert min(ids) > 1


def test_trained_words_are_short():
    assert len(train_tokenizer(SENTENCES, 400).encode(SENTENCES[0])) <= 5


@pytest.mark.parametrize("prompt", ["plain_text_first", "plain_images_first"])
def test_layout_is_fixed_and_padded_on_the_left(prompt):
    text = encoder(prompt=prompt)
    words = text.tokenizer.encode(SENTENCES[2])
    content = [*words, 1, 1, 1] if prompt == "plain_text_first" else [1, 1, 1, *words]
    expected = [0] * (11 - len(content)) + content
    ids = text.encode([SENTENCES[2], SENTENCES[0], SENTENCES[2]])
    assert ids.shape == (3, text.sequence_length)
    assert ids[0].tolist() == ids[2].tolist() == expected


def test_too_long_an_instruction_names_itself_and_the_limit():
    with pytest.raises(UserError) as error:
        encoder(sequence_length=6).encode(["an instruction nobody trained"])
    assert "an instruction nobody trained" in str(error.value)
    assert "3" in str(error.value)


def test_the_padding_that_is_advised_is_just_enough():
    text = "an instruction nobody trained"
    with pytest.raises(UserError) as error:
        encoder(sequence_length=6).encode([text])
    fix = str(error.value.fix)
    needed = int(fix.partition("padding_value=")[2].partition(",")[0])
    assert needed == 3 + int(fix.partition("pretrain.architecture.text_length=")[2])
    assert 0 not in encoder(sequence_length=needed).encode([text])
    with pytest.raises(UserError, match="with room for"):
        encoder(sequence_length=needed - 1).encode([text])


def test_saved_tokenizer_is_the_same(tmp_path):
    tokenizer = train_tokenizer(SENTENCES, 400)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert [loaded.encode(text) for text in SENTENCES] == [tokenizer.encode(text) for text in SENTENCES]
    assert (loaded.pad_token_id, loaded.convert_tokens_to_ids("<image>")) == (0, 1)


def test_missing_tokenizer_and_small_vocabulary_are_named(tmp_path, empty_cache):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="258"):
        train_tokenizer(SENTENCES, 100)


def test_training_is_deterministic():
    first, second = (train_tokenizer(SENTENCES, 400) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert torch.equal(encoder().encode(SENTENCES), encoder().encode(SENTENCES))


@pytest.mark.parametrize("layout", ["vocab", "added", "json"])
def test_published_layouts_read_alike(tmp_path, layout):
    special = write_eagle_tokenizer(tmp_path, layout, trained=True)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.convert_tokens_to_ids(list(special)) == list(special.values())
    assert tokenizer.pad_token_id == special["<|endoftext|>"]
    assert len(tokenizer) == max(special.values()) + 1
    first = write_eagle_tokenizer(tmp_path / "first", trained=True)
    assert special == first
    for text in ("You are 42 helpful\n\n cubes  ", "don't, Würfel", "<img><IMG_CONTEXT></img>x"):
        assert tokenizer.encode(text) == load_tokenizer(tmp_path / "first").encode(text)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    home = tmp_path / "huggingface"
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    return home


def write_hub_cache(home: Path) -> dict[str, int]:
    repository = home / "hub" / "models--lerobot--eagle2hg-processor-groot-n1p5"
    commit = "0123456789012345678901234567890123456789"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return write_eagle_tokenizer(repository / "snapshots" / commit, trained=True)


def test_tokenizers_are_looked_for_in_order(tmp_path, empty_cache):
    folder, other = tmp_path / "model", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    with pytest.raises(UserError, match="hf download lerobot/eagle2hg-processor-groot-n1p5"):
        load_tokenizer(folder)
    with pytest.raises(UserError, match="No tokenizer in this folder") as error:
        load_tokenizer(folder, other)
    assert error.value.key == "actor.model.tokenizer_path"

    special = write_eagle_tokenizer(empty_cache / "lerobot" / "lerobot" / "eagle2hg-processor-groot-n1p5")
    assert load_tokenizer(folder).pad_token_id == special["<|endoftext|>"]
    trained = write_hub_cache(empty_cache)
    assert load_tokenizer(folder).pad_token_id == trained["<|endoftext|>"] != special["<|endoftext|>"]
    write_eagle_tokenizer(other)
    assert load_tokenizer(folder, other).pad_token_id == special["<|endoftext|>"]
    write_eagle_tokenizer(folder / "eagle2hg-processor-groot-n1p5", trained=True)
    assert load_tokenizer(folder, other).pad_token_id == trained["<|endoftext|>"]
    train_tokenizer(SENTENCES, 300).save_pretrained(folder)
    assert load_tokenizer(folder, other).pad_token_id == 0


@pytest.mark.parametrize("name", ["vocab.json", "added_tokens.json", "tokenizer_config.json", "chat_template.json"])
def test_damaged_files_are_named(tmp_path, name):
    write_eagle_tokenizer(tmp_path, "added", template="<image-1>")
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path)
    assert error.value.file == str(file)


@pytest.mark.parametrize(
    ("name", "content"),
    [("merges.txt", "a b c\n"), ("vocab.json", "{}"), ("tokenizer_config.json", '{"pad_token": 3}')],
)
def test_files_that_do_not_fit_together_are_named(tmp_path, name, content):
    write_eagle_tokenizer(tmp_path, trained=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="do not fit together") as error:
        load_tokenizer(tmp_path)
    assert error.value.file == str(tmp_path)


def test_no_code_of_the_folder_is_run(tmp_path):
    write_eagle_tokenizer(tmp_path)
    (tmp_path / "processing_eagle2_5_vl.py").write_text("raise RuntimeError('code of a checkpoint was run')\n")
    load_tokenizer(tmp_path)

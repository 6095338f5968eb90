from __future__ import annotations

import pytest
import torch
from groot_toys import SENTENCES

from regrasp.errors import UserError
from regrasp.models.groot.tokenizer import TextEncoder, load_tokenizer, train_tokenizer


def encoder(*, text_first: bool = True, text_length: int = 8) -> TextEncoder:
    return TextEncoder(
        train_tokenizer(SENTENCES, 400),
        text_length=text_length,
        num_image_tokens=3,
        image_token=1,
        pad_token=0,
        text_first=text_first,
    )


def test_any_text_round_trips():
    tokenizer = train_tokenizer(SENTENCES, 400)
    for text in (*SENTENCES, "Würfel 方块 \U0001f9ca", "<pad> <image>"):
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.decode(ids) == text
        assert min(ids) > 1


def test_trained_words_are_short():
    assert len(train_tokenizer(SENTENCES, 400).encode(SENTENCES[0])) <= 5


@pytest.mark.parametrize("text_first", [True, False])
def test_layout_is_fixed_and_padded_on_the_left(text_first):
    text = encoder(text_first=text_first)
    words = text.tokenizer.encode(SENTENCES[2])
    content = [*words, 1, 1, 1] if text_first else [1, 1, 1, *words]
    expected = [0] * (11 - len(content)) + content
    ids = text.encode([SENTENCES[2], SENTENCES[0], SENTENCES[2]])
    assert ids.shape == (3, text.sequence_length)
    assert ids[0].tolist() == ids[2].tolist() == expected


def test_too_long_an_instruction_names_itself_and_the_limit():
    with pytest.raises(UserError) as error:
        encoder(text_length=3).encode(["an instruction nobody trained"])
    assert "an instruction nobody trained" in str(error.value)
    assert "3" in str(error.value)


def test_saved_tokenizer_is_the_same(tmp_path):
    tokenizer = train_tokenizer(SENTENCES, 400)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert [loaded.encode(text) for text in SENTENCES] == [tokenizer.encode(text) for text in SENTENCES]
    assert (loaded.pad_token_id, loaded.convert_tokens_to_ids("<image>")) == (0, 1)


def test_missing_tokenizer_and_small_vocabulary_are_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="258"):
        train_tokenizer(SENTENCES, 100)


def test_training_is_deterministic():
    first, second = (train_tokenizer(SENTENCES, 400) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert torch.equal(encoder().encode(SENTENCES), encoder().encode(SENTENCES))

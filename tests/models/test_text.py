"""Tokens of a checkpoint's own tokenizer, or bytes."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mla_edu.models.text import Tokens

TEXT = "naïve café — ✓ mla"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "eos_token_id": [0, 7]}))
    return tmp_path


def write_tokenizer(folder):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def test_bytes_come_back_letter_by_letter(folder):
    text = Tokens(folder, 256)
    tokens, letters = text.encode(TEXT), text.stream()
    assert tokens == list(TEXT.encode())
    pieces = [letters(token) for token in tokens]
    assert "".join(pieces) == TEXT
    assert "" in pieces  # inside of a letter


def test_a_tokenizer_of_the_folder_is_used(folder):
    tokenizer = write_tokenizer(folder)
    text = Tokens(folder, 300)
    tokens, letters = text.encode(TEXT), text.stream()
    assert tokens == tokenizer.encode(TEXT).ids
    assert "".join(letters(token) for token in [*tokens, 0]) == TEXT


@pytest.mark.parametrize(("asked", "first"), [(True, [7]), (False, []), (None, [])])
def test_the_first_token_goes_in_front_where_the_folder_asks_for_it(folder, asked, first):
    tokenizer = write_tokenizer(folder)
    (folder / "config.json").write_text('{"bos_token_id": 7}')
    if asked is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": asked}))
    assert Tokens(folder, 300).encode(TEXT) == first + tokenizer.encode(TEXT).ids
    tokenizer.post_processor = processors.TemplateProcessing(single="é $A", special_tokens=[("é", 7)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert Tokens(folder, 300).encode(TEXT) == [7, *tokenizer.encode(TEXT, add_special_tokens=False).ids]  # once


def test_stop_tokens_are_those_of_the_configuration(folder):
    assert Tokens(folder, 256).stop_tokens == {0, 7}
    (folder / "config.json").write_text('{"eos_token_id": 5}')
    assert Tokens(folder, 256).stop_tokens == {5}
    (folder / "config.json").write_text("{}")
    assert Tokens(folder, 256).stop_tokens == frozenset()


def test_a_model_of_words_without_a_tokenizer_is_refused(folder):
    with pytest.raises(ValueError, match=r"tokenizer.json: no such file; expected it, since the model has 53 tokens"):
        Tokens(folder, 53)


def test_a_broken_tokenizer_is_said(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer"):
        Tokens(folder, 256)


@pytest.mark.parametrize("end", ["x", 1.5, [3, None], -1])
def test_an_end_that_is_no_token_is_refused(folder, end):
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "eos_token_id": end}))
    with pytest.raises(ValueError, match="eos_token_id is .*; expected an integer of at least 0"):
        Tokens(folder, 256)


def test_a_folder_is_a_path():
    with pytest.raises(TypeError, match="folder is 1; expected a path"):
        Tokens(1, 256)

"""Prompts and completions as token ids."""

import pytest

from arlow_vl.data.prompts import CAPTION_PROMPT, encode_example, encode_prompt, question_prompt
from tests.tiny_runs import tiny_tokenizer

BOS, EOS, IMAGE = 1, 2, 7


def plain(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


def test_a_caption_prompt_is_bos_and_the_image():
    assert encode_prompt(tiny_tokenizer(), CAPTION_PROMPT) == [BOS, IMAGE]


def test_a_question_prompt_has_its_text_after_the_image():
    ids = encode_prompt(tiny_tokenizer(), question_prompt("what is red?"))
    assert ids == [BOS, IMAGE, *plain("Question: what is red?\nAnswer:")]


def test_a_prompt_without_an_image_is_text():
    assert encode_prompt(tiny_tokenizer(), "the cat") == [BOS, *plain("the cat")]


def test_only_the_completion_and_eos_are_learnt():
    ids, labels = encode_example(tiny_tokenizer(), CAPTION_PROMPT, " a red dog", 50)
    assert ids == [BOS, IMAGE, *plain(" a red dog"), EOS]
    assert labels == [-100, -100, *plain(" a red dog"), EOS]


def test_a_caption_that_spells_special_tokens_stays_text():
    ids, _ = encode_example(tiny_tokenizer(), question_prompt("<image>?"), " <|endoftext|><image>", 99)
    assert [i for i in ids if i <= 10] == [BOS, IMAGE, EOS]
    assert tiny_tokenizer().decode(ids[2:-1]) == "Question: <image>?\nAnswer: <|endoftext|><image>"


def test_a_completion_that_is_cut_does_not_teach_to_stop():
    ids, labels = encode_example(tiny_tokenizer(), CAPTION_PROMPT, " the cat sat on a mat", 4)
    assert len(ids) == len(labels) == 4
    assert EOS not in ids


def test_a_prompt_without_room_for_a_completion_is_refused():
    with pytest.raises(ValueError, match="leaves no room in max_length 5"):
        encode_example(tiny_tokenizer(), question_prompt("what is it?"), " cat", 5)


def test_training_and_generation_see_the_same_prompt():
    prompt = question_prompt("is it red?")
    ids, labels = encode_example(tiny_tokenizer(), prompt, " yes", 50)
    assert ids[: labels.count(-100)] == encode_prompt(tiny_tokenizer(), prompt)

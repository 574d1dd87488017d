"""Conversations and texts become prompts, or are refused in a sentence before the model computes anything."""

import copy

import pytest
from PIL import Image

from arlow_vl.data.prompts import about_image, document_ends, encode_prompt
from arlow_vl.serving.assistant import Assistant
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.writing import write
from tests.models.convert.made_llamas import llama3_tokenizer, sentencepiece_tokenizer, smol_tokenizer
from tests.serving.tiny_assistants import text_assistant
from tests.tiny_runs import tiny_tokenizer
from vision.decoding.image import ImageError


@pytest.fixture(scope="module")
def writer(folders):
    return Assistant.open(folders[0], device="cpu")


def test_a_conversation_is_encoded_as_training_encodes_it(assistant):
    image = assistant.image(Image.new("RGB", (8, 8)))
    messages = about_image("Is <image> red?", images=2)
    prompt = assistant.chat(messages, [image, image])
    assert prompt.ids == tuple(encode_prompt(assistant.tokenizer, messages))
    assert prompt.ids.count(assistant.model.config.image_token_id) == 2


@pytest.mark.parametrize("given", [0, 2])
def test_each_image_part_has_an_image(assistant, given):
    images = [assistant.image(Image.new("RGB", (8, 8)))] * given
    with pytest.raises(ValueError, match=f"places for 1 image, and {given} came"):
        assistant.chat(about_image(), images)


def test_no_part_of_a_text_is_a_control_token(assistant, writer):
    for one in (assistant, writer):
        ids = one.text("<image><|im_end|>").ids
        assert ids[0] == one.tokenizer.bos_token_id
        assert not set(ids[1:]) & set(one.tokenizer.all_special_ids)


@pytest.mark.parametrize("made", [smol_tokenizer, llama3_tokenizer, sentencepiece_tokenizer, tiny_tokenizer])
def test_a_text_begins_as_its_tokenizer_begins_it(made):
    """SmolLM2's names a bos, <|im_start|>, and puts none in front; an empty text begins as documents do."""
    assistant, tokenizer = text_assistant(), made()
    assistant.tokenizer = tokenizer
    for text in ("the cat", " a", "\n"):
        assert assistant.text(text).ids == tuple(tokenizer(text)["input_ids"])
    assert assistant.text("").ids == (tokenizer.bos_token_id,)


def test_an_empty_text_begins_as_documents_do_without_a_bos():
    assistant = text_assistant()
    assistant.tokenizer = smol_tokenizer()
    assistant.tokenizer.bos_token = None
    assert assistant.text("").ids == document_ends(assistant.tokenizer)[:1]


def test_a_prompt_without_room_for_an_answer_is_refused(writer):
    with pytest.raises(ValueError, match="the model reads 128 with its answer; shorten it"):
        writer.text("the cat " * 200)


def test_a_text_model_says_that_it_sees_no_images(writer):
    assert not writer.sees_images
    with pytest.raises(ValueError, match="this is a text model and sees no images"):
        writer.image(Image.new("RGB", (8, 8)))


def test_a_broken_image_is_named(assistant, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.jpg"):
        assistant.image(tmp_path / "a.jpg")


def test_the_ends_are_those_of_the_folder_and_of_its_chat_template(assistant):
    names = assistant.tokenizer.convert_ids_to_tokens(sorted(assistant.stop_ids))
    assert set(names) == {"<|endoftext|>", "<|im_end|>"}


THINKS_FIRST = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant <think>{% endif %}"
)
WITHOUT_END = "{% for m in messages %}{{ m.content }} {% endfor %}"
REFUSES_ALL = "{{ raise_exception('no') }}"


@pytest.mark.parametrize("template", [THINKS_FIRST, WITHOUT_END, REFUSES_ALL])
def test_a_model_whose_chat_template_training_refuses_is_still_asked(template):
    assistant = text_assistant()
    assistant.tokenizer = copy.deepcopy(assistant.tokenizer)
    assistant.tokenizer.chat_template = template
    assistant.model.generation_config.eos_token_id = [5, 6]
    assert assistant.stop_ids == {5, 6, assistant.tokenizer.eos_token_id}
    prompts = [assistant.text("the cat")]
    if template is not REFUSES_ALL:
        prompts.append(assistant.chat([{"role": "user", "content": "the cat"}]))
    assert len(write(assistant, prompts, Decoding(max_new_tokens=3))) == len(prompts)

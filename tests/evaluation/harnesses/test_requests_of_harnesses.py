"""What all harnesses share: requests become prompts, answers and log-probabilities, whatever is asked beside them."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arlow_vl.data.prompts import about_image, encode_prompt, plain_ids
from arlow_vl.evaluation.harnesses.requests import (
    Converted,
    Request,
    answers,
    batch_size_of,
    begin_turn,
    decoding_of,
    document_ids,
    interleaved,
    log_probabilities,
    open_assistant,
)
from arlow_vl.evaluation.likelihood import answer_ids
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.writing import write
from tests.models.convert.made_llamas import llama3_tokenizer, smol_tokenizer
from tests.serving.tiny_assistants import text_assistant

GREEDY = Decoding(max_new_tokens=5)


def asked(assistant, text, image):
    return Request(encode_prompt(assistant.tokenizer, about_image(text)), [image], text)


def as_png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def test_answers_are_those_of_the_server_in_any_order_and_form_of_image(assistant, images):
    texts = ["the cat", "a big red dog saw one mat", "sing"]
    prompts = [
        assistant.chat(about_image(text), [assistant.image(image)]) for text, image in zip(texts, images, strict=True)
    ]
    expected = [one.text for one in write(assistant, prompts, GREEDY)]
    requests = [(asked(assistant, text, image), GREEDY) for text, image in zip(texts, images, strict=True)]
    assert answers(assistant, requests, batch_size=2) == expected
    assert answers(assistant, requests[::-1], batch_size=8) == expected[::-1]
    as_bytes = [(request._replace(images=[as_png(request.images[0])]), how) for request, how in requests]
    assert answers(assistant, as_bytes, batch_size=2) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.putpalette([0, 0, 255, 255, 255, 0]),
        lambda image: image.info.update(transparency=1),
        lambda image: image.getexif().update({0x0112: 6}),
    ],
)
def test_images_are_told_apart_by_all_that_is_shown_of_them(assistant, change):
    """Palettes, transparency and orientation, where the pixels in memory are the same numbers."""
    image = Image.new("P", (64, 64))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (0, 0, 20, 40))
    other = image.copy()
    change(other)
    assert other.tobytes() == image.tobytes()
    apart = [score(assistant, asked(assistant, "the cat", one), [40])[0].nats for one in (image, other)]
    pairs = [(asked(assistant, "the cat", one), [40]) for one in (image, other)]
    together = [one.nats for one in log_probabilities(assistant, pairs, batch_size=1)]
    assert together == apart and apart[0] != apart[1]


def test_each_request_is_answered_by_its_own_options(assistant, images):
    request = asked(assistant, "the cat", images[0])
    whole, short = answers(assistant, [(request, GREEDY), (request, Decoding(max_new_tokens=1))], batch_size=4)
    assert whole.startswith(short) and whole != short
    (stopped,) = answers(assistant, [(request, Decoding(max_new_tokens=5, stop=(whole[1],)))], batch_size=4)
    assert stopped == whole[: whole.index(whole[1])]


def test_what_is_drawn_follows_the_seed_of_the_harness_and_repeats_differ(assistant, images):
    repeats = [(asked(assistant, "the cat", images[0]), Decoding(max_new_tokens=5, temperature=1))] * 4

    def drawn(seed):
        torch.manual_seed(seed)
        return answers(assistant, repeats, batch_size=4)

    first = drawn(1234)
    assert len(set(first)) > 1
    assert drawn(1234) == first != drawn(5678)


def test_log_probabilities_do_not_depend_on_what_else_is_asked(assistant, images):
    model = assistant.model
    pairs = [(asked(assistant, "the cat", image), ids) for image in images for ids in ([40], [40, 41, 42], [43])]
    together = log_probabilities(assistant, pairs, batch_size=4)
    for (request, ids), found in zip(pairs, together, strict=True):
        pixels = assistant.pack([assistant.image(request.images[0])])
        with torch.inference_mode():
            logits = model(torch.tensor([[*request.ids, *ids]]), **pixels).logits[0]
        rows = logits[len(request.ids) - 1 : -1].float().log_softmax(-1)
        expected = sum(rows[place, token].item() for place, token in enumerate(ids))
        assert found.nats == pytest.approx(expected, abs=1e-4)  # another batch adds floats in another order
        assert found.is_greedy == (rows.argmax(-1).tolist() == ids)


def test_greedy_search_writes_what_is_called_greedy(assistant, images):
    request = asked(assistant, "the cat", images[0])
    prompt = assistant.chat(about_image("the cat"), [assistant.image(images[0])])
    (written,) = write(assistant, [prompt], GREEDY)
    first, second = list(written.ids), [written.ids[0] + 1, *written.ids[1:]]
    found = log_probabilities(assistant, [(request, first), (request, second)], batch_size=2)
    assert [one.is_greedy for one in found] == [True, False]


@settings(max_examples=50)
@given(st.lists(st.text(alphabet="ab <>", min_size=1), min_size=1, max_size=4))
def test_text_and_images_keep_their_order(pieces):
    text = "<image>".join(pieces)
    parts = interleaved(text, text.count("<image>"), name="t")
    assert "".join("<image>" if part["type"] == "image" else part["text"] for part in parts) == text


def test_a_text_without_places_has_its_images_first():
    assert [part["type"] for part in interleaved("a", 2, name="t")] == ["image", "image", "text"]


def test_without_images_the_image_token_is_text(assistant):
    ids = document_ids(assistant, interleaved("Is <image> a tag?", 0, name="t"))
    assert assistant.tokenizer.convert_tokens_to_ids("<image>") not in ids
    assert assistant.tokenizer.decode(ids, skip_special_tokens=True) == "Is <image> a tag?"


def test_an_answer_begins_its_turn_as_in_training_by_a_template_that_trims_nothing():
    tokenizer, question = smol_tokenizer(), [{"role": "user", "content": "Is it red?"}]
    trained = answer_ids(tokenizer, question, "yes")
    assert answer_ids(tokenizer, question, " yes") != trained == answer_ids(tokenizer, question, begin_turn(" yes"))


@pytest.mark.parametrize("made", [smol_tokenizer, llama3_tokenizer])
def test_a_document_begins_as_its_tokenizer_begins_a_text(made):
    """As lm-eval's own model has it. SmolLM2's names a bos and puts none in front."""
    assistant = text_assistant()
    assistant.tokenizer = made()
    assert document_ids(assistant, interleaved("the cat", 0, name="t")) == assistant.tokenizer("the cat")["input_ids"]
    assert document_ids(assistant, []) == list(assistant.text_prefix)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, {}),
        ({"max_gen_toks": 3, "do_sample": False, "temperature": 0.7}, {"max_new_tokens": 3}),
        ({"until": "\n"}, {"stop": ("\n",)}),
        ({"until": ["a", "", "b"], "top_p": None, "temperature": 0}, {"stop": ("a", "b")}),
        ({"until": [], "stop": "a"}, {"stop": ("a",)}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"temperature": 0.5, "top_p": 0.9, "num_beams": 1}, {"temperature": 0.5, "top_p": 0.9}),
        ({"temperature": 0, "top_p": 0}, {}),
    ],
)  # fmt: skip
def test_generation_arguments_of_harnesses_are_our_options(given_, expected):
    assert decoding_of(given_, max_new_tokens=7) == Decoding(**{"max_new_tokens": 7} | expected)


def test_an_argument_that_is_not_followed_is_said_once(caplog):
    for _ in range(2):
        decoding_of({"image_aspect_ratio": "pad"}, max_new_tokens=7)
    assert [record.message for record in caplog.records] == [
        "the generation argument image_aspect_ratio is not known to Arlow and was not followed"
    ]


def test_a_long_text_loses_its_beginning_and_leaves_room(text_folder, caplog):
    assistant = open_assistant(str(text_folder), device="cpu")  # reads 64 tokens
    (long,) = plain_ids(assistant.tokenizer, ["the cat sat on a mat and saw one big red dog " * 8])
    got = answers(assistant, [(Request(long), Decoding(max_new_tokens=10))], batch_size=1)
    assert got == answers(assistant, [(Request(long[-54:]), Decoding(max_new_tokens=10))], batch_size=1)
    assert "prompts of more than 54 tokens lost their beginning" in caplog.text
    assert score(assistant, Request(long), [40, 41]) == score(assistant, Request(long[-63:]), [40, 41])


def test_what_is_too_long_is_refused_before_anything_is_answered(assistant, images, monkeypatch):
    prompts, long = [asked(assistant, "the cat", images[0])] * 300, asked(assistant, "why " * 1100, images[0])
    monkeypatch.setattr("arlow_vl.evaluation.harnesses.requests.write", lambda *_, **__: pytest.fail("it answers"))
    with pytest.raises(ValueError, match="cutting it would lose an image"):
        answers(assistant, [(prompt, GREEDY) for prompt in [*prompts, long]], batch_size=1)
    likelihoods = "arlow_vl.evaluation.harnesses.requests.likelihoods"
    monkeypatch.setattr(likelihoods, lambda *_, **__: pytest.fail("it answers"))
    with pytest.raises(ValueError, match="a continuation has from 1 to 1,024 tokens, got 0"):
        log_probabilities(assistant, [*((prompt, [40]) for prompt in prompts), (prompts[0], [])], batch_size=1)


def test_requests_are_converted_anew_each_time_they_are_gone_through():
    converted = Converted([1, 2], lambda one: (one, object()))
    assert len(converted) == 2 and [one for one, _ in converted] == [1, 2]
    assert next(iter(converted))[1] is not next(iter(converted))[1]


def score(assistant, request, ids):
    return log_probabilities(assistant, [(request, ids)], batch_size=1)


def answer(assistant, request):
    return answers(assistant, [(request, GREEDY)], batch_size=1)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            lambda a, i: interleaved("<image> <image>", 1, name="q 3"),
            "q 3: the text has 2 <image> and 1 image came",
        ),
        (lambda a, i: batch_size_of("auto"), "batch_size is a whole number from 1 on, got auto"),
        (lambda a, i: decoding_of({"max_gen_toks": 0}, max_new_tokens=1), "max_new_tokens is at least 1, got 0"),
        (lambda a, i: score(a, Request([40], name="t 1"), []), "t 1: a continuation has from 1 to 1,024 tokens, got 0"),
        (lambda a, i: answer(a, Request([40] * 2000, i[:1], "t 2")), "t 2: the prompt has 2,000 tokens and 1,023 fit"),
        (lambda a, i: answer(a, Request([40], [b"no image"], "t 3")), "t 3"),
        (lambda a, i: open_assistant("no/such/folder"), "no/such/folder holds no config.json"),
    ],
)
def test_bad_requests_are_a_sentence_each(assistant, images, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        wrong(assistant, images)


def test_a_text_model_is_told_to_see_no_images(text_folder, images):
    assistant = open_assistant(str(text_folder), device="cpu")
    with pytest.raises(ValueError, match="this is a text model and sees no images"):
        answer(assistant, Request([40], images[:1]))


@pytest.mark.parametrize("videos", [[], (), None])
def test_the_processor_takes_lists_of_no_video_and_no_audio(assistant, videos):
    got = assistant.processor(text=["a"], images=[], videos=videos, audios=videos)
    assert got["input_ids"] == assistant.processor(text=["a"])["input_ids"]


@pytest.mark.parametrize("kind", ["videos", "audio"])
def test_the_processor_refuses_videos_and_audio(assistant, kind):
    with pytest.raises(ValueError, match="takes text and images, not videos or audio"):
        assistant.processor(text=["a"], **{kind: [b"x"]})

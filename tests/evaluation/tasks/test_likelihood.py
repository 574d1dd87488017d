"""Log-probabilities of answers, against a plain loop in float64."""

import pytest
import torch

from arlow_vl.data.prompts import about_image, encode_prompt
from arlow_vl.evaluation import likelihood
from arlow_vl.evaluation.likelihood import Choices, answer_ids, likeliest, log_probabilities
from arlow_vl.models.folders import load_vision_language_model

ANSWERS = ["red", "a big red dog", "the cat sat on a mat", "r"]


@pytest.fixture(scope="module")
def loaded(model_folder):
    model, processor = load_vision_language_model(model_folder)
    return model.double(), processor.tokenizer


def pixels(*images):
    return torch.stack([torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(image)) for image in images])


class Pack:
    """Images by number; remembers which were asked for together."""

    def __init__(self):
        self.calls = []

    def __call__(self, images):
        self.calls.append(list(images))
        return {"pixel_values": pixels(*images)}


def plain(model, tokenizer, messages, images, answer):
    """One row, no padding, no sharing, every token's own softmax."""
    prompt, ids = answer_ids(tokenizer, messages, answer)
    inputs = {"pixel_values": pixels(*images)} if images else {}
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ids]), **inputs).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + place - 1, token].item() for place, token in enumerate(ids))


def question(text, image, answers=ANSWERS):
    return Choices(about_image(text), [image], answers)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_answer_has_the_probability_of_a_plain_loop(loaded, batch_size):
    questions = [
        question("Is it red?", 1),
        question("What does the small bird see over the green hills?", 2),
        question("Is it red?", 2, ["yes", "no"]),
        Choices([{"role": "user", "content": "Sing in old trees"}], [], ANSWERS),
    ]
    found = log_probabilities(*loaded, questions, Pack(), batch_size=batch_size)
    for of, one in zip(questions, found, strict=True):
        expected = [plain(*loaded, of.messages, of.images, answer) for answer in of.answers]
        assert [answer.nats for answer in one] == pytest.approx(expected, abs=1e-5)
        assert [answer.bytes for answer in one] == [len(answer.encode()) for answer in of.answers]


def test_few_rows_are_read_at_once_where_their_logits_are_many(loaded, monkeypatch):
    model, tokenizer = loaded
    asked, rows = [question("Is it red?", 1), question("Is it?", 2)], []
    whole = log_probabilities(model, tokenizer, asked, Pack())
    longest = max(len(answer_ids(tokenizer, one.messages, answer)[1]) for one in asked for answer in one.answers)
    monkeypatch.setattr(likelihood, "MOST_LOGITS", 2 * (longest - 1) * model.config.get_text_config().vocab_size)
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(tuple(args[0].shape[:2])))
    parted = log_probabilities(model, tokenizer, asked, Pack())
    handle.remove()
    assert [one.nats for of in parted for one in of] == pytest.approx([one.nats for of in whole for one in of])
    behind = rows[1:]  # the prompts
    assert len(behind) > 1 and max(count * width for count, width in behind) <= 2 * (longest - 1)


def test_the_image_decides(loaded):
    one, other = log_probabilities(*loaded, [question("Is it red?", 1), question("Is it red?", 2)], Pack())
    assert all(abs(a.nats - b.nats) > 1e-6 for a, b in zip(one, other, strict=True))


def test_sixteen_questions_about_one_image_encode_it_once(loaded):
    pack = Pack()
    log_probabilities(*loaded, [question(f"Is it {word}?", 5) for word in "abcdefghijklmnop"], pack, batch_size=256)
    assert pack.calls == [[5]]


def test_answers_of_one_token_are_read_off_one_row(loaded):
    model, tokenizer = loaded
    rows = []
    handle = model.register_forward_pre_hook(
        lambda _, args, inputs: rows.append(inputs["input_ids"].shape), with_kwargs=True
    )
    single = [chr(code) for code in range(ord("a"), ord("f"))]
    log_probabilities(model, tokenizer, [question("Is it red?", 1, single)], Pack())
    handle.remove()
    assert all(len(answer_ids(tokenizer, about_image("Is it red?"), answer)[1]) == 1 for answer in single)
    assert rows == [(1, len(encode_prompt(tokenizer, about_image("Is it red?"))))]


def test_a_prompt_is_read_once_and_answers_behind_it_by_themselves(loaded):
    model, tokenizer = loaded
    read = []
    handle = model.register_forward_pre_hook(
        lambda _, args, inputs: read.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    log_probabilities(model, tokenizer, [question("Is it red?", 1), question("Is it big?", 2)], Pack())
    handle.remove()
    asked = max(len(encode_prompt(tokenizer, about_image(text))) for text in ("Is it red?", "Is it big?"))
    rest = {tuple(answer_ids(tokenizer, about_image("Is it red?"), answer)[1][:-1]) for answer in ANSWERS} - {()}
    assert read == [(2, asked), (2 * len(rest), max(map(len, rest)))]


@pytest.mark.parametrize(
    ("normalise", "nats", "best"),
    [
        ("none", (-6.4, -6.5), "größer"),
        ("characters", (-6.4, -6.5), "grosser"),  # -6.4 / 6 and -6.5 / 7
        ("none", (-6.5, -6.4), "grosser"),
        ("bytes", (-6.5, -6.4), "größer"),  # -6.5 / 8 and -6.4 / 7
        ("none", (-6.5, -6.5), "größer"),
    ],
)
def test_lengths_are_normalised_by_characters_or_bytes(normalise, nats, best):
    answers = ("größer", "grosser")
    assert answers[likeliest(answers, nats, normalise)] == best


def test_of_a_conversation_the_last_answer_alone_has_a_probability(loaded):
    _, tokenizer = loaded
    turns = [*about_image("Is it red?", "a cat"), {"role": "user", "content": "Is it big?"}]
    prompt, ids = answer_ids(tokenizer, turns, "a mat")
    assert prompt == encode_prompt(tokenizer, turns)
    assert ids == answer_ids(tokenizer, about_image("Is it red?"), "a mat")[1]
    with pytest.raises(ValueError, match="'' has no token"):
        answer_ids(tokenizer, turns, "")


def test_an_answer_of_nothing_has_no_probability(loaded):
    with pytest.raises(ValueError, match="'' has no token"):
        log_probabilities(*loaded, [question("Is it red?", 1, [""])], Pack())

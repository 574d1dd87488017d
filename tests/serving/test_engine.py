"""The engine's answers are those of each prompt alone, and one that fails or leaves is no matter to the others."""

import threading
import time
from collections import Counter

import pytest
import torch

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.generation_arlow import WithoutImageTokens
from arlow_vl.serving.assistant import PreparedImage, Prompt
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.engine import Busy, Engine, Stopping
from arlow_vl.serving.events import Failed, Finished, Piece
from arlow_vl.serving.next_token import NextToken
from arlow_vl.serving.rows import Rows
from arlow_vl.serving.writing import write
from tests.serving.tiny_assistants import generated, picture, question, text_assistant, vision_assistant


@pytest.fixture(scope="module")
def assistant():
    return vision_assistant()


@pytest.fixture
def engine(assistant):
    with Engine(assistant, max_batch=4, max_waiting=20) as running:
        yield running


def text_of(events) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def decoded(assistant, ids) -> str:
    return assistant.tokenizer.decode(ids, skip_special_tokens=True)


class Collected:
    """The events of one answer, which the engine's thread adds."""

    def __init__(self) -> None:
        self.events = []
        self.has_ended = threading.Event()

    def __call__(self, event) -> None:
        self.events.append(event)
        if not isinstance(event, Piece):
            self.has_ended.set()


def ask(engine, prompts, decodings, **options) -> list[list]:
    """The events of prompts that are asked a little after each other."""
    collected = [Collected() for _ in prompts]
    for prompt, decoding, one in zip(prompts, decodings, collected, strict=True):
        engine.submit(prompt, decoding, one, **options)
        time.sleep(0.01)
    assert all(one.has_ended.wait(30) for one in collected)
    return [one.events for one in collected]


def test_prompts_that_join_late_and_wait_get_the_answers_of_each_alone(engine, assistant):
    """More of them than rows, of different lengths, with and without images."""
    asked = [("the cat", ("red",)), ("a dog", ()), ("saw one big red dog", ("blue", "green")), (None, ("red",))] * 2
    prompts = [question(assistant, text, *colours) for text, colours in asked]
    lengths = [3 + 5 * (number % 4) for number in range(len(prompts))]
    answers = ask(engine, prompts, [Decoding(max_new_tokens=length) for length in lengths])
    for events, prompt, length in zip(answers, prompts, lengths, strict=True):
        alone = generated(assistant, prompt, length)
        assert text_of(events) == decoded(assistant, alone)
        assert events[-1].prompt_tokens == len(prompt.ids) and events[-1].completion_tokens == len(alone)


def test_a_penalty_is_the_one_of_generate(engine, assistant):
    prompts = [question(assistant, "the cat", "red"), question(assistant, "a dog on green hills")]
    decoding = Decoding(max_new_tokens=10, repetition_penalty=3.0)
    for events, prompt in zip(ask(engine, prompts, [decoding] * 2), prompts, strict=True):
        assert text_of(events) == decoded(assistant, generated(assistant, prompt, 10, repetition_penalty=3.0))


@pytest.fixture(scope="module")
def writer():
    assistant = text_assistant()
    assistant.model.double()
    return assistant


OWN_SETTINGS = {
    "no_repeat_ngram_size": lambda ids: 1,
    "suppress_tokens": lambda ids: ids[:1],
    "begin_suppress_tokens": lambda ids: ids[:1],
    "bad_words_ids": lambda ids: [ids[:2]],
    "sequence_bias": lambda ids: [[ids[:1], -50.0]],
    "forced_eos_token_id": lambda ids: ids[0],
    "exponential_decay_length_penalty": lambda ids: [1, 3.0],
}


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}, {"repetition_penalty": 2}], ids=str)
@pytest.mark.parametrize("name", OWN_SETTINGS)
def test_the_settings_of_the_model_folder_are_those_of_the_commands(writer, monkeypatch, name, options):
    prompt, decoding = writer.text("the cat"), Decoding(max_new_tokens=8, **options)
    (plain,) = write(writer, [prompt], decoding)
    monkeypatch.setattr(writer.model.generation_config, name, OWN_SETTINGS[name](list(plain.ids)))
    (written,) = write(writer, [prompt], decoding)
    with Engine(writer) as engine:
        assert text_of(engine.write(prompt, decoding)) == written.text
    assert options or written.ids != plain.ids


def test_a_setting_of_the_model_folder_that_no_row_can_be_given_is_refused_by_name(writer, monkeypatch):
    monkeypatch.setattr(writer.model.generation_config, "guidance_scale", 1.5)
    with pytest.raises(
        CheckpointError, match=r"sets guidance_scale to 1\.5, which answers .* do not honour; take it out"
    ):
        Engine(writer)


def test_a_seeded_draw_is_the_same_in_any_company(engine, assistant):
    prompt = question(assistant, "the cat", "red")
    decoding = Decoding(max_new_tokens=12, temperature=1.5, top_p=0.95, top_k=50, seed=7)
    alone = text_of(engine.write(prompt, decoding))
    others = [question(assistant, "a"), question(assistant, "saw", "blue")]
    answers = ask(engine, [others[0], prompt, others[1]], [Decoding(max_new_tokens=20), decoding, Decoding()])
    assert text_of(answers[1]) == alone
    assert alone != text_of(engine.write(prompt, Decoding(max_new_tokens=12, temperature=1.5, seed=8)))


def test_drawing_from_the_best_token_alone_is_greedy(engine, assistant):
    prompt = question(assistant, "the cat", "red")
    drawn = text_of(engine.write(prompt, Decoding(max_new_tokens=10, temperature=2.0, top_k=1)))
    assert drawn == decoded(assistant, generated(assistant, prompt, 10))


def test_draws_follow_the_models_probabilities():
    """Within four standard errors of a thousand draws, at half the temperature and from the three likeliest."""
    logits = torch.tensor([1.0, 2.0, 0.5, 1.5, 9.0])
    next_token = NextToken(Decoding(temperature=0.5, top_k=3, seed=0), [0], [WithoutImageTokens(4)])
    drawn = Counter(next_token.choose(logits) for _ in range(1000))
    expected = (logits[[0, 1, 3]] / 0.5).softmax(0)
    assert set(drawn) == {0, 1, 3}
    for token, share in zip((0, 1, 3), expected.tolist(), strict=True):
        assert abs(drawn[token] / 1000 - share) < 4 * (share * (1 - share) / 1000) ** 0.5


@pytest.mark.parametrize("decoding", [{}, {"temperature": 1.0, "seed": 0}, {"repetition_penalty": 0.5}])
def test_no_option_lets_an_image_token_be_written(decoding):
    eager = vision_assistant()
    image = eager.model.config.image_token_id
    eager.model.lm_head.weight.data[image] *= 100
    with Engine(eager) as engine:
        collected = Collected()
        engine.submit(question(eager, "a", "red"), Decoding(max_new_tokens=20, **decoding), collected, top_logprobs=0)
        assert collected.has_ended.wait(30)
    written = [token.token_id for event in collected.events[:-1] for token in event.tokens]
    assert len(written) == collected.events[-1].completion_tokens > 1 and image not in written


def test_an_image_is_encoded_once_for_all_who_ask_about_it(assistant):
    seen = []
    hook = assistant.model.model.vision.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    image = assistant.image(picture("red"))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    with Engine(assistant, max_batch=2) as engine:
        ask(engine, [assistant.chat(messages, [image])] * 5, [Decoding(max_new_tokens=3)] * 5)
    hook.remove()
    assert seen == [1]


def test_one_that_leaves_is_told_no_more_and_frees_its_row(assistant):
    with Engine(assistant, max_batch=1) as engine:
        gone, waiting = Collected(), Collected()
        answer = engine.submit(question(assistant, "a"), Decoding(max_new_tokens=90), gone)
        engine.submit(question(assistant, "the cat"), Decoding(max_new_tokens=3), waiting)
        answer.cancel()
        told = len(gone.events)
        assert waiting.has_ended.wait(30)
        assert isinstance(waiting.events[-1], Finished) and len(gone.events) <= told + 1 and not gone.has_ended.is_set()
        end = time.monotonic() + 10
        while engine.load != (0, 0) and time.monotonic() < end:
            time.sleep(0.01)
        assert engine.load == (0, 0)


def test_one_prompt_that_fails_takes_no_other_with_it(assistant, caplog):
    """A broken image among good ones that are read together."""
    good = question(assistant, "the cat", "red")
    images = (PreparedImage(torch.full_like(good.images[0].pixels, torch.nan), "broken"),)
    prompts = [good, Prompt(good.ids, images), question(assistant, "a dog")]
    engine = Engine(assistant, max_batch=4)
    collected = [Collected() for _ in prompts]
    for prompt, one in zip(prompts, collected, strict=True):
        engine.submit(prompt, Decoding(max_new_tokens=6), one)
    with engine:
        assert all(one.has_ended.wait(30) for one in collected)
        assert collected[1].events == [Failed("model", collected[1].events[0].message)]
        assert "the reason is in the server's log" in collected[1].events[0].message
        assert text_of(collected[0].events) == decoded(assistant, generated(assistant, good, 6))
        assert isinstance(collected[2].events[-1], Finished)
        assert text_of(engine.write(good, Decoding(max_new_tokens=6))) == text_of(collected[0].events)
    assert "NaN or infinity" in caplog.text


def test_none_is_lost_where_those_that_were_read_cannot_join(writer, monkeypatch, caplog):
    """Four are taken out of the queue and, as they cannot be read together, read one by one; the second fails."""
    read, join, joined = Rows.read, Rows.join, []

    def read_one(self, prompts, images, states):
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("together")
        return read(self, prompts, images, states)

    def join_once(self, prompts):
        joined.append(prompts)
        if len(joined) == 2:
            raise torch.OutOfMemoryError("no room")
        join(self, prompts)

    monkeypatch.setattr(Rows, "read", read_one)
    monkeypatch.setattr(Rows, "join", join_once)
    engine, collected = Engine(writer, max_batch=4), [Collected() for _ in range(4)]
    for text, one in zip(("the cat", "a dog", "one two", "red"), collected, strict=True):
        engine.submit(writer.text(text), Decoding(max_new_tokens=4), one)
    with engine:
        assert all(one.has_ended.wait(30) for one in collected)
        assert [one.events[-1].fault for one in collected] == ["model"] * 4
        assert isinstance(list(engine.write(writer.text("the cat"), Decoding(max_new_tokens=4)))[-1], Finished)


def test_logits_that_are_not_finite_end_their_own_answer(caplog):
    broken = text_assistant()
    (token,) = broken.tokenizer(" cat", add_special_tokens=False)["input_ids"]
    broken.model.model.embed_tokens.weight.data[token] = float("nan")
    with Engine(broken) as engine:
        bad, good = ask(engine, [broken.text("the cat"), broken.text("a")], [Decoding(max_new_tokens=1)] * 2)
    assert isinstance(bad[-1], Failed) and isinstance(good[-1], Finished)
    assert "its logits are not finite" in caplog.text


def test_what_cannot_be_answered_is_refused_before_it_waits(assistant):
    engine = Engine(assistant, max_waiting=1)
    prompt = question(assistant, "a")
    with pytest.raises(ValueError, match="num_beams above 1 is not for answers that are written together"):
        engine.submit(prompt, Decoding(num_beams=2), print)
    with pytest.raises(ValueError, match=r"max_new_tokens is 500, .* room for"):
        engine.submit(prompt, Decoding(max_new_tokens=500), print)
    engine.submit(prompt, Decoding(), lambda event: None)
    with pytest.raises(Busy):
        engine.submit(prompt, Decoding(), print)


def test_an_end_tells_all_who_wait(assistant):
    engine, collected = Engine(assistant, max_batch=1), [Collected() for _ in range(3)]
    for one in collected:
        engine.submit(question(assistant, "a"), Decoding(max_new_tokens=90), one)
    with engine:
        pass
    assert [one.events[-1].fault for one in collected] == ["stopped"] * 3
    with pytest.raises(Stopping):
        engine.submit(question(assistant, "a"), Decoding(), print)


def test_an_answer_that_takes_too_long_ends(assistant):
    with Engine(assistant, max_batch=1) as engine:
        (events,) = ask(engine, [question(assistant, "a")], [Decoding(max_new_tokens=90)], seconds=0.02)
    assert isinstance(events[-1], Failed) and events[-1].fault == "late"

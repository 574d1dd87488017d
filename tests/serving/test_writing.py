"""What is written is the same in any batch and in a stream, and as likely as a plain loop says."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from arlow_vl.data.prompts import about_image
from arlow_vl.errors import CheckpointError
from arlow_vl.serving.assistant import Assistant, Prompt
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.drawing import token_at
from arlow_vl.serving.writing import choose, stream, write
from tests.tiny_runs import tiny_tokenizer

QUESTIONS = [None, "Is it red?", "Is it red?", "What does the bird see over the green hills?", "a"]
DECODINGS = {
    "greedy": {},
    "sampling": {"temperature": 1.0, "seed": 7},
    "sampling from few": {"temperature": 1.5, "top_k": 9, "top_p": 0.8, "seed": 3},
    "beams": {"num_beams": 3},
    "a penalty": {"repetition_penalty": 1.5},
    "a stop text": {"stop": ("e", " s")},
    "beams with a stop text": {"num_beams": 2, "stop": ("e",)},
}
few = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def images(assistant):
    return [assistant.image(Image.new("RGB", (40, 30), color)) for color in ("red", "blue")]


@pytest.fixture(scope="module")
def prompts(assistant, images):
    """With one image, the same one, none and both."""
    shown = [[0], [0], [1], [], [0, 1]]
    return [
        assistant.chat(about_image(question, images=len(places)), [images[place] for place in places])
        for question, places in zip(QUESTIONS, shown, strict=True)
    ]


def decoding_of(name, **changes):
    return Decoding(**{"max_new_tokens": 8} | DECODINGS[name] | changes)


@pytest.mark.parametrize("name", DECODINGS)
def test_an_answer_does_not_depend_on_its_batch(assistant, prompts, name):
    decoding = decoding_of(name)
    alone = [write(assistant, [prompt], decoding)[0] for prompt in prompts]
    assert len({one.text for one in alone}) > 1
    for size in (2, 32):
        together = write(assistant, prompts, decoding, batch_size=size)
        assert [(one.text, one.ids, one.finish_reason) for one in together] == [
            (one.text, one.ids, one.finish_reason) for one in alone
        ]
        for one, other in zip(together, alone, strict=True):
            assert (one.nats is None) is (name.startswith("beams")) and one.nats == pytest.approx(other.nats)


@pytest.mark.parametrize("name", DECODINGS)
def test_the_pieces_of_a_stream_are_the_text_that_is_written(assistant, prompts, name):
    decoding = decoding_of(name)
    for prompt, written in zip(prompts, write(assistant, prompts, decoding), strict=True):
        assert "".join(stream(assistant, prompt, decoding)) == written.text


@few
@given(seed=st.integers(0, 2**31), count=st.integers(1, 5), data=st.data())
def test_a_seed_writes_the_same_in_any_order_and_company(assistant, prompts, seed, count, data):
    decoding = Decoding(max_new_tokens=4, temperature=2.0, seed=seed)
    order = data.draw(st.permutations(range(len(prompts))))[:count]
    written = write(assistant, [prompts[place] for place in order], decoding)
    again = write(assistant, prompts, decoding, batch_size=3)
    assert [one.ids for one in written] == [again[place].ids for place in order]


def test_without_a_seed_draws_differ(assistant, prompts):
    decoding = Decoding(max_new_tokens=8, temperature=2.0)
    same = [prompts[0]] * 4
    assert len({one.ids for one in write(assistant, same, decoding)}) > 1
    assert write(assistant, same, decoding) != write(assistant, same, decoding)


@given(st.lists(st.floats(-30, 30) | st.just(-torch.inf), min_size=2, max_size=20).filter(lambda x: max(x) > -30))
def test_of_evenly_spread_numbers_each_token_gets_its_share(scores):
    count = 200
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    scores = torch.tensor(scores)
    chosen = token_at(scores.expand(count, -1), numbers)[:, 0]
    counts = torch.bincount(chosen, minlength=len(scores))
    shares = scores.double().softmax(-1) * count
    assert (counts - shares).abs().max() <= 1 + 1e-6
    assert not counts[scores == -torch.inf].any()


def test_draws_are_from_what_temperature_top_k_and_top_p_leave(assistant, prompts):
    greedy = write(assistant, prompts, Decoding(max_new_tokens=6))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
        drawn = write(assistant, prompts, Decoding(max_new_tokens=6, temperature=2.0, **narrow))
        assert [one.ids for one in drawn] == [one.ids for one in greedy]
    cold = write(assistant, prompts, Decoding(max_new_tokens=6, temperature=1e-4))
    assert [one.ids for one in cold] == [one.ids for one in greedy]


@pytest.mark.parametrize("name", ["greedy", "sampling from few", "a penalty"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_probability_is_that_of_a_plain_loop(assistant, prompts, name, count, monkeypatch):
    monkeypatch.setattr(assistant.model.generation_config, "no_repeat_ngram_size", 1)
    prompt = prompts[2]
    written = write(assistant, [prompt] * count, decoding_of(name))[0]
    assert written.finish_reason == "length" and len(written.ids) == 8
    ids = torch.tensor([[*prompt.ids, *written.ids]])
    with torch.no_grad():
        logits = assistant.model(ids, **assistant.pack(prompt.images)).logits[0, len(prompt.ids) - 1 : -1]
    nats = logits.log_softmax(-1).gather(1, torch.tensor(written.ids)[:, None]).sum()
    assert written.nats == pytest.approx(float(nats), abs=1e-4)  # it is kept in float32


def test_an_end_ends_the_text_and_is_counted(assistant, prompts, monkeypatch):
    (whole,) = write(assistant, [prompts[1]], Decoding(max_new_tokens=8))
    end = next(token for place, token in enumerate(whole.ids) if place and token not in whole.ids[:place])
    place = whole.ids.index(end)
    monkeypatch.setattr(assistant, "stop_ids", frozenset({end}))
    (ended,) = write(assistant, [prompts[1]], Decoding(max_new_tokens=8))
    assert (ended.ids, ended.finish_reason) == (whole.ids[:place], "stop")
    (cut,) = write(assistant, [prompts[1]], Decoding(max_new_tokens=place + 1))
    assert ended.nats == cut.nats and cut.finish_reason == "stop"
    assert "".join(stream(assistant, prompts[1], Decoding(max_new_tokens=8))) == ended.text


def test_a_stop_text_ends_its_own_row_and_no_other(assistant, prompts):
    whole = write(assistant, prompts, Decoding(max_new_tokens=8))
    stop = whole[0].text[1:3]
    assert len(stop) == 2
    stopped = write(assistant, prompts, Decoding(max_new_tokens=8, stop=(stop,)))
    for one, other in zip(whole, stopped, strict=True):
        before, found, _ = one.text.partition(stop)
        assert other.text == before and (other.finish_reason == "stop") is bool(found)
        assert one.ids[: len(other.ids)] == other.ids and (found or one.ids == other.ids)
        assert found or one.nats == other.nats


def test_images_that_prompts_share_are_encoded_once_a_batch(assistant, prompts, images, monkeypatch):
    packed = []
    pack = assistant.pack
    monkeypatch.setattr(assistant, "pack", lambda some: packed.append(list(some)) or pack(some))
    write(assistant, [prompts[0]] * 5 + [prompts[2]], Decoding(max_new_tokens=1))
    assert packed == [[images[0], images[1]]] or packed == [[images[0]], [images[1]]]
    packed.clear()
    write(assistant, [prompts[1]] * 3, Decoding(max_new_tokens=1))
    assert packed == [[images[0]]]


def test_an_answer_ends_at_the_length_of_the_model_whatever_its_batch(assistant):
    ids = tiny_tokenizer()("the cat sat on a mat " * 40, add_special_tokens=False).input_ids
    long = Prompt(tuple(ids[: assistant.max_length - 3]))
    short = Prompt(tuple(ids[:5]))
    both = write(assistant, [long, short], Decoding(max_new_tokens=10))
    assert [len(one.ids) for one in both] == [3, 10]
    assert both[0].finish_reason == "length"


def test_progress_counts_prompts(assistant, prompts):
    told = []
    write(assistant, prompts, Decoding(max_new_tokens=1), batch_size=2, on_progress=lambda *now: told.append(now))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_nothing_is_written_for_nobody(assistant):
    assert write(assistant, [], Decoding()) == []


def test_a_stream_that_is_closed_stops_writing(assistant, prompts):
    steps = []
    with assistant.model.register_forward_pre_hook(lambda *_: steps.append(1)):
        pieces = stream(assistant, prompts[0], Decoding(max_new_tokens=100))
        next(pieces)
        pieces.close()
    done = len(steps)
    assert done < 100
    assert "".join(stream(assistant, prompts[0], Decoding(max_new_tokens=2)))  # the model is free again


def test_weights_that_are_not_finite_write_nothing(folders):
    broken = Assistant.open(folders[0], device="cpu")
    broken.model.model.norm.weight.data[0] = float("nan")
    prompt = broken.text("the cat")
    with pytest.raises(CheckpointError, match="logits are not finite"):
        write(broken, [prompt], Decoding())
    with pytest.raises(CheckpointError, match="logits are not finite"):
        list(stream(broken, prompt, Decoding(temperature=1.0)))


def test_the_probabilities_of_choices_are_those_of_their_tokens(assistant, images):
    messages, answers = about_image("Is it red?"), ["yes", "no", "big red dog"]
    shares = choose(assistant, messages, images[:1], answers)
    assert sum(shares) == pytest.approx(1)
    prompt = assistant.chat(messages, images[:1])
    nats = []
    for answer in answers:
        ids = tiny_tokenizer()(answer, add_special_tokens=False).input_ids
        with torch.no_grad():
            read = torch.tensor([[*prompt.ids, *ids]])
            logits = assistant.model(read, **assistant.pack(prompt.images)).logits[0, len(prompt.ids) - 1 : -1]
        nats.append(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())
    assert shares == pytest.approx(torch.stack(nats).softmax(0).tolist())


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (["yes"], "two different answers or more, got 'yes'"),
        ([], "got none"),
        (["yes", "yes"], "two different answers or more, got 'yes', 'yes'"),
        (["yes", ""], "the answer '' has no token"),
        (["yes", "the cat " * 200], "the longest choice .* the model reads 128 together"),
    ],
)
def test_choices_that_cannot_be_compared_are_refused(assistant, images, answers, sentence):
    with pytest.raises(ValueError, match=sentence):
        choose(assistant, about_image("Is it red?"), images[:1], answers)

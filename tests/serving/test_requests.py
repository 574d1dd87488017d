"""Any JSON at all becomes a request or a refusal of one sentence, never another exception."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from arlow_vl.models.arlow.generation_arlow import WithoutImageTokens
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.limits import ServerLimits
from arlow_vl.serving.next_token import NextToken
from arlow_vl.serving.refusals import Refusal
from arlow_vl.serving.requests import Request, RequestReader
from tests.serving.live import image_part
from tests.serving.tiny_assistants import vision_assistant


@pytest.fixture(scope="module")
def reader():
    return RequestReader(vision_assistant(), "arlow", ServerLimits(max_new_tokens=50))


words = st.text(max_size=6) | st.sampled_from(["user", "assistant", "<image>", "text", "image_url", "/etc/passwd"])
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
parts = values | st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url"])}, optional={"text": words, "image_url": values}
)
parts |= st.just(image_part("red"))
messages = values | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant"])},
    optional={"content": words | st.lists(parts, max_size=3)},
)
names = "max_tokens max_completion_tokens temperature top_p top_k seed stop stream n logprobs top_logprobs".split()
options = st.dictionaries(st.sampled_from(names) | words, values, max_size=3)


def read(reader, path: str, values: dict) -> Request | Refusal:
    try:
        return getattr(reader, path)(json.dumps(values).encode())
    except Refusal as refusal:
        return refusal


@settings(max_examples=300)
@given(st.lists(messages, max_size=2), options)
def test_any_chat_is_a_request_or_a_refusal(reader, chat, extra):
    found = read(reader, "chat", {"model": "arlow", "messages": chat, **extra})
    if isinstance(found, Refusal):
        assert 400 <= found.status < 500 and "\n" not in str(found) and len(str(found)) < 300
        json.dumps(found.body()).encode()
    else:
        assert len(found.prompt.ids) + found.decoding.max_new_tokens <= 128


@settings(max_examples=100)
@given(values, options)
def test_any_completion_is_a_request_or_a_refusal(reader, prompt, extra):
    found = read(reader, "completion", {"model": "arlow", "prompt": prompt, **extra})
    assert isinstance(found, Request) or 400 <= found.status < 500


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_refusal(reader, body):
    with pytest.raises(Refusal):
        reader.chat(body)


@settings(max_examples=150)
@given(
    st.floats(0, 2),
    st.floats(0, 1, exclude_min=True),
    st.integers(0, 2**31),
    st.floats(0.01, 100),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=9),
)
def test_any_options_choose_a_token_that_may_be_written(temperature, top_p, top_k, penalty, logits):
    decoding = Decoding(temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=penalty, seed=0)
    next_token = NextToken(decoding, [0, 1], [WithoutImageTokens(2), RepetitionPenaltyLogitsProcessor(penalty)])
    for _ in range(3):
        assert next_token.choose(torch.tensor(logits)) != 2


def test_the_same_bytes_are_the_same_image(reader):
    chat = [{"role": "user", "content": [image_part("red"), image_part("blue"), image_part("red")]}]
    first, second = (read(reader, "chat", {"model": "arlow", "messages": chat}).prompt.images for _ in range(2))
    assert first[0] is first[2] is second[0] and first[1] is second[1] is not first[0]


def test_what_is_not_said_is_greedy_and_as_long_as_may_be(reader):
    found = read(
        reader, "chat", {"model": "arlow", "messages": [{"role": "user", "content": "a"}], "temperature": None}
    )
    assert found.decoding == Decoding(max_new_tokens=50) and not found.is_stream
    long = read(reader, "chat", {"model": "arlow", "messages": [{"role": "user", "content": "x" * 90}]})
    assert long.decoding.max_new_tokens == 128 - len(long.prompt.ids) < 50


def test_messages_that_a_client_sends_back_are_taken(reader):
    """With the fields that OpenAI's client adds to an answer, null or empty."""
    nothing = dict.fromkeys(("refusal", "audio", "function_call", "tool_calls"))
    answer = {"role": "assistant", "content": "a dog", "annotations": [], **nothing}
    chat = [{"role": "developer", "content": "be short"}, {"role": "user", "content": "a"}, answer]
    chat.append({"role": "user", "content": [{"type": "text", "text": "why?"}]})
    assert isinstance(read(reader, "chat", {"model": "arlow", "messages": chat}), Request)


NOTHING = {
    "parallel_tool_calls": [True, False],
    "service_tier": ["auto", "default"],
    "metadata": [{}],
    "min_p": [0, 0.0],
    "ignore_eos": [False],
    "top_k": [-1, 0],
}
SOMETHING = {"service_tier": "flex", "metadata": {"a": "b"}, "min_p": 0.1, "ignore_eos": True, "top_k": -2}


@pytest.mark.parametrize("name", NOTHING)
def test_a_field_that_asks_for_nothing_is_taken_and_another_value_refused(reader, name):
    body = {"model": "arlow", "messages": [{"role": "user", "content": "a"}]}
    for value in NOTHING[name]:
        assert read(reader, "chat", body | {name: value}).decoding == Decoding(max_new_tokens=50)
    if name in SOMETHING:
        assert name in str(read(reader, "chat", body | {name: SOMETHING[name]}))

"""The server as the official client and other people's programs meet it, over real sockets."""

import threading

import openai
import pytest

from arlow_vl.serving.events import Piece, TokenLogprob
from arlow_vl.serving.replies import Reply
from tests.serving.live import image_part, live, text_part
from tests.serving.tiny_assistants import generated, question, vision_assistant

KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def assistant():
    return vision_assistant()


@pytest.fixture(scope="module")
def served(assistant):
    with live(assistant, api_key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def expected_text(assistant, prompt, tokens: int) -> str:
    return assistant.tokenizer.decode(generated(assistant, prompt, tokens), skip_special_tokens=True)


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}]


def test_the_official_client_is_told_the_model(client):
    assert [model.id for model in client.models.list()] == ["arlow"]
    assert client.models.retrieve("arlow").object == "model"


def test_the_official_client_gets_the_text_that_generate_writes(client, assistant):
    answer = client.chat.completions.create(model="arlow", messages=user("the cat sat"), max_completion_tokens=8)
    prompt = question(assistant, "the cat sat")
    assert answer.choices[0].message.content == expected_text(assistant, prompt, 8)
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt.ids), 8)


def test_the_official_client_asks_about_images(client, assistant):
    messages = user(image_part("red"), image_part("blue"), text_part("a dog"))
    answer = client.chat.completions.create(model="arlow", messages=messages, max_tokens=8)
    assert answer.choices[0].message.content == expected_text(assistant, question(assistant, "a dog", "red", "blue"), 8)
    other = client.chat.completions.create(
        model="arlow", messages=user(image_part("green"), image_part("blue"), text_part("a dog")), max_tokens=8
    )
    assert other.choices[0].message.content != answer.choices[0].message.content


def test_the_official_client_reads_a_stream(client, assistant):
    messages = user(image_part("red"), text_part("a dog"))
    options = {"model": "arlow", "messages": messages, "max_tokens": 12}
    stream = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == expected_text(assistant, question(assistant, "a dog", "red"), 12)
    assert stream[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in stream if chunk.choices][-1] == "length"
    assert stream[-1].choices == [] and stream[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in stream}) == 1


def test_the_official_client_completes_text(client, assistant):
    answer = client.completions.create(model="arlow", prompt="the cat sat", max_tokens=6)
    assert answer.choices[0].text == expected_text(assistant, assistant.text("the cat sat"), 6)


def test_logprobs_are_those_of_the_written_tokens(client):
    answer = client.chat.completions.create(
        model="arlow", messages=user("the cat"), max_tokens=5, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 5 and all(len(token.top_logprobs) == 3 for token in tokens)
    for token in tokens:  # greedy: the written token is the likeliest
        assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0


def test_the_bytes_of_tokens_join_to_a_character_that_they_share(assistant):
    reply = Reply("arlow", assistant.tokenizer, is_chat=True, has_logprobs=True)
    ids = assistant.tokenizer("€", add_special_tokens=False)["input_ids"]
    piece = Piece("€", tuple(TokenLogprob(index, -1.0, ((index, -1.0),)) for index in ids))
    tokens = reply.chunk(piece)["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 3 and bytes(byte for token in tokens for byte in token["bytes"]) == "€".encode()
    assert all(token["top_logprobs"][0]["bytes"] == token["bytes"] for token in tokens)


def test_a_seed_repeats_a_drawn_answer_and_another_one_does_not(client):
    def draw(seed: int) -> str:
        options = {"temperature": 1.5, "top_p": 0.9, "max_tokens": 12, "seed": seed}
        return (
            client.chat.completions.create(model="arlow", messages=user("the cat"), **options)
            .choices[0]
            .message.content
        )

    assert draw(1) == draw(1) != draw(2)


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(client, assistant):
    whole = expected_text(assistant, question(assistant, "the cat sat"), 20)
    stop = whole[5:7]
    answer = client.chat.completions.create(model="arlow", messages=user("the cat sat"), max_tokens=20, stop=[stop])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_wrong_key_is_refused(served):
    other = openai.OpenAI(base_url=f"{served.server.url}/v1", api_key="another-key", max_retries=0)
    with other, pytest.raises(openai.AuthenticationError, match="the API key is wrong or missing"):
        other.models.list()
    assert served.ask("GET", "/v1/models")[0] == 401
    assert served.ask("GET", "/health")[0] == 200


def test_the_client_is_told_which_field_is_wrong(client):
    with pytest.raises(openai.BadRequestError, match="frequency_penalty is not supported; leave it out") as refused:
        client.chat.completions.create(model="arlow", messages=user("a"), frequency_penalty=1.0)
    assert refused.value.param == "frequency_penalty"
    with pytest.raises(openai.NotFoundError, match="there is no model gpt-5 here; give 'arlow'"):
        client.chat.completions.create(model="gpt-5", messages=user("a"))
    with pytest.raises(openai.BadRequestError, match="num_beams is not supported; answers are written together"):
        client.chat.completions.create(model="arlow", messages=user("a"), extra_body={"num_beams": 4})


def test_many_at_once_get_what_each_gets_alone(client, assistant):
    questions = [("the cat", ["red"]), ("a big dog", []), ("saw one", ["blue", "green"]), ("the cat", ["green"])] * 2
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        text, colours = questions[number]
        messages = user(*map(image_part, colours), text_part(text)) if colours else user(text)
        answer = client.chat.completions.create(model="arlow", messages=messages, max_tokens=10)
        answers[number] = answer.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone = [expected_text(assistant, question(assistant, text, *colours), 10) for text, colours in questions]
    assert [answers[number] for number in range(len(questions))] == alone

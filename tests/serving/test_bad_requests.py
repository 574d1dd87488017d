"""Whatever a client sends that cannot be answered is refused in one sentence, and the server goes on."""

import io
import sys
import zlib

import pytest
from PIL import Image

from arlow_vl.serving.fields import MAX_DEPTH, parse_object, shown
from arlow_vl.serving.limits import ServerLimits
from arlow_vl.serving.refusals import Refusal
from tests.serving.live import data_url, image_part, live
from tests.serving.tiny_assistants import picture, question, text_assistant, vision_assistant


@pytest.fixture(scope="module")
def assistant():
    return vision_assistant()


@pytest.fixture(scope="module")
def open_server(assistant):
    """Without a key, with small bounds."""
    limits = ServerLimits(max_body_bytes=4 * 2**20, max_held_bytes=8 * 2**20, max_new_tokens=50, read_seconds=1.5)
    with live(assistant, limits=limits) as running:
        yield running


def png_header(width: int, height: int) -> bytes:
    """A file of the size that it says, in the number of pixels that its header says."""
    data = bytearray(picture("red"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def gif(frames: int) -> bytes:
    images = [Image.new("RGB", (20, 20), (80 * shade, 0, 0)) for shade in range(frames)]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=50)
    return buffer.getvalue()


BAD_CONTENT = {
    "an image part without an image": ([{"type": "image_url", "image_url": {}}], "holds no image"),
    "ten images": ([image_part("red")] * 10, "10 images came, and a request may have 8; send fewer"),
    "100 megapixels": ([image_part(data_url(png_header(10_000, 10_000)))], "10,000 x 10,000 pixels, the limit is"),
    "an animation": ([image_part(data_url(gif(3), "image/gif"))], "the image is animated; send one frame of it"),
    "half an image": ([image_part(data_url(picture("red")[:100]))], "messages[0].content[0]"),
    "a text as an image": ([image_part(data_url(b"once upon a time", "text/plain"))], "messages[0].content[0]"),
    "broken base64": ([image_part("data:image/png;base64,*&^")], "its base64 is broken; encode the image's bytes"),
    "an address": ([image_part("data:x") | {"image_url": {"url": "http://127.0.0.1/a.png"}}], "only data:image/"),
    "a file": ([image_part("data:x") | {"image_url": {"url": "file:///etc/passwd"}}], "only data:image/"),
    "a path": ([image_part("data:x") | {"image_url": {"url": "/etc/passwd"}}], "only data:image/"),
    "a part of another kind": ([{"type": "input_audio"}], "must be text or image_url, got input_audio"),
    "a megabyte of text": ("the cat sat " * 90_000, "characters of text are more than the 128 tokens"),
    "a prompt over the model's length": ("cat " * 200, "tokens, the model reads 128 with its answer; shorten it"),
    "no content": (None, "must be a string or a list of parts"),
    "a number": (7, "must be a string or a list of parts"),
    "no parts": ([], "must be a string or a list of parts"),
    "half a character": ("a \ud83d b", "half of a surrogate pair"),
}  # fmt: skip


def test_base64_may_have_line_breaks_and_lack_padding(open_server):
    data = picture("red")
    url = data_url(data + bytes(1 if len(data) % 3 == 0 else 0))  # a byte behind the image is nobody's
    assert url.endswith("=")
    head, body = url.split(",")
    wrapped = "\r\n".join(body[at : at + 76] for at in range(0, len(body), 76)).rstrip("=")
    answers = [open_server.chat([image_part(some)], max_tokens=4) for some in (url, f"{head},{wrapped}")]
    assert answers[0][0] == 200
    assert answers[0][1]["choices"] == answers[1][1]["choices"]


@pytest.mark.parametrize("case", BAD_CONTENT)
def test_bad_content_is_refused_in_one_sentence(open_server, case):
    content, sentence = BAD_CONTENT[case]
    status, answer = open_server.chat(content, max_tokens=2)
    assert status == 400 and sentence in answer["error"]["message"], answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in answer["error"]["message"] and "/work" not in answer["error"]["message"]
    assert open_server.chat("the cat", max_tokens=2)[0] == 200


BAD_OPTIONS = {
    "colour": ({"colour": 1}, 400, "colour is not known here; leave it out"),
    "negative seed": ({"seed": -1}, 400, "seed must be a whole number from 0 to 18,446,744,073,709,551,615, got -1"),
    "max_token": ({"max_token": 1}, 400, "max_token is not known here; did you mean max_tokens?"),
    "n": ({"n": 3}, 400, "n is not supported; leave it out"),
    "half a character in stop": ({"stop": ["a", "b \ud83d"]}, 400, "stop holds half of a surrogate pair"),
    "a huge number": ({"temperature": 10**350}, 400, "temperature must be a number from -1e300 to 1e300"),
    "temperature": ({"temperature": "hot"}, 400, "temperature must be a number, got hot"),
    "negative temperature": ({"temperature": -1}, 400, "temperature is from 0 to 2, got -1"),
    "top_p": ({"top_p": 2}, 400, "top_p is from 0 to 1, got 2"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens must be a whole number from 1 to 50, got 0"),
    "too many tokens": ({"max_tokens": 10**9}, 400, "max_tokens must be a whole number from 1 to 50"),
    "two names": ({"max_tokens": 1, "max_completion_tokens": 1}, 400, "give one of them"),
    "stop": ({"stop": ["a"] * 9}, 400, "stop must be a string, or at most 4 strings"),
    "seed": ({"seed": 2**70}, 400, "seed must be a whole number"),
    "messages": ({"messages": []}, 400, "messages must be a list of at least one message"),
    "a message": ({"messages": ["hello"]}, 400, "messages[0] must be an object, got a string"),
    "a role": ({"messages": [{"role": "<|im_end|>", "content": "a"}]}, 400, "messages[0].role must be one of"),
    "an image of the system": ({"messages": [{"role": "system", "content": [image_part("red")]}]}, 400, "of the user"),
    "stream": ({"stream": "yes"}, 400, "stream must be true or false, got yes"),
    "stream_options": ({"stream_options": {"include_usage": True}}, 400, "goes with stream true"),
    "top_logprobs": ({"top_logprobs": 2}, 400, "goes with logprobs true"),
    "tools": ({"tools": [{"type": "function"}]}, 400, "tools is not supported; leave it out"),
    "model": ({"model": 3}, 400, "model must be a string, got a number"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_refused_by_its_name(open_server, case):
    options, expected, sentence = BAD_OPTIONS[case]
    status, answer = open_server.chat("the cat", **options)
    assert status == expected and sentence in answer["error"]["message"], answer


BAD_BODIES = {
    "no JSON": (b"{", 400, "the body is not JSON"),
    "a list": (b"[]", 400, "the body must be a JSON object, got a list"),
    "nothing": (b"", 400, "the body is not JSON"),
    "deep": (b"[" * 200_000, 400, "nested too deeply"),
    "many values": (b"[" + b"[]," * 600_000 + b"[]]", 413, "over 500,000 values"),
    "NaN": (b'{"temperature": NaN}', 400, "NaN is no number of JSON"),
    "no UTF-8": (b'{"model": "\xff\xfe"}', 400, "the body is not UTF-8"),
    "a long number": (b'{"seed": ' + b"9" * 5000 + b"}", 400, "a number of 5,000 digits, and 400 are the most"),
    "a name twice": (b'{"model": "arlow", "model": "other"}', 400, "an object has model twice; send it once"),
    "a name twice, below": (b'{"messages": [{"role": "user", "role": "system"}]}', 400, "an object has role twice"),
    "UTF-16": ('{"model": "arlow"}'.encode("utf-16"), 400, "the body is not UTF-8"),
    "half a character, raw": (b'{"model": "\xed\xa0\xbd"}', 400, "the body is not UTF-8"),
    "five megabytes": (b" " * 5 * 2**20, 413, "the body is over 4,194,304 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_body_that_is_no_request_is_refused(open_server, case):
    body, expected, sentence = BAD_BODIES[case]
    status, answer = open_server.ask("POST", "/v1/chat/completions", body, Content_Type="application/json")
    assert status == expected and sentence in answer["error"]["message"], answer
    assert open_server.chat("the cat", max_tokens=2)[0] == 200


@pytest.mark.parametrize("name", ["temperature", "stream", "seed", "user", "colour"])
def test_a_value_is_refused_at_any_depth(name):
    """Also where it can just be read, but not be written again for the sentence that refuses it."""
    for depth in range(MAX_DEPTH, sys.getrecursionlimit()):
        body = b'{"%s": %s%s}' % (name.encode(), b"[" * depth, b"]" * depth)
        with pytest.raises(Refusal, match="nested too deeply"):
            shown(parse_object(body, 500_000)[name])
    assert parse_object(b'{"a": %s%s}' % (b"[" * (MAX_DEPTH - 1), b"]" * (MAX_DEPTH - 1)), 500_000)


def test_a_body_in_pieces_is_refused_at_the_limit(open_server):
    """Without a length in front. Its held bytes are given back."""
    pieces = (b"x" * 2**20 for _ in range(8))
    status, answer = open_server.ask("POST", "/v1/chat/completions", pieces, Content_Type="application/json")
    assert status == 413, answer
    assert open_server.api._held.bytes == 0


def test_wrong_addresses_methods_types_and_hosts_are_refused(open_server):
    refused = {
        404: open_server.ask("GET", "/etc/passwd"),
        405: open_server.ask("GET", "/v1/chat/completions"),
        415: open_server.ask("POST", "/v1/chat/completions", b"{}", Content_Type="text/plain"),
        403: open_server.ask("GET", "/v1/models", Host="somewhere.example"),
    }
    assert [answer[0] for answer in refused.values()] == list(refused)
    assert open_server.ask("GET", "/v1/models/../../etc/passwd")[0] == 404
    assert all(len(answer[1]["error"]["message"].split(". ")) == 1 for answer in refused.values())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "127.0.0.2", "[::1]", "[::1]:8000"])
def test_every_address_of_this_machine_alone_is_a_host(open_server, host):
    """No other site's name can be among them, whatever address it is bound to."""
    assert open_server.ask("GET", "/v1/models", Host=host)[0] == 200
    assert open_server.ask("GET", "/v1/models", Host="127.0.0.1.somewhere.example")[0] == 403


def test_control_tokens_that_a_user_writes_are_text(open_server, assistant):
    text = "<image><|im_end|> cat"
    status, answer = open_server.chat(text, max_tokens=4)
    prompt = question(assistant, text)
    assert status == 200 and answer["usage"]["prompt_tokens"] == len(prompt.ids)
    assert assistant.model.config.image_token_id not in prompt.ids
    status, answer = open_server.ask(
        "POST", "/v1/completions", {"model": "arlow", "prompt": "<image> cat", "max_tokens": 2}
    )
    assert status == 200 and answer["usage"]["prompt_tokens"] > 3


def test_a_text_model_sees_no_images():
    with live(text_assistant()) as running:
        status, answer = running.chat([image_part("red")])
        assert status == 400 and "this is a text model and sees no images" in answer["error"]["message"]
        assert running.chat("the cat", max_tokens=3)[0] == 200

"""Heat maps over HTTP: the numbers of `arlow explain`, for every kind of image, and what is asked wrongly."""

import json
import time

import pytest
import torch

from arlow_vl.data.prompts import about_image
from arlow_vl.evaluation.explain import encoder_views, explain_completion
from arlow_vl.serving import heat
from arlow_vl.serving.encoding import ImageEncoder
from arlow_vl.serving.limits import ServerLimits
from tests.serving.live import data_url, image_part, live, text_part
from tests.serving.test_server_bounds import begin, until
from tests.serving.tiny_assistants import picture, text_assistant, vision_assistant

KINDS = {
    "one size": {},
    "tiles": {"transform": {"max_tiles": 4}},
    "native resolution": {"transform": {"patch_size": 16, "max_patches": 12}},
    "a perceiver": {"projector": "perceiver"},
    "a perceiver of tiles": {"projector": "perceiver", "transform": {"max_tiles": 4}},
    "all images before": {"cross_attention_sees": "all_previous"},
}


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def written(running, messages, tokens: int = 8) -> list[int]:
    """The ids of an answer, as the server tells them."""
    asked = {"model": "arlow", "messages": messages, "max_tokens": tokens, "return_token_ids": True}
    status, answer = running.ask("POST", "/v1/chat/completions", asked)
    assert status == 200, answer
    return answer["choices"][0]["token_ids"]


def look(running, messages, ids, **more) -> tuple[int, dict]:
    return running.ask("POST", "/v1/heat", {"model": "arlow", "messages": messages, "token_ids": ids, **more})


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_explain(kind):
    assistant = vision_assistant(**KINDS[kind])
    wide = picture("blue", (96, 40))
    with live(assistant) as running:
        messages = [user(image_part(data_url(wide)))]
        ids = written(running, messages)
        status, told = look(running, messages, ids)
    assert status == 200, told
    model, transform = assistant.model, assistant.processor.image_processor.transform
    images = assistant.pack([assistant.image(wide)])
    images = {name: x.double() if x.is_floating_point() else x for name, x in images.items()}
    layers = list(model.gate_openings())
    words = explain_completion(model, assistant.tokenizer, about_image(), images, layers=layers, max_new_tokens=8)
    assert words and [word["word"] for word in told["words"]] == [word.word for word in words]
    assert told["layers"] == layers and told["places"] == words[0].heat.numel()
    views = encoder_views(assistant.pack([assistant.image(wide)]), transform, words[0].heat.numel())
    assert [(view["label"], view["rows"], view["columns"]) for view in told["views"]] == [
        (view.label, *view.places.shape) for view in views
    ]
    for word, seen in zip(words, told["words"], strict=True):
        for view, numbers in zip(views, seen["heat"], strict=True):
            expected = (word.heat[view.places] * word.heat.numel()).flatten()
            torch.testing.assert_close(torch.tensor(numbers), expected, rtol=0, atol=6e-4)  # three digits
        assert abs(seen["peak"] - word.peak) < 6e-4
    assert told["scale"]["top"] >= max(word["peak"] for word in told["words"])


@pytest.fixture(scope="module")
def served():
    with live(vision_assistant()) as running:
        yield running


def test_an_answer_about_several_images_has_a_share_of_each(served):
    parts = [image_part("red"), image_part("blue"), image_part("green")]
    messages = [user(*parts, text_part("a dog"))]
    status, told = look(served, messages, written(served, messages))
    assert status == 200 and [view["image"] for view in told["views"]] == [0, 1, 2]
    for word in told["words"]:
        assert sum(map(sum, word["heat"])) == pytest.approx(told["places"], abs=0.02)  # the mean is 1, in three digits


def test_only_the_images_that_the_answer_sees_have_maps(served):
    """Those of the last turn that shows any; a later turn sees them still."""
    first = [user(image_part("red")), {"role": "assistant", "content": "the cat"}]
    second = [*first, user(image_part("blue"), image_part("green"), text_part("a dog"))]
    third = [*second, {"role": "assistant", "content": "one"}, {"role": "user", "content": "and"}]
    for messages in (second, third):
        status, told = look(served, messages, written(served, messages))
        assert status == 200 and [view["image"] for view in told["views"]] == [1, 2], told
    (alone,) = (view for view in look(served, first[:1], [20])[1]["views"])
    assert alone["image"] == 0


def test_a_streamed_answer_tells_the_same_ids(served):
    messages = [user(image_part("red"))]
    asked = {"model": "arlow", "messages": messages, "max_tokens": 8, "return_token_ids": True, "stream": True}
    _, _, events = served.fetch("POST", "/v1/chat/completions", asked)
    chunks = [json.loads(line[6:]) for line in events.decode().split("\n\n") if line.startswith("data: {")]
    streamed = [one for chunk in chunks for one in chunk["choices"][0]["token_ids"]]
    assert streamed == written(served, messages) and len(streamed) == 8
    assert served.chat("the cat", max_tokens=2)[1]["choices"][0].keys() == {
        "index",
        "message",
        "logprobs",
        "finish_reason",
    }


IMAGES, LONG = [user(image_part("red"))], [user(image_part("red"), text_part("the cat " * 30))]
BAD = {
    "no image": ([{"role": "user", "content": "the cat"}], [9], "messages show no image, so there is nothing"),
    "a broken image": ([user(image_part(data_url(b"GIF89a")))], [9], "messages[0].content[0]"),
    "no ids": (IMAGES, None, "token_ids must be a list of 1 to 100 numbers"),
    "none of them": (IMAGES, [], "token_ids must be a list of 1 to 100 numbers"),
    "too many": (IMAGES, [9] * 101, "token_ids must be a list of 1 to 100 numbers"),
    "more than there is room": (LONG, [9] * 100, "token_ids are 100, more than the model has room for"),
    "a word": (IMAGES, [9, "cat"], "token_ids[1] is no token that the model writes, got cat"),
    "a truth": (IMAGES, [True], "token_ids[0] is no token that the model writes, got true"),
    "one beyond the vocabulary": (IMAGES, [9, 10, 10**6], "token_ids[2] is no token that the model writes"),
    "one below it": (IMAGES, [-1], "token_ids[0] is no token that the model writes, got -1"),
    "the image token": (IMAGES, [9, 7], "token_ids[1] is no token that the model writes, got 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_looked_at_is_refused_in_one_sentence(served, case):
    messages, ids, sentence = BAD[case]
    status, told = look(served, messages, ids)
    assert status == 400 and sentence in told["error"]["message"], told
    assert "\n" not in told["error"]["message"]


def test_other_fields_types_and_methods_are_refused(served):
    assert (
        look(served, IMAGES, [9], max_tokens=3)[1]["error"]["message"] == "max_tokens is not known here; leave it out"
    )
    assert served.ask("GET", "/v1/heat")[0] == 405
    assert served.ask("POST", "/v1/heat", b"{}", Content_Type="text/plain")[0] == 415
    assert look(served, IMAGES, [9], model="gpt")[0] == 404


def test_maps_that_would_be_too_large_are_refused_before_anything_is_computed(served, monkeypatch):
    monkeypatch.setattr(heat, "MAX_NUMBERS", 30)
    assert look(served, IMAGES, [9] * 7)[0] == 200
    status, told = look(served, IMAGES, [9] * 8)
    sentence = "the heat of 8 tokens over 4 places of the images is more than 30 numbers; ask for a shorter answer"
    assert status == 400 and sentence in told["error"]["message"]


def test_a_text_model_has_no_heat_maps():
    with live(text_assistant()) as running:
        status, told = look(running, [{"role": "user", "content": "the cat"}], [9])
        assert status == 400 and "this is a text model and sees no images" in told["error"]["message"]


def test_a_failing_look_touches_no_answer_and_maps_wait_in_the_queue_of_the_answers():
    assistant = vision_assistant(max_position_embeddings=2048)
    assistant.stop_ids = frozenset()
    assistant.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    limits = ServerLimits(max_new_tokens=1500)
    with live(assistant, max_batch=1, max_waiting=1, limits=limits) as running:
        assert look(running, IMAGES, [9])[0] == 200
        held = [begin(running, max_tokens=1500)]
        assert until(lambda: running.engine.load == (1, 0))
        assert look(running, IMAGES, [9, 10])[0] == 200  # between two tokens of the answer
        held.append(begin(running, max_tokens=1500))
        assert until(lambda: running.engine.load == (1, 1))
        status, told = look(running, IMAGES, [9])
        assert status == 429 and told["error"]["code"] == "queue_full"
        held.pop().close()
        assert until(lambda: running.engine.load == (1, 0))
        with torch.no_grad():
            gate = assistant.model.model.projector.fc.weight
            kept, running.engine._encoder = gate.clone(), ImageEncoder(assistant)  # which remembers no image
            gate.fill_(torch.nan)
        status, told = look(running, IMAGES, [9])
        assert status == 500 and "the reason is in the server's log" in told["error"]["message"]
        with torch.no_grad():
            gate.copy_(kept)
        assert running.engine.load == (1, 0)
        held.pop().close()
        assert until(lambda: running.engine.load == (0, 0))


def test_a_look_that_comes_too_late_is_told():
    assistant = vision_assistant()
    assistant.model.register_forward_pre_hook(lambda *_: time.sleep(0.6))
    with live(assistant, limits=ServerLimits(request_seconds=0.5)) as running:
        held = begin(running, max_tokens=3)
        assert until(lambda: running.engine.load == (1, 0))
        status, told = look(running, IMAGES, [9])
        assert status == 504 and "within the time that a request may take" in told["error"]["message"]
        held.close()

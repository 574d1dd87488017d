"""Arlow as a model of lmms-eval. Runs where lmms-eval is installed: experiments/harnesses makes such an environment."""

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (docs/harnesses.md)")

from lmms_eval.api.instance import Instance, unwrap_generation_output
from lmms_eval.models.registry_v2 import ModelRegistryV2

from arlow_vl.data.prompts import about_image
from arlow_vl.evaluation.harnesses.lmms_eval import ArlowChat, ArlowSimple, manifest
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.writing import write

SETTINGS = {"max_new_tokens": 5, "temperature": 0, "do_sample": False}
WORDS = ["the cat", "a big red dog", "sing"]


@pytest.fixture(scope="module", params=[ArlowChat, ArlowSimple])
def model(request, model_folder):
    return request.param(str(model_folder), device="cpu", batch_size=2)


def with_docs(model, images):
    model.task_dict = {"task": {"test": [{"image": image, "q": q} for image, q in zip(images, WORDS, strict=True)]}}
    return range(len(images))


def instance(kind, *arguments):
    return Instance(request_type=kind, arguments=arguments, idx=0, metadata={"task": "task", "doc_id": 0, "repeats": 1})


def visual(doc):
    return [doc["image"]]


def messages(doc, part="image"):
    content = [{"type": part, "url": doc["image"]}, {"type": "text", "text": doc["q"]}]
    return [{"role": "user", "content": content}]


def generation(model, doc_id, to_messages=messages):
    if model.is_simple:
        return instance("generate_until", WORDS[doc_id], SETTINGS, visual, doc_id, "task", "test")
    return instance("generate_until", "", to_messages, SETTINGS, doc_id, "task", "test")


def test_both_kinds_give_the_answers_of_the_server(model, images):
    asked = [generation(model, place) for place in with_docs(model, images)]
    assistant = model.assistant
    prompts = [
        assistant.chat(about_image(text), [assistant.image(image)]) for text, image in zip(WORDS, images, strict=True)
    ]
    assert model.generate_until(asked) == [one.text for one in write(assistant, prompts, Decoding(max_new_tokens=5))]


def test_the_likeliest_answer_has_the_smallest_value_and_survives_lmms_eval(model, images):
    with_docs(model, images)
    asked = [
        instance("loglikelihood", "Is it red?", f" {word}", visual, 0, "task", "test")
        for word in ("yes", "sing", "a mat")
    ]
    found = [unwrap_generation_output(one)[0] for one in model.loglikelihood(asked)]
    assert all(isinstance(loss, float) and loss > 0 and isinstance(greedy, bool) for loss, greedy in found)


def test_a_template_that_trims_nothing_sees_no_space_before_an_answer(model, images, monkeypatch):
    with_docs(model, images)
    tokenizer = model.assistant.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace(" | trim", ""))
    asked = [
        instance("loglikelihood", "Is it red?", word, visual, 0, "task", "test") for word in ("sing", " sing", "\nsing")
    ]
    assert len({one.text for one in model.loglikelihood(asked)}) == 1


def test_lmms_eval_finds_both_kinds_by_the_manifest():
    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("arlow_vl") is ArlowChat
    assert registry.get_model_class("arlow_vl", force_simple=True) is ArlowSimple


def test_video_is_refused_by_name(model, images):
    with_docs(model, images)
    if model.is_simple:
        with pytest.raises(ValueError, match="asks in several rounds"):
            model.generate_until_multi_round([])
        return
    with pytest.raises(ValueError, match="task test 0: the task has video or audio"):
        model.generate_until([generation(model, 0, lambda doc: messages(doc, "video"))])

"""Arlow as a model of lm-eval. Runs where lm-eval is installed: experiments/harnesses makes such an environment."""

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (docs/harnesses.md)")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from arlow_vl.data.prompts import about_image, encode_prompt  # noqa: E402
from arlow_vl.evaluation.harnesses.lm_eval import ArlowLM  # noqa: E402
from arlow_vl.evaluation.likelihood import Choices, log_probabilities  # noqa: E402
from arlow_vl.serving.decoding import Decoding  # noqa: E402


@pytest.fixture(scope="module")
def model(model_folder):
    return ArlowLM(str(model_folder), device="cpu", batch_size="2")


@pytest.fixture(scope="module")
def text_model(text_folder):
    return ArlowLM(str(text_folder), device="cpu")


def instance(kind, *arguments):
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("task", 7, 1))


def chat(model, text):
    return model.apply_chat_template([{"role": "user", "content": text}])


def test_lm_eval_finds_it_and_its_own_models():
    assert get_model("arlow_vl") is ArlowLM
    assert get_model("hf").__name__ == "HFLM"


def test_a_chat_with_images_is_the_prompt_of_training(model):
    before, ids = model._ids(chat(model, "<image>Is it red?"), "yes", 1, "t")
    assert before == encode_prompt(model.tokenizer, about_image("Is it red?"))
    assert model.tokenizer.decode(ids) == "yes"


def test_answers_about_images_have_the_log_probability_of_arlow_evaluate(model, images):
    words = ["yes", "a big red dog", "no"]
    requests = [
        instance("loglikelihood", chat(model, "<image>Is it red?"), f" {word}", {"visual": [image]})
        for image in images
        for word in words
    ]
    assistant = model.assistant
    questions = [Choices(about_image("Is it red?"), [assistant.image(image)], words) for image in images]
    expected = log_probabilities(assistant.model, assistant.tokenizer, questions, assistant.pack)
    found = [nats for nats, _ in model.loglikelihood(requests)]
    assert found == pytest.approx([one.nats for of in expected for one in of], abs=1e-4)
    assert len({round(nats, 3) for nats in found}) == len(found)  # the image decides


def test_what_is_written_ends_before_a_stop_text(model, images):
    def ask(until):
        settings = {"max_gen_toks": 5, "until": until, "do_sample": False}
        return model.generate_until(
            [instance("generate_until", chat(model, "<image>the cat"), settings, {"visual": images[:1]})]
        )[0]

    whole = ask([])
    assert len(whole) > 1 and ask([whole[1]]) == whole[: whole.index(whole[1])]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_gen_toks": 3, "max_new_tokens": 9, "temperature": None}, {"max_new_tokens": 3}),
        ({"max_completion_tokens": 3}, {"max_new_tokens": 3}),
        ({}, {"max_new_tokens": 256}),
        ({"do_sample": True, "until": "a"}, {"max_new_tokens": 256, "temperature": 1.0, "stop": ("a",)}),
        ({"do_sample": False, "temperature": 0.7, "stop": "a"}, {"max_new_tokens": 256, "stop": ("a",)}),
    ],
)
def test_generation_arguments_mean_what_they_do_to_lm_evals_own_models(text_model, given, expected):
    assert text_model._asked(instance("generate_until", "the cat", given))[1] == Decoding(**expected)


@pytest.mark.parametrize("context", ["", "the cat", "the cat sat on ", "<image> is a tag"])
def test_text_has_the_log_probability_of_lm_evals_own_model(text_model, text_folder, context):
    theirs = get_model("hf")(pretrained=str(text_folder), device="cpu", batch_size=1)
    requests = [instance("loglikelihood", context, word) for word in (" a mat", " green hills.", "x")]
    found, expected = text_model.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    if "<image>" in context:  # a control token to theirs, text to ours
        assert found != expected
        return
    for (nats, is_greedy), (their_nats, their_greedy) in zip(found, expected, strict=True):
        assert nats == pytest.approx(their_nats, abs=1e-4) and is_greedy == their_greedy


def test_whole_texts_are_scored_in_lm_evals_windows(text_model, text_folder):
    theirs = get_model("hf")(pretrained=str(text_folder), device="cpu", batch_size=1, add_bos_token=False)
    requests = [
        instance("loglikelihood_rolling", "the cat sat on a mat and saw one big red dog run " * n) for n in (1, 9)
    ]
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert text_model.loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-5)


def test_a_prompt_as_a_document_has_its_images_in_their_places(model, images):
    request = instance("loglikelihood", "Look: <image> and <image>\nIt is ", "red", {"visual": images[:2]})
    (request_ids, ids) = model._pair(request)
    image = model.tokenizer.convert_tokens_to_ids("<image>")
    assert request_ids.ids.count(image) == 2 and len(request_ids.images) == 2
    assert model.tokenizer.decode(ids) == " red"  # the space at the end of the context is the continuation's
    pixels = model.assistant.pack([model.assistant.image(one) for one in images[:2]])
    with torch.inference_mode():
        logits = model.assistant.model(torch.tensor([[*request_ids.ids, *ids]]), **pixels).logits[0]
    rows = logits[len(request_ids.ids) - 1 : -1].log_softmax(-1)
    expected = sum(rows[place, token].item() for place, token in enumerate(ids))
    assert model.loglikelihood([request])[0][0] == pytest.approx(expected, abs=1e-4)


def test_an_answer_that_is_begun_is_gone_on_with(model):
    history = [{"role": "user", "content": "Is <image> a tag?"}, {"role": "assistant", "content": "It is "}]
    text = model.apply_chat_template(history, add_generation_prompt=False)
    before, ids = model._ids(text, "red", 0, "t")
    assert model.tokenizer.decode(before, skip_special_tokens=True).endswith("assistant\nIt is")
    assert model.tokenizer.convert_tokens_to_ids("<image>") not in before
    assert model.tokenizer.decode(ids) == " red"


def test_audio_is_refused(model):
    request = instance("loglikelihood", "a", "b", {"audio": [b"x"]})
    with pytest.raises(ValueError, match="task 7: the task has audio, and Arlow reads text and images"):
        model.loglikelihood([request])

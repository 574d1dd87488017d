"""Heat that points at what a word was written from is told from heat that does not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.cli import main
from arlow_vl.data.prompts import about_image
from arlow_vl.evaluation.explain import Written, mean_weights, write_and_watch
from arlow_vl.evaluation.faithfulness import (
    SHARES,
    evaluate_heat,
    falls_of_image,
    format_heat_tests,
    hide_first,
    hideable_image,
    hiding_falls,
    read_heat_tests,
    written_log_probabilities,
)
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from tests.conftest import open_gates
from tests.tiny_runs import SAMPLES, tiny_tokenizer, write_text_checkpoint

IMAGE, PLACE = 7, 3


def one_hot(tokens: int = 8, place: int = PLACE) -> torch.Tensor:
    return torch.full((1, tokens), 0.01).index_fill_(1, torch.tensor(place), 1.0)


def needs_one_token(shown: torch.Tensor) -> torch.Tensor:
    """Each of two written tokens loses 5 nats without the encoder token at `PLACE`."""
    return -5.0 * (~shown[:, [PLACE]]).float().expand(-1, 2)


def test_a_planted_dependence_is_found_by_the_heat_that_points_at_it():
    falls = hiding_falls(one_hot(), [[0, 1]], needs_one_token)
    assert falls["most"].tolist() == [[10.0] * 5]
    assert falls["least"].tolist() == [[0.0] * 5]
    assert 0 < falls["random"].mean() < 10


def test_falls_are_the_same_on_a_device_without_float64(without_float64):
    assert hiding_falls(one_hot(), [[0, 1]], needs_one_token)["most"].tolist() == [[10.0] * 5]


def test_heat_that_points_elsewhere_is_found_out():
    falls = hiding_falls(1 - one_hot(), [[0, 1]], needs_one_token)
    assert falls["most"].tolist() == [[0.0] * 5]
    assert falls["least"].tolist() == [[10.0] * 5]


@given(st.lists(st.integers(0, 20), min_size=2, max_size=24))
def test_of_parts_that_add_up_the_most_attended_take_most_away(parts):
    weights = torch.tensor(parts, dtype=torch.float32)
    falls = hiding_falls(weights[None], [[0]], lambda shown: -((~shown) * weights).sum(1, keepdim=True))
    by_size = sorted(parts)
    for place, share in enumerate(SHARES):
        count = min(max(round(share * len(parts)), 1), len(parts) - 1)
        assert falls["most"][0, place] == sum(by_size[-count:])
        assert falls["least"][0, place] == sum(by_size[:count])
        assert falls["least"][0, place] <= falls["random"][0, place] <= falls["most"][0, place]


def test_every_word_is_hidden_by_its_own_heat():
    heat = torch.cat([one_hot(place=0), one_hot(place=5)])
    falls = hiding_falls(heat, [[0], [1, 2]], lambda shown: -(~shown[:, [0, 5, 5]]).float())
    assert falls["most"][:, 0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("share", "hidden"), [(0.0, 1), (0.125, 1), (0.5, 4), (0.99, 7)])
def test_one_token_at_least_is_hidden_and_one_stays(share, hidden):
    shown = hide_first(torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]), share)
    assert int((~shown).sum()) == hidden and not shown[3] and shown[4]


def test_an_image_of_one_token_is_refused():
    with pytest.raises(ValueError, match="one encoder token, of which nothing can be hidden"):
        hiding_falls(torch.ones(1, 1), [[0]], needs_one_token)


def test_a_decoder_that_looks_at_one_token_is_found_to_need_it(small_config):
    """Of many vectors the most attended one stands once among copies of the least attended one."""
    small_config.num_hidden_layers = 2
    model = ArlowForCausalLM(small_config).eval()
    open_gates(model)
    attn = model.model.layers[1].cross_block.attn
    seen = []
    attn.register_forward_pre_hook(lambda _, args: seen.append(mean_weights(attn, *args[:2])))
    prompt = torch.randint(10, 300, (1, 6)).index_fill_(1, torch.tensor(1), IMAGE)
    choices = 3 * torch.randn(64, 64)
    with torch.no_grad():
        attn.q_norm.weight.mul_(3)  # sharper heat than random weights have
        model(prompt, encoder_hidden_states=choices[None])
        last = seen[-1][-1]
        states = choices[last.argmin()].repeat(16, 1)
        states[PLACE] = choices[last.argmax()]
        ids = model(prompt, encoder_hidden_states=states[None]).logits[:, -1:].argmax(-1)
    written = Written(prompt, ids, seen[-1][None, -1:])
    assert written.heat[0, 0].argmax() == PLACE
    ask = written_log_probabilities(
        model,
        written,
        lambda shown: {"encoder_hidden_states": states[shown.nonzero()[:, 1]], "encoder_lengths": shown.sum(1)},
    )
    falls = hiding_falls(written.heat[0], [[0]], ask)
    assert falls["most"].min() > 0.05  # all that is left is copies, however many
    assert falls["most"].mean() > falls["random"].mean() > falls["least"].mean()
    assert falls["least"].max() < 0  # the word is the likelier, the fewer copies are in the way


def tiny_model(folder, **settings):
    """A random model, its gates open, and its processor."""
    torch.manual_seed(0)
    vision = ArlowVisionConfig(timm_name="test_vit", image_size=64, transform=settings.pop("transform", None))
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(
        write_text_checkpoint(folder / "text"), vision, **settings
    ).eval()
    open_gates(model)
    processor = ArlowProcessor(ArlowImageProcessor(model.config.vision_config.transform), tiny_tokenizer())
    # Random weights would write line ends alone.
    silent = [*processor.tokenizer.all_special_ids, *processor.tokenizer("\n").input_ids[1:]]
    model.generation_config.bad_words_ids = [[token] for token in silent]
    return model, processor


KINDS = pytest.mark.parametrize(
    "settings",
    [{}, {"projector": "perceiver", "projector_latents": 3}, {"transform": {"max_tiles": 4}}],
    ids=["patches", "perceiver", "tiles"],
)


@KINDS
def test_with_nothing_hidden_the_probabilities_are_those_of_the_image(tmp_path, settings):
    model, processor = tiny_model(tmp_path, **settings)
    images = dict(processor.image_processor([SAMPLES / "fox.jpg"], return_tensors="pt"))
    written = write_and_watch(model, processor.tokenizer, about_image(), images, layers=[1], max_new_tokens=5)
    tokens = written.heat.shape[-1]
    ask = written_log_probabilities(model, written, hideable_image(model, images))
    both = ask(torch.stack([torch.ones(tokens), torch.arange(tokens) == 0]).bool())
    with torch.no_grad():
        logits = model(input_ids=torch.cat([written.prompt, written.ids], 1), **images).logits
    expected = logits[:, written.prompt.shape[1] - 1 : -1].log_softmax(-1).gather(-1, written.ids[..., None])[..., 0]
    torch.testing.assert_close(both[:1], expected, atol=1e-5, rtol=0)  # sums in another order
    assert (both[0] - both[1]).abs().max() > 1e-5


def test_each_layer_is_tested_by_its_own_heat(tmp_path):
    model, processor = tiny_model(tmp_path)
    images = dict(processor.image_processor([SAMPLES / "fox.jpg"], return_tensors="pt"))
    (falls,) = falls_of_image(model, processor.tokenizer, about_image(), images, layers=[1], max_new_tokens=4).values()
    assert {order: of.shape for order, of in falls.items()} == dict.fromkeys(
        ("most", "least", "random"), (len(falls["most"]), len(SHARES))
    )


def made_falls(most, random, words=2):
    rows = torch.ones(words, len(SHARES)).double().numpy()
    return {1: {"most": most * rows, "random": random * rows, "least": 0 * rows}}


def test_differences_are_of_words_with_intervals_over_images():
    found = evaluate_heat([made_falls(2.0, 1.0), made_falls(4.0, 1.0, words=6), made_falls(3.0, 1.0, words=0)])
    (layer,) = found
    assert (layer.layer, layer.images, layer.words) == (1, 3, 8)
    assert layer.falls["most"][0].estimate == pytest.approx((2 * 2 + 6 * 4) / 8)
    assert layer.over_random.estimate == pytest.approx(2.5)
    assert layer.over_random.low < 2.5 < layer.over_random.high
    assert layer.over_least.estimate == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("falls", "sentence"),
    [
        ([made_falls(1.0, 1.0)], "needs two images at least, got 1"),
        ([made_falls(1.0, 1.0, words=0)] * 2, "the model wrote no word about these images"),
    ],
)
def test_what_gives_no_interval_is_refused(falls, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate_heat(falls)


def test_the_command_prints_the_curves_of_each_layer(tmp_path, capsys):
    model, processor = tiny_model(tmp_path)
    model.save_pretrained(tmp_path / "hf")
    processor.save_pretrained(tmp_path / "hf")
    words = ["verify-heat", "--model", str(tmp_path / "hf"), "--max-new-tokens", "6", str(SAMPLES / "fox.jpg")]
    assert main([*words, str(SAMPLES / "fox.jpg"), "--output", str(tmp_path / "heat.json")]) == 0
    out = capsys.readouterr().out
    assert format_heat_tests(read_heat_tests(tmp_path / "heat.json")) in out
    assert "2 images" in out and "layer 1, hidden" in out and "most minus random: " in out
    assert main(words) == 2
    assert "two images at least" in capsys.readouterr().err
    assert main([*words, str(SAMPLES / "fox.jpg"), "--layer", "0"]) == 2
    assert "layer 0 has no cross-attention block" in capsys.readouterr().err

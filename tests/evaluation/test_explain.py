import pytest
import torch
from PIL import Image

from arlow_vl.cli import main
from arlow_vl.data.prompts import about_image
from arlow_vl.evaluation.explain import (
    encoder_views,
    explain_completion,
    latent_weights,
    mean_weights,
    read_image_tokens,
    views_under,
    watch,
    words_of,
)
from arlow_vl.models.arlow.image_numbers import number_waves
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.folders import load_vision_language_model
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.conftest import open_gates
from tests.evaluation.completions import complete_prompt
from tests.models.convert.made_llamas import sentencepiece_tokenizer
from tests.serving.tiny_assistants import picture, vision_assistant
from tests.tiny_runs import SAMPLES, tiny_tokenizer, write_encoder_weights, write_image_text_recipe
from vision.forms.batches import pack_images, prepare_image
from vision.projector import PerceiverLayer
from vision.transform import ImageTransform

IMAGE = 7


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    fit(parse_recipe(["--config", str(write_image_text_recipe(folder))]))
    return folder / "run" / "hf"


def test_a_sheet_is_written_from_the_command_line(model_folder, tmp_path, capsys):
    out = tmp_path / "sheets" / "fox.png"
    image = str(SAMPLES / "fox.jpg")
    assert main(["explain", image, "--model", str(model_folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    with Image.open(out) as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--layer", "0"], "layer 0 has no cross-attention block; layers with one: [1]"),
        (["--out", "sheet.jpg"], "--out must end in .png, got sheet.jpg"),
    ],
)
def test_what_cannot_be_drawn_is_refused(model_folder, options, sentence, capsys):
    assert main(["explain", str(SAMPLES / "fox.jpg"), "--model", str(model_folder), *options]) == 2
    assert sentence in capsys.readouterr().err


def test_the_words_and_their_heat_are_those_of_generation(model_folder):
    model, processor = load_vision_language_model(model_folder)
    images = dict(processor.image_processor([SAMPLES / "fox.jpg"], return_tensors="pt"))
    words = explain_completion(model, processor.tokenizer, about_image(), images, layers=[1], max_new_tokens=6)
    completion = complete_prompt(model, processor.tokenizer, about_image(), images, max_new_tokens=6)
    assert " ".join(word.word for word in words) == completion
    for word in words:
        assert word.heat.shape == (model.model.vision.num_patches,)
        torch.testing.assert_close(word.heat.sum(), torch.tensor(1.0))


def test_what_a_perceivers_latents_read_is_spread_over_the_patches(tmp_path):
    vision: dict = {"timm_name": "test_vit", "image_size": 32}
    projector = {"projector": "perceiver", "projector_latents": 3}
    vision["weights"] = str(write_encoder_weights(tmp_path / "vit.safetensors", "test_vit"))
    run = {"max_steps": 1, "validate_every": 1, "checkpoint_every": 1, "threads": 1, "validation_samples": 1}
    product = fit(
        parse_recipe(["--config", str(write_image_text_recipe(tmp_path, vision=vision, model=projector, run=run))])
    )
    assert main(["explain", str(SAMPLES / "fox.jpg"), "--model", str(product), "--out", str(tmp_path / "a.png")]) == 0
    model, processor = load_vision_language_model(product)
    # After one step it would write nothing but line ends.
    silent = [*processor.tokenizer.all_special_ids, *processor.tokenizer("\n").input_ids[1:]]
    model.generation_config.bad_words_ids = [[token] for token in silent]
    images = dict(processor.image_processor([SAMPLES / "fox.jpg"], return_tensors="pt"))
    words = explain_completion(model, processor.tokenizer, about_image(), images, layers=[1], max_new_tokens=6)
    assert words
    for word in words:
        assert word.heat.shape == (4,)
        torch.testing.assert_close(word.heat.sum(), torch.tensor(1.0))


def test_latent_weights_are_those_of_the_layer_among_the_tokens_alone():
    """The layer's latents attend to each other too; with those among the tokens, its output is theirs."""
    layer, latents, tokens = PerceiverLayer(8, 2), torch.randn(1, 3, 8), torch.randn(5, 8)
    read = []
    layer.o_proj.register_forward_pre_hook(lambda _, args: read.append(args[0][0]))
    with torch.no_grad():
        layer.q_proj.weight[4:], layer.q_proj.bias[4:] = layer.q_proj.weight[:4], layer.q_proj.bias[:4]
        layer.kv_proj.weight[4:8], layer.kv_proj.bias[4:8] = layer.kv_proj.weight[:4], layer.kv_proj.bias[:4]
    layer(latents, torch.cat([tokens, latents[0]]), [8])  # both norms start as one: each latent stands there twice
    weights = latent_weights(layer, latents, torch.cat([tokens, latents[0]]), [8])
    values = layer.kv_proj(layer.token_norm(torch.cat([tokens, latents[0]])))[:, 8:]
    keys = layer.kv_proj(layer.token_norm(torch.cat([tokens, latents[0]])))[:, :4]
    scores = layer.q_proj(layer.latent_norm(latents[0]))[:, :4] @ keys.T / 2
    torch.testing.assert_close(weights, scores.softmax(-1))
    twice = scores.exp() * torch.tensor([1.0] * 5 + [2.0] * 3)
    torch.testing.assert_close(read[0], (twice / twice.sum(-1, keepdim=True)) @ values)


def test_the_weights_are_those_that_the_block_attends_with(small_config):
    """Weights times values, through the output projection, give what the block's attention gives."""
    small_config.num_key_value_heads = small_config.num_attention_heads = 1
    small_config.head_dim = 64
    model = ArlowForCausalLM(small_config).eval()
    open_gates(model)
    seen = []
    attn = model.model.layers[1].cross_block.attn
    attn.register_forward_hook(lambda module, args, out: seen.append((args[:2], out)))
    ids = torch.randint(10, 300, (1, 8))
    ids[0, 2] = IMAGE
    model(ids, encoder_hidden_states=torch.randn(1, 5, 64))
    (states, out) = seen[0]
    weights = mean_weights(attn, *states)
    torch.testing.assert_close(attn.o_proj(weights @ attn.v_proj(states[1])), out)


@pytest.mark.parametrize(("sees", "seen"), [("last_group", [1, 2]), ("all_previous", [0, 1, 2])])
def test_the_heat_of_an_answer_after_several_images_is_what_it_was_written_from(sees, seen):
    """With one head, what the block's attention gives at the token before each is this mean of the images' values."""
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    assistant = vision_assistant(**heads, cross_attention_sees=sees)
    model, image, text = assistant.model, {"type": "image"}, {"type": "text", "text": "a dog"}
    first = [{"role": "user", "content": [image, text]}, {"role": "assistant", "content": "the cat"}]
    shown = [assistant.image(picture(colour)) for colour in ("red", "blue", "green")]
    prompt = assistant.chat([*first, {"role": "user", "content": [image, image, text]}], shown)
    answer = assistant.tokenizer(" saw one big red dog", add_special_tokens=False)["input_ids"]
    attn = model.model.language_model.layers[1].cross_block.attn
    outputs = []
    attn.register_forward_hook(lambda module, args, out: outputs.append(out.flatten(0, -2)))
    images = [read_image_tokens(model, {n: x.double() for n, x in assistant.pack([one]).items()}) for one in shown]
    heat = watch(model, torch.tensor([[*prompt.ids, *answer]]), len(answer), images, layers=[1])
    assert [part.shape for part in heat] == [(1, len(answer), len(images[0].states))] * len(seen)
    numbers = number_waves(torch.arange(len(seen)), model.config.text_config.hidden_size).double()
    states = [images[image].states + waves for image, waves in zip(seen, numbers, strict=True)]
    values = attn.v_proj(torch.cat(states))
    expected = attn.o_proj(torch.cat(heat, dim=-1)[0].double() @ values)
    torch.testing.assert_close(outputs[0][-len(answer) - 1 : -1], expected, rtol=1e-5, atol=1e-5)  # heat is float32


def test_the_tokens_of_a_word_are_joined_and_special_tokens_left_out():
    tokenizer = tiny_tokenizer()
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the", " cat", " sang")]
    ids = [*(token for piece in pieces for token in piece), tokenizer.eos_token_id]
    heat = torch.rand(len(ids), 2)
    words = words_of(tokenizer, ids, heat)
    assert [word.word for word in words] == ["the", "cat", "sang"]
    first = len(pieces[0]) + len(pieces[1])
    torch.testing.assert_close(words[2].heat, heat[first:-1].mean(0))


def test_words_begin_where_sentencepiece_has_its_space():
    tokenizer = sentencepiece_tokenizer()
    ids = tokenizer("the cat sang", add_special_tokens=False)["input_ids"]
    words = words_of(tokenizer, ids, torch.rand(len(ids), 2))
    assert [word.word for word in words] == ["the", "cat", "sang"]


TRANSFORM = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "input_size": (3, 8, 8), "interpolation": "bicubic"}


def gradient(height: int, width: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height)[:, None].expand(height, width)
    return Image.fromarray(torch.stack([red, green, red * 0], -1).byte().numpy())


def test_the_encoders_view_is_the_image_without_its_normalisation():
    transform = ImageTransform(TRANSFORM)
    image = gradient(8, 8)
    (seen,) = encoder_views(
        dict(pack_images(transform, [prepare_image(transform, image, name="gradient")])), transform, 4
    )
    assert seen.places.tolist() == [[0, 1], [2, 3]]
    assert max(abs(a - b) for a, b in zip(seen.image.tobytes(), image.tobytes(), strict=True)) <= 1


def test_tiles_are_put_together_again_with_their_patches():
    transform = ImageTransform(TRANSFORM, max_tiles=6)
    image = gradient(16, 24)
    images = dict(pack_images(transform, [prepare_image(transform, image, name="gradient")]))
    assert images["pixel_values"].shape == (7, 3, 8, 8)
    whole, cut = encoder_views(images, transform, 7 * 5, prefix_tokens=1)
    assert cut.label == "2 x 3 tiles" and cut.image.size == (24, 16)
    assert max(abs(a - b) for a, b in zip(cut.image.tobytes(), image.tobytes(), strict=True)) <= 1
    assert whole.places.tolist() == [[1, 2], [3, 4]]
    assert cut.places[:2].tolist() == [[6, 7, 11, 12, 16, 17], [8, 9, 13, 14, 18, 19]]


@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (2, 8), (8, 2), (8, 8)])
def test_grids_of_eight_tiles_across_keep_their_rows(rows, columns):
    """Tile ids leave no gap there from one row to the next."""
    transform = ImageTransform(TRANSFORM, max_tiles=64)
    image = gradient(8 * rows, 8 * columns)
    images = dict(pack_images(transform, [prepare_image(transform, image, name="gradient")]))
    _, cut = encoder_views(images, transform, (1 + rows * columns) * 4)
    assert cut.label == f"{rows} x {columns} tiles" and cut.image.size == image.size
    assert max(abs(a - b) for a, b in zip(cut.image.tobytes(), image.tobytes(), strict=True)) <= 1


@pytest.mark.parametrize("projector", ["linear", "perceiver"])
@pytest.mark.parametrize("transform", [None, {"max_tiles": 4}, {"patch_size": 16, "max_patches": 12}])
def test_an_image_of_which_no_word_was_written_has_its_views(transform, projector):
    assistant = vision_assistant(projector=projector, transform=transform)
    model, shape = assistant.model, assistant.processor.image_processor.transform
    images = assistant.pack([assistant.image(picture("blue", (96, 40)))])
    images = {name: x.double() if x.is_floating_point() else x for name, x in images.items()}
    some = explain_completion(model, assistant.tokenizer, about_image(), images, layers=[1], max_new_tokens=8)
    expected, found = (views_under(words, images, model, shape) for words in (some, []))
    assert some and [view.label for view in found] == [view.label for view in expected]
    assert all(torch.equal(one.places, other.places) for one, other in zip(found, expected, strict=True))


def test_an_image_in_native_resolution_is_one_view():
    transform = ImageTransform(TRANSFORM, patch_size=4, max_patches=12)
    image = gradient(8, 24)
    images = dict(pack_images(transform, [prepare_image(transform, image, name="gradient")]))
    (seen,) = encoder_views(images, transform, 12)
    assert seen.places.shape == (2, 6) and seen.image.size == (24, 8)
    assert max(abs(a - b) for a, b in zip(seen.image.tobytes(), image.tobytes(), strict=True)) <= 1


def test_a_net_with_fewer_tokens_than_patches_and_one_in_front_is_viewed_too():
    """Swin merges two by two patches; class tokens stand in front where a model keeps them."""
    transform = ImageTransform(TRANSFORM, patch_size=4, max_patches=32)
    images = dict(pack_images(transform, [prepare_image(transform, gradient(16, 32), name="gradient")]))
    assert images["image_grids"].tolist() == [[4, 8]]
    (seen,) = encoder_views(images, transform, 9, prefix_tokens=1)
    assert seen.places.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]

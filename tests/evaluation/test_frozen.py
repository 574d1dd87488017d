"""What images leave alone: each claim of `arlow verify-frozen` after training, and with a model that breaks it."""

import copy
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from transformers import GenerationConfig

from arlow_vl.evaluation.frozen import (
    Probe,
    compare_logits,
    compare_tensors,
    compare_words,
    logits_of,
    make_probes,
    verify_frozen,
)
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.folder_hashes import hash_text_tensors
from arlow_vl.models.folders import load_tokenizer, load_weights
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.conftest import open_gates
from tests.tiny_runs import weights_sha256, write_image_text_recipe

TENSORS, CLOSED, BLIND, UNTOUCHED, EXPORT, WORDS = range(6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A text checkpoint and what six steps of the vision stage, with a large learning rate, have made of it."""
    folder = tmp_path_factory.mktemp("vision_stage")
    product = fit(parse_recipe(["--config", str(write_image_text_recipe(folder, optim={"lr": 0.1}))]))
    return folder / "text", product


@pytest.fixture(scope="module")
def checks(trained):
    return verify_frozen(*trained)


@pytest.fixture(scope="module")
def models(trained):
    text_checkpoint, checkpoint = trained
    return (
        load_weights(ArlowForCausalLM, text_checkpoint),
        load_weights(ArlowVLForConditionalGeneration, checkpoint),
    )


@pytest.fixture
def damaged(trained, tmp_path):
    """The trained checkpoint, to be damaged."""
    return shutil.copytree(trained[1], tmp_path / "hf")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (TENSORS, "every frozen tensor"),
        (CLOSED, "closed gates"),
        (BLIND, "without images"),
        (UNTOUCHED, "rows without one"),
        (EXPORT, "exported"),
        (WORDS, "chat template and settings of generation"),
    ],
)
def test_after_the_vision_stage_every_claim_holds(checks, index, words):
    assert words in checks[index].claim
    assert checks[index].holds, checks[index].found


def test_the_trained_gates_are_open_and_what_follows_an_image_does_change(models):
    text_model, model = models
    assert all(abs(gate) > 0.01 for gates in model.gate_openings().values() for gate in gates)
    for probe in make_probes(text_model.config, model.config):
        differs = (logits_of(model, probe, look=True) != logits_of(text_model, probe)).any(-1)
        words = ~probe.is_image  # the first image of a group does not see the group yet
        assert torch.equal(differs[words], ~probe.untouched[words])


def test_untouched_is_what_comes_before_the_images_of_its_own_document():
    probe = Probe(
        input_ids=torch.tensor([[1, 7, 1, 1, 1, 7], [1, 1, 1, 7, 1, 1]]),
        position_ids=torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 0]]),
        image_token_id=7,
        pixel_values=torch.zeros(0),
    )
    assert probe.untouched.int().tolist() == [[1, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 1]]


def flip_a_bit(folder, name: str) -> None:
    """The lowest bit of the exponent of the tensor's second number."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    start = json.loads(data[8 : 8 + header])[name]["data_offsets"][0]
    data[8 + header + start + 4 + 2] ^= 0x80
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["embed_tokens.weight", "layers.1.self_attn.k_proj.weight", "layers.0.mlp.up_proj.weight", "norm.weight"]
)
def test_one_flipped_bit_of_the_text_model_is_named(trained, damaged, name):
    flip_a_bit(damaged, f"model.language_model.{name}")
    found = verify_frozen(trained[0], damaged)
    for index in (TENSORS, EXPORT):
        assert not found[index].holds
        assert found[index].found.endswith(f"differ: model.{name}")


def test_a_changed_norm_changes_the_logits_with_closed_gates_without_images_and_before_them(trained, damaged):
    flip_a_bit(damaged, "model.language_model.norm.weight")
    found = verify_frozen(trained[0], damaged)
    for index, tokens in ((CLOSED, 96), (BLIND, 96), (UNTOUCHED, 56)):
        assert not found[index].holds
        assert found[index].found.startswith(f"logits of {tokens} of {tokens} tokens differ, by up to ")


def test_a_flipped_bit_of_what_the_stage_trains_is_nobodys_loss(trained, damaged):
    flip_a_bit(damaged, "model.language_model.layers.1.cross_block.attn.q_proj.weight")
    assert all(check.holds for check in verify_frozen(trained[0], damaged))


def test_a_changed_configuration_is_named(trained, damaged):
    path = damaged / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["rms_norm_eps"] = 1e-3
    path.write_text(json.dumps(config))
    found = verify_frozen(trained[0], damaged)
    assert [check.holds for check in found] == [True, False, False, False, False, True]
    assert found[EXPORT].found == "the configuration differs: rms_norm_eps 0.001, was 1e-06"


def in_json(name, change):
    """A function that changes a JSON file of a folder."""

    def edit(folder):
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return edit


def swap_words(spec) -> None:
    vocab = spec["model"]["vocab"]
    one, other = sorted(vocab, key=vocab.get)[-2:]
    vocab[one], vocab[other] = vocab[other], vocab[one]


def say_more(folder) -> None:
    path = folder / "chat_template.jinja"
    path.write_text("x" + path.read_text())


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (in_json("tokenizer.json", swap_words), "model.vocab"),
        (in_json("tokenizer.json", lambda spec: spec["model"]["merges"].reverse()), "model.merges"),
        (
            in_json("tokenizer_config.json", lambda names: names.update(eos_token="<|pad|>")),
            "eos_token '<|pad|>', was '<|endoftext|>'",
        ),
        (say_more, "chat_template"),
        (
            in_json("generation_config.json", lambda of: of.update(repetition_penalty=1.9)),
            "repetition_penalty 1.9, was None",
        ),
        (in_json("generation_config.json", lambda of: of.update(eos_token_id=5)), "ends of a text [5], was [2]"),
        (in_json("generation_config.json", lambda of: of["eos_token_id"].append(9)), "ends of a text [2, 9], was [2]"),
        (in_json("generation_config.json", lambda of: of["of_text"].update(eos_token_id=9)), "eos_token_id 9, was 2"),
    ],
)
def test_other_words_of_the_same_logits_are_named(trained, damaged, edit, found):
    edit(damaged)
    check = compare_words(*((load_tokenizer(of), GenerationConfig.from_pretrained(of)) for of in (trained[0], damaged)))
    assert not check.holds
    assert check.found == f"these differ: {found}"


class LeakingModel(ArlowVLForConditionalGeneration):
    """Lets every token of the batch see a little of the images, by as much as the gates are open if it is `gated`."""

    gated: bool

    def forward(self, *args, pixel_values=None, **kwargs):
        output = super().forward(*args, pixel_values=pixel_values, **kwargs)
        gates = [layer.cross_block.attn_gate for layer in self.model.language_model.layers if layer.cross_block]
        if pixel_values is not None:
            output.logits = output.logits + pixel_values.mean() * (sum(gates).abs() if self.gated else 1)
        return output


@pytest.mark.parametrize(("gated", "broken"), [(True, [UNTOUCHED]), (False, [CLOSED, UNTOUCHED])])
def test_a_model_whose_images_leak_into_other_text_is_caught(trained, models, gated, broken):
    text_model, model = models
    leaking = load_weights(LeakingModel, trained[1])
    leaking.gated = gated
    probes = make_probes(text_model.config, model.config)
    found = compare_logits(leaking, probes, [logits_of(text_model, probe) for probe in probes])
    assert [index for index, check in enumerate(found, start=CLOSED) if not check.holds] == broken


def test_missing_further_and_converted_tensors_are_named():
    original = {"a": ("float32", "1"), "b": ("float32", "2"), "c": ("float32", "3")}
    check = compare_tensors("same", original, {"a": ("bfloat16", "9"), "b": ("float32", "2"), "d": ("float32", "3")})
    assert not check.holds
    assert check.found == "3 of 3 differ: c is missing, d is not in the text checkpoint, a (bfloat16, was float32)"


@pytest.mark.parametrize("changed", [False, True])
def test_a_text_model_that_was_only_widened_holds(models, trained, tmp_path, changed):
    narrow = ArlowForCausalLM.from_pretrained(trained[0], dtype=torch.bfloat16)
    narrow.save_pretrained(tmp_path / "text")
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=32)
    wide = ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path / "text", vision_config)
    if changed:
        wide.model.language_model.norm.weight.data[3] += 2**-12  # less than bfloat16 can tell
    wide.save_pretrained(tmp_path / "wide")
    checks = verify_frozen(tmp_path / "text", tmp_path / "wide")
    assert wide.dtype == torch.float32
    assert [check.holds for check in checks] == [not changed, True, True, True, True, True]


def test_a_checkpoint_in_shards_has_the_hashes_of_one_file(models, trained, tmp_path):
    models[0].save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert hash_text_tensors(tmp_path) == hash_text_tensors(trained[0])


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_writes_the_rows_without_images_as_the_text_model_does(models, beams):
    text_model, model = models
    probe = make_probes(text_model.config, model.config)[0]
    settings = GenerationConfig(
        max_new_tokens=6, num_beams=beams, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    inputs = {"input_ids": probe.input_ids, "attention_mask": torch.ones_like(probe.input_ids)}
    expected = text_model.generate(**inputs, generation_config=settings)
    written = model.generate(**inputs, generation_config=settings, pixel_values=probe.pixel_values)
    assert torch.equal(written.sequences[1], expected.sequences[1])
    rows = slice(beams, 2 * beams)  # the second row's beams
    assert len(written.logits) == 6
    for ours, theirs in zip(written.logits, expected.logits, strict=True):
        assert torch.equal(ours[rows], theirs[rows])
    assert not torch.equal(written.logits[0], expected.logits[0])


def test_generation_from_a_single_text_is_the_text_models(models):
    """One row takes other kernels than several, whose rounding depends on where in memory the weights begin."""
    text_model, model = models
    input_ids = make_probes(text_model.config, model.config)[0].input_ids[1:2]
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    expected, written = (
        m.generate(input_ids, attention_mask=torch.ones_like(input_ids), generation_config=settings)
        for m in (text_model, model)
    )
    assert len(written.logits) == 6
    assert torch.equal(torch.stack(written.logits), torch.stack(expected.logits))


@pytest.fixture(params=[True, False], ids=["text model with cross blocks", "text model without"])
def exported(request, small_config, tmp_path):
    """A text checkpoint, and the text model out of a vision-language model whose every other tensor has moved."""
    config = ArlowConfig.from_dict(small_config.to_dict() | {"use_cross_attention": request.param})
    ArlowForCausalLM(config).save_pretrained(tmp_path / "text")
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=160)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path / "text", vision_config).eval()
    for name, parameter in model.named_parameters():
        if "cross_block" in name or ".projector." in name or ".vision." in name:
            parameter.data.add_(torch.randn_like(parameter))
    model.text_model().save_pretrained(tmp_path / "exported")
    return tmp_path / "text", tmp_path / "exported"


def test_the_export_has_the_tensors_of_the_text_checkpoint_but_no_cross_blocks(exported):
    text_checkpoint, folder = exported
    assert hash_text_tensors(folder) == hash_text_tensors(text_checkpoint)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert not any("cross_block" in name for name in file.keys())  # noqa: SIM118


def test_the_exports_configuration_differs_in_the_cross_blocks_alone(exported):
    was, now = (json.loads((folder / "config.json").read_text()) for folder in exported)
    assert now == was | {"use_cross_attention": False}


def test_a_text_checkpoint_without_cross_blocks_comes_back_as_the_same_file(exported):
    text_checkpoint, folder = exported
    had_blocks = json.loads((text_checkpoint / "config.json").read_text())["use_cross_attention"]
    assert (weights_sha256(folder) == weights_sha256(text_checkpoint)) is not had_blocks


def test_the_export_writes_as_the_text_checkpoint_does_and_can_become_a_vision_language_model_again(exported):
    text_checkpoint, folder = exported
    input_ids = torch.randint(20, 300, (2, 9))
    expected = ArlowForCausalLM.from_pretrained(text_checkpoint)(input_ids).logits
    assert torch.equal(ArlowForCausalLM.from_pretrained(folder)(input_ids).logits, expected)
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=160)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(folder, vision_config).eval()
    assert torch.equal(model(input_ids).logits, expected)


def test_taking_the_text_model_out_copies_nothing_and_leaves_the_rest_as_it_was(models):
    model = copy.deepcopy(models[1])
    open_gates(model)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.named_parameters()}
    text_model = model.text_model()
    for name, tensor in text_model.named_parameters():
        assert tensor.data_ptr() == model.get_parameter(name.replace("model.", "model.language_model.", 1)).data_ptr()
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[name][0]) and tensor.requires_grad == before[name][1]
    assert model.config.text_config.use_cross_attention

"""Looks at a model while it is trained: what they show, and that they change nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from PIL import Image

from arlow_vl.data.collate import SampleCollate
from arlow_vl.data.images import DecodedImages
from arlow_vl.data.prompts import IGNORED
from arlow_vl.data.sample_dataset import EncodedSample, EncodedText
from arlow_vl.models.arlow import image_numbers
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.folders import load_tokenizer
from arlow_vl.training.look_callback import longest_document
from arlow_vl.training.look_measurements import (
    NEW_TOKENS,
    Chosen,
    attention_shares,
    evaluating,
    prompt_and_reference,
    write_texts,
)
from arlow_vl.training.look_results import Look, SampleLook, SourceLook
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.tiny_runs import write_image_text_recipe, write_text_checkpoint, write_text_recipe
from tests.training.test_run import Cut, Interrupt, facts
from vision.transform import ImageTransform

SHOWN = ("--run.watch.show_samples", "2")
ONE = ("--run.watch.show_samples", "1")

EACH_TWO = ("--run.validate_every", "2")


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, str]:
    writers = {"text": write_text_recipe, "image_text": write_image_text_recipe}
    return {stage: str(write(tmp_path_factory.mktemp(stage))) for stage, write in writers.items()}


def run(config, run_dir, *options, callbacks=()):
    fit(parse_recipe(["--config", config, "--run_dir", str(run_dir), *options]), callbacks=list(callbacks))


def looks_of(run_dir) -> list[Look]:
    return [Look.from_plain(json.loads(line)) for line in (run_dir / "looks.jsonl").read_text().splitlines()]


class Probe(Callback):
    """Notes the random state and the modes of all parts around each step's end."""

    def __init__(self):
        self.states, self.modes = [], set()

    def on_train_batch_end(self, trainer, module, *_):
        self.states.append(torch.get_rng_state())
        self.modes.add(tuple(part.training for part in module.modules()))


@pytest.fixture(scope="module")
def plain(configs, tmp_path_factory):
    """Runs that nobody looked at."""
    folders = {stage: tmp_path_factory.mktemp(f"plain-{stage}") for stage in configs}
    probes = {stage: Probe() for stage in configs}
    for stage, folder in folders.items():
        run(configs[stage], folder, callbacks=[probes[stage]])
    return {stage: (facts(folders[stage]), probes[stage]) for stage in configs}


@pytest.mark.parametrize(("stage", "every"), [("text", "null"), ("image_text", "2")])
def test_a_look_changes_nothing_of_what_is_trained(configs, plain, tmp_path, stage, every):
    probe = Probe()
    run(configs[stage], tmp_path, *ONE, "--run.watch.show_every", every, callbacks=[probe])
    expected, before = plain[stage]
    assert facts(tmp_path) == expected
    assert all(torch.equal(*pair) for pair in zip(probe.states, before.states, strict=True))
    assert probe.modes == before.modes and len(probe.modes) == 1
    last, validated = {"text": (12, 4), "image_text": (6, 3)}[stage]
    steps = range(validated, last + 1, validated) if every == "null" else range(2, last + 1, 2)
    assert [look.step for look in looks_of(tmp_path)] == list(steps)


def test_a_look_at_images_shows_texts_images_gates_and_what_a_wrong_image_costs(configs, tmp_path):
    run(configs["image_text"], tmp_path, *SHOWN)
    look = looks_of(tmp_path)[-1]
    captions, questions = look.sources
    assert (captions.name, questions.name) == ("captions", "questions")
    assert len(captions.samples) == len(questions.samples) == 2
    for sample in (*captions.samples, *questions.samples):
        (image,) = sample.images
        assert (tmp_path / image).read_bytes().startswith(b"\xff\xd8")
        assert sample.reference and sample.attention is None
    assert "?" in questions.samples[0].prompt
    assert captions.image_use == captions.exchanged_loss - captions.loss != 0
    assert all(value != 0 for pair in look.gates.values() for value in pair)
    assert set(look.gates) == {"layer 1"}
    assert look.numbers()["image_use_captions"] == captions.image_use


def test_a_look_at_text_goes_on_with_held_out_beginnings(configs, tmp_path):
    run(configs["text"], tmp_path, *SHOWN, "--run.max_steps", "4")
    (look,) = looks_of(tmp_path)
    (source,) = look.sources
    held_out = Path(configs["text"]).parent / "validation.jsonl"
    texts = [json.loads(line)["text"] for line in held_out.read_text().splitlines()]
    for sample in source.samples:
        assert any(sample.prompt in text and sample.reference in text for text in texts)
        assert sample.images == [] and sample.written
    assert look.gates == {} and source.image_use is None


@pytest.mark.parametrize(
    ("options", "hook", "step"),
    [
        (("--run.watch.show_every", "3"), "batch ends", 3),  # the look of this step is in front of its checkpoint
        ((), "validated", 4),
        (("--optim.ema", "0.9", "--run.watch.show_every", "4"), "batch starts", 5),
    ],
)
def test_a_cut_run_has_the_looks_of_one_that_was_never_cut(configs, tmp_path, options, hook, step):
    options = (*ONE, *options, "--run.max_steps", "8")
    run(configs["text"], tmp_path / "whole", *options)
    with pytest.raises(Cut):
        run(configs["text"], tmp_path / "cut", *options, callbacks=[Interrupt(hook, step)])
    run(configs["text"], tmp_path / "cut", *options)
    whole, cut = ((tmp_path / name / "looks.jsonl").read_text() for name in ("whole", "cut"))
    assert whole == cut
    assert facts(tmp_path / "whole") == facts(tmp_path / "cut")


def test_a_look_under_a_moving_average_takes_its_weights_and_gives_the_others_back(configs, tmp_path):
    ema = ("--optim.ema", "0.999", "--run.max_steps", "4")
    run(configs["image_text"], tmp_path / "seen", *ema, *ONE, "--run.watch.show_every", "2", *EACH_TWO)
    run(configs["image_text"], tmp_path / "validated", *ema, *ONE, *EACH_TWO)
    assert facts(tmp_path / "seen") == facts(tmp_path / "validated")
    at_steps = {look.step: look.sources for look in looks_of(tmp_path / "seen")}
    assert {look.step: look.sources for look in looks_of(tmp_path / "validated")} == at_steps


class NotFinite(Callback):
    def on_validation_start(self, trainer, module):
        module.model.lm_head.weight.data[:] = float("nan")


def test_a_look_at_a_model_that_diverged_says_so_and_the_run_decides(configs, tmp_path, capsys):
    with pytest.raises(Exception, match="not finite"):
        run(configs["text"], tmp_path, *SHOWN, callbacks=[NotFinite()])
    assert looks_of(tmp_path)[0].fault is not None
    assert "step 4  writes nothing, as its logits are not finite" in capsys.readouterr().out


token = st.integers(0, 50)


@settings(max_examples=60)
@given(
    prompt=st.lists(token, min_size=2, max_size=9),
    answers=st.lists(st.lists(token, min_size=1, max_size=50), min_size=1, max_size=3),
)
def test_a_conversation_is_parted_in_front_of_its_last_answer(prompt, answers):
    ids, labels = [], []
    for answer in answers:
        ids += prompt + answer
        labels += [IGNORED] * len(prompt) + answer
    before, reference = prompt_and_reference(EncodedText(ids, labels))
    assert before == ids[: len(ids) - len(answers[-1])]
    assert reference == answers[-1][:NEW_TOKENS]


@settings(max_examples=60)
@given(ids=st.lists(token, min_size=2, max_size=300))
def test_a_text_that_is_all_learnt_is_parted_in_its_middle(ids):
    before, reference = prompt_and_reference(EncodedText(ids, [IGNORED, *ids[1:]]))
    assert before and reference
    assert before + reference == ids[: len(before) + len(reference)]
    assert len(before) <= 64 and len(reference) <= NEW_TOKENS


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), is_cut=st.booleans())
def test_the_longest_document_of_a_row_is_taken(lengths, is_cut):
    documents = [[1, *range(10, 9 + length)] for length in lengths]
    if is_cut:
        documents[0] = documents[0][1:]
    row = np.array([token for document in documents for token in document] or [1])
    document = longest_document(row, 1).ids
    assert len(document) == max(max(map(len, documents)), 1)
    assert 1 not in document[1:]


def test_each_part_has_its_own_mode_again():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Sequential(torch.nn.Dropout(0.5)))
    model[0].eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules()) and not torch.is_grad_enabled()
    assert [part.training for part in model.modules()] == [True, False, True, True]


def test_a_look_is_the_same_after_it_was_written():
    sample = SampleLook("a", "b", "c", "d", images=["looks/x.jpg"], attention=[0.25, 0.75])
    look = Look(7, [SourceLook("s", [sample, sample], 1.0, 1.5)], {"layer 1": (0.1, -0.2)}, True)
    assert Look.from_plain(json.loads(json.dumps(look.to_plain()))) == look
    assert look.sources[0].different == 1 and look.sources[0].image_use == 0.5


@pytest.fixture(scope="module")
def sees(tmp_path_factory):
    """A model of random weights with its collate, and samples of one conversation about two images each."""
    folder = tmp_path_factory.mktemp("sees")
    vision = ArlowVisionConfig(timm_name="test_efficientnet", image_size=64)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(write_text_checkpoint(folder / "text"), vision).eval()
    transform = ImageTransform.from_dict(model.config.vision_config.transform)
    images = DecodedImages(transform)
    image_id = model.config.get_text_config().image_token_id

    def sample(ids: list[int], *colours: str) -> Chosen:
        values = [transform(Image.new("RGB", (64, 64), colour)) for colour in colours]
        ids = [image_id if i == IMAGE else i for i in ids]
        return Chosen("k", EncodedSample([EncodedText(ids, [IGNORED, *ids[1:]])], values), ids, ids)

    def loss(batch):
        return model(**{k: v for k, v in batch.items() if not k.startswith("num_")}, use_cache=False).loss

    return model, loss, sample, SampleCollate(images, pad_token_id=0)


IMAGE = -1


def test_the_attention_of_a_text_is_shared_out_among_its_images(sees, monkeypatch):
    model, loss, sample, collate = sees

    def shares(*colours):
        with torch.no_grad():
            return attention_shares(model, loss, sample([101, IMAGE, IMAGE, 105, 106, 107], *colours), collate)

    for colours in (("red", "white"), ("red", "red")):  # one image twice is told apart by its numbers alone
        assert sum(shares(*colours)) == pytest.approx(1, abs=1e-5)
        assert shares(*colours) != pytest.approx([0.5, 0.5], abs=1e-7)
    monkeypatch.setattr(image_numbers, "number_waves", lambda numbers, dim: torch.zeros(len(numbers), dim))
    assert shares("red", "red") == pytest.approx([0.5, 0.5], abs=1e-5)
    assert shares("red", "white") != pytest.approx([0.5, 0.5], abs=1e-7)


def test_images_behind_a_prompt_are_not_shown_with_it(sees, tmp_path):
    """The answer to the second image was cut, so the first is what the look asks for."""
    model, _, sample, collate = sees
    tokenizer = load_tokenizer(write_text_checkpoint(tmp_path))
    cut = replace(sample([101, IMAGE, 105, 106, IMAGE, 107], "red", "white"), prompt=[101, 7, 105])
    one = replace(sample([101, IMAGE, 105], "red"), prompt=[101, 7, 105])
    none = replace(cut, prompt=[101, 105])
    together = write_texts(model, tokenizer, [cut, one, none], collate)
    unseen = replace(none, item=EncodedSample(none.item.texts, []))
    assert together == [write_texts(model, tokenizer, [alone], collate)[0] for alone in (one, one, unseen)]


@pytest.mark.parametrize("ids", [[101, IMAGE, 105, 106], [101, IMAGE, 105, IMAGE, 106]])
def test_nothing_is_shared_out_where_no_token_has_a_choice(sees, ids):
    model, loss, sample, collate = sees
    assert attention_shares(model, loss, sample(ids, *["red", "white"][: ids.count(IMAGE)]), collate) is None

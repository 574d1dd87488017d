"""The comparison of ways to show images: every model reads them, keeps what it freezes, and gets the same steps."""

import json
from pathlib import Path

import pytest
import torch

from arlow_vl.evaluation.held_out_text import read_rows
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.folders import load_tokenizer
from experiments.peers import run
from experiments.peers.data import Batch, make_data
from experiments.peers.models import BUILDERS, VARIANTS, Peer
from experiments.peers.scoring import greedy
from experiments.peers.table import format_table
from experiments.peers.training import RATES, Plan, search
from tests.data.scenes.made_drawings import made_drawings
from tests.tiny_runs import sentences, write_jsonl, write_text_checkpoint
from vision.encoder import VisionEncoder

FOLDER = Path(run.__file__).parent
PLAN = Plan(steps=2, search_steps=1, captions=2, questions=1, seeds=(1, 2))
SIZES = {"train": 8, "validation": 4, "test-new": 4, "test-pairs": 4}
FROZEN = ("Arlow", "early fusion, decoder frozen", "Mllama")
STARTS = {
    "Arlow": 0.95,
    "Arlow, gates closed at the start": 0.0,
    "Mllama": 0.0,
    "Mllama, gates open at the start": 0.95,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    return write_text_checkpoint(folder, max_position_embeddings=256, attention_dropout=0.0)


@pytest.fixture(scope="module")
def study(text, tmp_path_factory) -> run.Study:
    folder = tmp_path_factory.mktemp("peers")
    torch.manual_seed(0)
    encoder = VisionEncoder("test_efficientnet", image_size=64).requires_grad_(False).eval()
    tokenizer = load_tokenizer(text)
    data = make_data(made_drawings(), encoder, encoder.image_transform(), tokenizer, folder / "features", SIZES)
    rows = read_rows(write_jsonl(folder / "validation.jsonl", sentences(200)), tokenizer)
    return run.Study(text, data, rows, PLAN, folder / "runs")


@pytest.fixture(params=[*BUILDERS, *VARIANTS])
def peer(request, text) -> Peer:
    """With gates that are open."""
    torch.manual_seed(0)
    built = (BUILDERS | VARIANTS)[request.param](text, 16, 3).eval()
    for name, parameter in built.named_parameters():
        if name.endswith("_gate"):
            parameter.data.fill_(0.5)
    return built


@pytest.fixture
def batch(text) -> Batch:
    ids = torch.randint(10, 200, (2, 7))
    ids[:, 1] = ArlowConfig.from_pretrained(text).image_token_id
    return Batch(ids, ids, torch.randn(2, 1, 9, 16))


@torch.no_grad()
def test_every_model_reads_the_image_and_the_same_out_of_a_cache(peer, batch):
    whole = peer.read(batch.input_ids, peer.encode(batch.features))
    assert whole.shape[:2] == batch.input_ids.shape
    images, cache = peer.encode(batch.features), peer.new_cache()
    first = batch.input_ids.shape[1] - 2
    parts = [peer.read(batch.input_ids[:, :first], images, cache)]
    parts += [peer.read(batch.input_ids[:, place : place + 1], images, cache) for place in (first, first + 1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    other = peer.read(batch.input_ids, peer.encode(batch.features.flip(-1)))
    assert not torch.allclose(other[:, -1], whole[:, -1], atol=1e-3)


@torch.no_grad()
def test_every_patch_counts_for_the_last_token(peer, batch):
    whole = peer.read(batch.input_ids, peer.encode(batch.features))[:, -1]
    for patch in range(9):
        features = batch.features.clone()
        features[:, :, patch] = features[:, :, patch].flip(-1)
        assert not peer.read(batch.input_ids, peer.encode(features))[:, -1].equal(whole), patch


@torch.no_grad()
def test_twins_of_the_text_model_write_its_logits(text, batch):
    torch.manual_seed(0)
    logits = {
        name: build(text, 16, 3).eval().decoder(batch.input_ids[:, 2:]).logits for name, build in BUILDERS.items()
    }
    for name in ("early fusion", "early fusion, decoder frozen", "Mllama"):
        torch.testing.assert_close(logits[name], logits["Arlow"], atol=1e-5, rtol=1e-5)  # other kernels round otherwise


@pytest.mark.parametrize(("name", "opening"), STARTS.items())
def test_gates_start_as_the_name_says(text, name, opening):
    peer = (BUILDERS | VARIANTS)[name](text, 16, 3)
    gates = [value.tanh().item() for key, value in peer.named_parameters() if key.endswith("_gate")]
    assert gates == pytest.approx([opening] * len(gates)) and gates


def test_an_answer_ends_where_the_model_ends_it(peer, batch):
    never, always = torch.tensor([-1]), torch.arange(1000)
    assert greedy(peer, batch.input_ids[:1], batch.features[:1], always).shape == (1, 1)
    assert greedy(peer, batch.input_ids[:1], batch.features[:1], never).shape == (1, 40)


def test_the_search_goes_on_at_an_edge():
    assert list(search(lambda rate: rate)) == list(RATES[:5])
    assert list(search(lambda rate: -rate)) == list(RATES[2:])
    assert list(search(lambda rate: abs(rate - RATES[3]))) == list(RATES[2:5])


def test_all_models_take_two_steps_and_fill_a_column(study, monkeypatch):
    monkeypatch.setattr(run, "ROUNDS", 1)
    figures = run.measure(study)
    assert list(figures["models"]) == list(BUILDERS)
    for name, model in figures["models"].items():
        for seed in model["seeds"].values():
            before, after = (seed["text"][when]["logits_sha256"] for when in ("before", "after"))
            assert (before == after) == (name in FROZEN), name
        losses = [seed["loss"] for seed in model["seeds"].values()]
        assert losses[0] != losses[1], name
    lines = format_table(figures).splitlines()
    assert {line.count("|") for line in lines if line.startswith("|")} == {len(BUILDERS) + 3, 8}
    assert set(figures["speed"]) == {"1", "4"}


def test_a_run_that_was_kept_is_not_run_again(study):
    first = study.kept("once", lambda: {"value": 1})
    assert study.kept("once", lambda: pytest.fail("run again")) == first


def test_the_table_and_the_readme_are_made_of_the_figures():
    figures = json.loads((FOLDER / "result.json").read_text())
    table = format_table(figures)
    assert (FOLDER / "result.md").read_text() == table + "\n"
    readme = (FOLDER / "README.md").read_text()
    for line in (line for line in table.splitlines() if line.startswith("|")):
        assert line in readme

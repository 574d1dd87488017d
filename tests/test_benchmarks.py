"""The benchmarks measure what they say: the forms they compare compute the same."""

import importlib
import json

import pytest
import torch

from experiments.benchmarks import (
    cross_attention,
    decoder,
    evaluate,
    evaluate_answers,
    loop_overhead,
    measure,
    packing,
    serving,
    training,
    vision_language,
)
from experiments.benchmarks.measure import Timings, alternate, table

COMMANDS = (
    "attention", "attention_parity", "data", "decoder", "evaluate", "low_precision", "serving", "serving_load",
    "tokenizer", "training", "vision", "vision_language",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_starts(name, monkeypatch, capsys):
    module = importlib.import_module(f"experiments.benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0 and "usage" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["data", "decoder", "vision_language"])
def test_whole_models_are_measured_side_by_side_in_every_row(name, monkeypatch, capsys):
    module = importlib.import_module(f"experiments.benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [name, "--toy", "--rounds", "1", *(["--no-compile"] if name == "decoder" else [])])
    module.main()
    shown = capsys.readouterr().out
    assert all(goal in shown for goal in module.GOALS if "compiled" not in goal)


def test_mllama_holds_the_layers_that_arlow_holds():
    """As many parameters in self-attention layers and gated blocks, norms aside."""
    models = vision_language.build(decoder.TOY_SHAPE, vision_language.TOY_ENCODER)

    def weights(model, part):
        return sum(p.numel() for name, p in model.named_parameters() if part in name and p.ndim > 1)

    assert weights(models["Arlow"], "language_model.layers") == weights(models["Mllama"], "language_model.layers")
    assert models["Mllama"].model.vision_model.encoder is models["Arlow"].model.vision
    assert models["LLaVA"].model.vision_tower.encoder is models["Arlow"].model.vision


def test_ratios_are_of_neighbours_in_one_round():
    timings = Timings({"ours": [1.0, 2.0, 4.0], "peer": [2.0, 2.0, 2.0]})
    assert timings.ratios("ours", "peer") == [0.5, 1.0, 2.0]
    assert timings.speed_over("ours", "peer")["median"] == 1.0


def test_cases_take_turns():
    order = []
    alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, warmup=1)
    assert "".join(order) == "ab" + "abab"


def test_a_table_is_markdown():
    assert table(["x", "y"], [[1, 2]]) == "| x | y |\n| --- | --- |\n| 1 | 2 |"


def test_packed_rows_hold_every_document_once_and_whole():
    texts = packing.documents()
    rows = packing.packed(texts)
    starts = (rows["position_ids"] == 0).nonzero().tolist()
    found = []
    for row, start in starts:
        ids = rows["input_ids"][row, start:]
        length = next((i for i in range(1, len(ids)) if rows["position_ids"][row, start + i] == 0), len(ids))
        found.append(tuple(ids[:length].tolist()))
    assert sorted(x for x in found if x[0] != 3) == sorted(tuple(text.tolist()) for text in texts)


def test_all_layouts_have_the_same_targets():
    forms = packing.layouts()
    counts = {name: sum(int((b["labels"][:, 1:] != -100).sum()) for b in form) for name, form in forms.items()}
    assert len(set(counts.values())) == 1
    assert packing.fill(forms["packed"]) > 0.9 > 0.5 > packing.fill(forms["padded"])


def test_the_segment_table_and_the_dense_mask_compute_the_same(monkeypatch):
    monkeypatch.setattr(cross_attention, "TEXT", 64)
    monkeypatch.setattr(cross_attention, "PATCHES", 5)
    torch.manual_seed(0)
    assert cross_attention.largest_difference(4) < 1e-5


def test_documents_of_any_number_and_length_fill_rows_of_any_width():
    lengths = packing.Lengths(documents=8, batch=2, row=64, median=16)
    forms = packing.layouts(lengths, vocab_size=50)
    assert {batch["input_ids"].shape[1] for batch in forms["packed"]} == {64}
    tokens = {name: sum(int((b["input_ids"] != 3).sum()) for b in form) for name, form in forms.items()}
    assert len(set(tokens.values())) == 1


@pytest.mark.slow
def test_the_clock_of_a_run_leaves_model_and_optimizer_out(tmp_path):
    """All of a step's CPU time is more than what lies outside of both, and that is more than nothing."""
    found = loop_overhead.overheads(tmp_path, steps=6)
    assert len(found) == 3 and all(0 < seconds < 2 for seconds in found.values())


@pytest.mark.slow
def test_steps_on_images_are_measured_beside_both_peers(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["training", "--toy", "--rounds", "1"])
    training.main()
    shown = capsys.readouterr().out
    rows = [line.split(" | ")[0] for line in shown.splitlines() if line.startswith("| ")]
    assert sum("images/s over" in row for row in rows) == 4
    assert sum("outside of model and optimizer" in row for row in rows) == 3
    assert any("peak memory over Mllama's" in row for row in rows)


def test_both_forms_of_cider_score_the_same():
    """Also with a candidate without words, of which the peer's dictionaries are empty."""
    candidates, targets = evaluate.made_captions(40, 3)
    words = [evaluate.cut(candidates), [evaluate.cut(group) for group in targets]]
    words[0][0] = []
    ours, theirs = evaluate.cider_of_arrays(*words), evaluate.cider_of_dictionaries(*words)
    assert ours == pytest.approx(theirs, abs=1e-9) and max(theirs) > 0


def test_scoring_is_measured_on_made_captions(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evaluate", "--only", "scoring", "--samples", "30", "--rounds", "1"])
    evaluate.main()
    assert "30 captions x 5 references" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(measure.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_kept_figure_stands_beside_its_processor(path):
    found = json.loads(path.read_text()).get("machine")
    if found is None:
        assert path.stem.startswith("gpu")  # names its card itself
        return
    text = path.with_suffix(".md").read_text()
    assert found["processor"] in text and found["instructions"] in text.replace("AVX-512", "AVX512")


def test_a_text_without_its_processor_gets_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    for text in ("# Title\n\nA figure.", "A figure."):
        measure.report("some", text, {})
        assert measure.machine_words() in (tmp_path / "some.md").read_text()
    assert capsys.readouterr().out.count(measure.machine_words()) == 2


def test_questions_at_once_are_measured_beside_generate_and_transformers_server(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["serving", "--toy", "--rounds", "1"])
    serving.main()
    shown = capsys.readouterr().out
    clients = [
        f"{model}, {count}" for model in ("arlow", "mllama") for count in ("1 client", "4 clients", "16 clients")
    ]
    assert all(f"| {case} |" in shown for case in ("generate", *clients))
    assert "First token after a JPEG of 12 megapixels" in shown


def test_answers_are_timed_beside_peers_of_their_size(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evaluate", "--only", "answers", "--toy", "--rounds", "1"])
    evaluate.main()
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("captions/s", *evaluate_answers.PEERS, "all over one"))


def test_the_encoder_decoder_has_the_size_of_arlow():
    arlow = vision_language.build_arlow(decoder.SHAPE, vision_language.TOY_ENCODER)
    text = sum(p.numel() for p in arlow.model.language_model.parameters())
    peer = evaluate_answers.build_encoder_decoder(decoder.SHAPE, arlow.model.vision, text)
    assert sum(p.numel() for p in peer.decoder.parameters()) == pytest.approx(text, rel=0.05)
    encoders = [sum(p.numel() for p in x.parameters()) for x in (peer.encoder, arlow.model.vision)]
    assert encoders[0] == pytest.approx(encoders[1], rel=0.05)

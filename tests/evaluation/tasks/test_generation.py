"""Rows that leave their batch at their end, against transformers' own search, in which they stay."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import StoppingCriteria

from arlow_vl.evaluation import generation
from arlow_vl.evaluation.generation import continue_batch
from arlow_vl.models.folders import load_vision_language_model
from tests.evaluation.tasks.test_likelihood import Pack

ROWS = st.lists(
    st.tuples(st.lists(st.integers(8, 200), min_size=1, max_size=9), st.lists(st.integers(1, 3), max_size=2)),
    min_size=2,
    max_size=9,
)


@pytest.fixture(scope="module")
def loaded(model_folder):
    model, processor = load_vision_language_model(model_folder)
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            parameter.data.fill_(1.0)
    return model.double(), processor.tokenizer


class AtStep(StoppingCriteria):
    """Ends row i at step i + 2, as a stop text would."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.step += 1
        return torch.arange(len(input_ids)) + 2 <= self.step


def both_ways(loaded, monkeypatch, rows, seed, criterion=None):
    """What is written with rows that leave and with rows that stay, and the rows of each forward call of the first."""
    model, tokenizer = loaded
    image, seen = model.config.image_token_id, []
    prompts = [[image] * len(images) + ids for ids, images in rows]
    ends = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(seed))[: len(tokenizer) // 3]
    hook = model.register_forward_pre_hook(lambda m, a, k: seen.append(len(k["input_ids"])), with_kwargs=True)
    written = []
    for leaves in (True, False):
        with monkeypatch.context() as patch:
            if not leaves:
                patch.setattr(generation, "_rows_leave", lambda *asked: False)
            how = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": ends.tolist(), "repetition_penalty": 1.3}
            images = [images for _, images in rows]
            if criterion:
                how["stopping_criteria"] = [criterion()]
            written.append(continue_batch(model, tokenizer, prompts, images, Pack(), settings=how))
        if leaves:
            hook.remove()
    return *written, seen


@given(rows=ROWS, seed=st.integers(0, 1000))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_that_leave_write_what_they_write_where_all_stay(loaded, monkeypatch, rows, seed):
    leaving, staying, calls = both_ways(loaded, monkeypatch, rows, seed)
    for ours, theirs in zip(leaving, staying, strict=True):
        assert (ours.ids, ours.has_ended) == (theirs.ids, theirs.has_ended)
        assert ours.nats == pytest.approx(theirs.nats, abs=1e-5)
    lengths = [len(one.ids) + one.has_ended for one in leaving]
    assert len(calls) == max(lengths) and calls == sorted(calls, reverse=True)


def test_no_forward_call_has_rows_that_ended_long_ago(loaded, monkeypatch):
    rows = [([9 + row], [1]) for row in range(8)]
    leaving, staying, calls = both_ways(loaded, monkeypatch, rows, 1, AtStep)
    assert [one.ids for one in leaving] == [one.ids for one in staying]
    longest = [max(2, row + 2) for row in range(8)]
    assert all(count <= sum(step < length for length in longest) + 1 for step, count in enumerate(calls))
    assert calls[-1] < 8


def test_a_model_that_is_to_use_no_cache_or_beams_by_its_own_settings_does(loaded, monkeypatch):
    rows = [([9 + row], [1]) for row in range(3)]
    expected, _, _ = both_ways(loaded, monkeypatch, rows, 1)
    monkeypatch.setattr(loaded[0].generation_config, "use_cache", False)
    found, _, calls = both_ways(loaded, monkeypatch, rows, 1)
    assert [one.ids for one in found] == [one.ids for one in expected]
    assert set(calls) == {3}


def test_answers_have_their_log_probabilities_on_a_device_without_float64(loaded, without_float64):
    model, tokenizer = loaded
    how = {"max_new_tokens": 3, "do_sample": False}
    (one,) = continue_batch(model, tokenizer, [[9, 10]], [[]], Pack(), settings=how)
    assert one.nats is not None and len(one.nats) == len(one.ids) + one.has_ended

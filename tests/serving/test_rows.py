"""Whoever else is written meanwhile, whenever a row joins and leaves: its logits are those alone, without a cache."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arlow_vl.serving.assistant import Assistant, Prompt
from arlow_vl.serving.encoding import of_images
from arlow_vl.serving.rows import Rows
from tests.serving.tiny_assistants import question, text_assistant, vision_assistant

TOKENS = 8
TEXTS = ("a", "one big red dog run over green hills")
COLOURS = ((), ("red",), ("white", "green"), ("red", "red", "white"))
KINDS = {
    "one size": {},
    "all images before a token": {"cross_attention_sees": "all_previous"},
    "tiles": {"transform": {"max_tiles": 4}},
    "a perceiver": {"projector": "perceiver"},
    "text": None,
}


@dataclass
class Case:
    """A prompt, tokens that are written behind it whatever the model thinks, and its logits without any cache."""

    prompt: Prompt
    tokens: list[int]
    logits: torch.Tensor
    """(TOKENS, V): behind the prompt, and behind each token but the last."""

    @classmethod
    def of(cls, assistant: Assistant, prompt: Prompt, number: int) -> "Case":
        dice = torch.Generator().manual_seed(number)
        tokens = torch.randint(8, 200, (TOKENS,), generator=dice).tolist()
        ids = torch.tensor([[*prompt.ids, *tokens[:-1]]])
        images = assistant.pack(prompt.images) if prompt.images else {}
        logits = assistant.model(input_ids=ids, **images, use_cache=False, logits_to_keep=TOKENS).logits[0]
        return cls(prompt, tokens, logits.float())


@pytest.fixture(scope="module", params=KINDS)
def cases(request):
    kind = KINDS[request.param]
    with torch.inference_mode():
        assistant = text_assistant() if kind is None else vision_assistant(**kind)
        assistant.model.double()  # in which rounding is far below the tolerance
        shown = COLOURS[:1] if kind is None else COLOURS
        prompts = [question(assistant, text, *colours) for text in TEXTS for colours in shown]
        made = [Case.of(assistant, prompt, number) for number, prompt in enumerate(prompts)]
    for one, other in itertools.combinations(made, 2):  # else what a row sees of another's could go unseen
        assert (one.logits[0] - other.logits[0]).abs().max() > 1e-2
    return assistant, made


def states_of(assistant, prompts) -> dict:
    images = list(dict.fromkeys(image for prompt in prompts for image in prompt.images))
    if not images:
        return {}
    return dict(zip(images, of_images(assistant.model.model.encode_images(**assistant.pack(images))), strict=True))


schedules = st.lists(
    st.tuples(
        st.integers(0, 10**6), st.integers(0, 6), st.integers(1, TOKENS)
    ),  # case, joins at, tokens until it leaves
    min_size=1,
    max_size=6,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules)
@torch.inference_mode()
def test_rows_that_join_and_leave_have_the_logits_of_each_alone(cases, schedule):
    assistant, all_cases = cases
    rows = Rows(assistant.model, assistant.tokenizer.pad_token_id)
    waiting = [(at, all_cases[number % len(all_cases)], length) for number, at, length in schedule]
    running: list[Row] = []
    for now in range(100):
        joining = [Row(case, length) for at, case, length in waiting if at == now]
        waiting = [entry for entry in waiting if entry[0] > now]
        if joining:
            prompts = [row.case.prompt for row in joining]
            read = rows.read([p.ids for p in prompts], [p.images for p in prompts], states_of(assistant, prompts))
            rows.join(read)
            running += joining
            check(joining, read.logits)
        stays = [number for number, row in enumerate(running) if row.read < row.length]
        rows.keep(stays)
        running = [running[number] for number in stays]
        assert len(rows) == len(running)
        if not running and not waiting:
            return
        if running:
            check(running, rows.step([row.case.tokens[row.read - 1] for row in running]))
    raise AssertionError("rows never left")


@dataclass
class Row:
    case: Case
    length: int
    read: int = 0
    """Logits that came so far."""


def check(rows: list[Row], logits: torch.Tensor) -> None:
    for row, found in zip(rows, logits, strict=True):
        torch.testing.assert_close(found, row.case.logits[row.read], rtol=0, atol=1e-5)  # rounded to float32
        row.read += 1


@torch.inference_mode()
def test_padding_and_images_go_with_the_row_that_needed_them():
    assistant = vision_assistant()
    short, long = question(assistant, "a"), question(assistant, TEXTS[1], "red", "blue")
    rows = Rows(assistant.model, assistant.tokenizer.pad_token_id)
    for prompt in (short, long):
        rows.join(rows.read([prompt.ids], [prompt.images], states_of(assistant, [prompt])))
    text_layers = assistant.model.config.get_text_config().num_hidden_layers
    assert len(rows._cache.layers) > text_layers and rows._mask.shape == (2, len(long.ids))
    rows.keep([0])
    assert len(rows._cache.layers) == text_layers and rows._mask.shape == (1, len(short.ids))
    rows.keep([])
    assert len(rows) == 0 and rows._cache is None

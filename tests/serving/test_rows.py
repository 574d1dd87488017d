"""Whoever else is written at the time, whenever a row joins and leaves: it reads what it would read alone."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arlow_vl.serving.engine import _of_images
from arlow_vl.serving.rows import Rows
from tests.serving.tiny_assistants import generated, question, text_assistant, vision_assistant

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
    """A prompt, and what `generate` writes behind it alone."""

    prompt: object
    expected: list[int]


@pytest.fixture(scope="module", params=KINDS)
def cases(request):
    kind = KINDS[request.param]
    assistant = text_assistant() if kind is None else vision_assistant(**kind)
    if kind is None:
        assistant.model.double()
    shown = COLOURS[:1] if kind is None else COLOURS
    prompts = [question(assistant, text, *colours) for text in TEXTS for colours in shown]
    return assistant, [Case(prompt, generated(assistant, prompt, TOKENS)) for prompt in prompts]


def states_of(assistant, prompts) -> dict:
    images = list(dict.fromkeys(image for prompt in prompts for image in prompt.images))
    if not images:
        return {}
    return dict(zip(images, _of_images(assistant.model.model.encode_images(**assistant.pack(images))), strict=True))


schedules = st.lists(
    st.tuples(
        st.integers(0, 10**6), st.integers(0, 6), st.integers(1, TOKENS)
    ),  # case, joins at, tokens until it leaves
    min_size=1,
    max_size=6,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules)
@torch.inference_mode()
def test_rows_that_join_and_leave_write_what_each_writes_alone(cases, schedule):
    assistant, all_cases = cases
    rows = Rows(assistant.model, assistant.tokenizer.pad_token_id)
    waiting = sorted(
        ((at, all_cases[number % len(all_cases)], length) for number, at, length in schedule), key=lambda x: x[0]
    )
    running: list[tuple[Case, list[int], int]] = []
    image = assistant.model.config.get_text_config().image_token_id

    def write(some, logits):
        logits[:, image] = -torch.inf
        for (case, written, _), token in zip(some, logits.argmax(-1).tolist(), strict=True):
            written.append(token)
            assert written == case.expected[: len(written)]

    now = 0
    while waiting or running:
        joining = [(case, [], length) for at, case, length in waiting if at <= now]
        waiting = [entry for entry in waiting if entry[0] > now]
        if joining:
            prompts = [case.prompt for case, _, _ in joining]
            read = rows.read([p.ids for p in prompts], [p.images for p in prompts], states_of(assistant, prompts))
            rows.join(read)
            running += joining
            write(joining, read.logits)
        stays = [
            n for n, (case, written, length) in enumerate(running) if len(written) < min(length, len(case.expected))
        ]
        rows.keep(stays)
        running = [running[n] for n in stays]
        assert len(rows) == len(running)
        if running:
            write(running, rows.step([written[-1] for _, written, _ in running]))
        now += 1


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

"""Scores a model's captions and answers on test images, and controls without a model."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from arlow_vl.data.prompts import stop_token_ids
from arlow_vl.data.scenes.questions import QuestionAnswer
from arlow_vl.evaluation.held_out_text import HeldOut, Rows, measure_text
from arlow_vl.evaluation.metrics.scenes import answer_scores, scene_scores
from experiments.peers.data import Data, Shown
from experiments.peers.models import Peer
from experiments.plain_controls import most_frequent, nearest_neighbour, question_prior

SLOTS = ("thing", "colour", "count", "relation")
TESTS = ("test-new", "test-pairs")
ANSWERED = 64
"""Batch size of generation."""
MOST_TOKENS = 40
"""Maximum number of tokens of an answer."""
TEXT_ROWS = 32
"""Rows of held-out text, 256 tokens each."""


def scores_of(peer: Peer, data: Data) -> dict[str, Any]:
    """Computes the shares that are right: captions of each test, captions of another image, answers by kind."""
    found: dict[str, Any] = {}
    for split in TESTS:
        shown = data.splits[split]
        names = [one.image for one in shown]
        found[split] = caption_scores(answers(peer, data, [None] * len(shown), names), shown)
        if split == TESTS[0]:  # twins stand side by side, so another image is one far away
            others = names[len(names) // 2 :] + names[: len(names) // 2]
            found["another image"] = caption_scores(answers(peer, data, [None] * len(shown), others), shown)
    images = [shown.image for shown in data.splits[TESTS[0]] for _ in shown.asked]
    asked = asked_of(data, TESTS[0])
    said = answers(peer, data, [one.question for one in asked], images)
    return found | {"questions": answer_scores(said, [one.answer for one in asked], [one.kind for one in asked])}


def controls_of(data: Data) -> dict[str, Any]:
    """Computes the same scores for controls.

    These are the nearest training image's caption, the most frequent caption, and the most frequent training answer to
    a wording.
    """
    train = data.splits["train"]
    captions = [shown.caption for shown in train]
    features = data.features.mean([shown.image for shown in train]).numpy()
    mean = features.mean(0)
    found: dict[str, Any] = {}
    for split in TESTS:
        shown = data.splits[split]
        its = data.features.mean([one.image for one in shown]).numpy()
        found[split] = caption_scores(nearest_neighbour(features - mean, captions, its - mean), shown)
        found[f"{split}, most frequent"] = caption_scores([most_frequent(captions)] * len(shown), shown)
    known, asked, priors = asked_of(data, "train"), asked_of(data, TESTS[0]), {}
    for kind in sorted({one.kind for one in asked}):
        its = [one for one in asked if one.kind == kind]
        of_kind = [(one.question, one.answer) for one in known if one.kind == kind]
        prior = question_prior(of_kind, [one.question for one in its])
        priors |= answer_scores(prior, [one.answer for one in its], [kind] * len(its))
    return found | {"questions": priors}


def asked_of(data: Data, split: str) -> list[QuestionAnswer]:
    return [one for shown in data.splits[split] for one in shown.asked]


def caption_scores(captions: Sequence[str], shown: Sequence[Shown]) -> dict[str, float]:
    scores = scene_scores(captions, [one.scene for one in shown])
    return {"whole": scores["whole scene"], **{slot: scores[slot] for slot in SLOTS if slot in scores}}


def answers(peer: Peer, data: Data, questions: Sequence[str | None], images: Sequence[str]) -> list[str]:
    """Answers greedily; a batch has prompts of one length, so that nothing is padded."""
    prompts, ends = data.prompts(questions), torch.tensor(stop_token_ids(data.tokenizer))
    alike, said = defaultdict(list), [""] * len(prompts)
    for place, prompt in enumerate(prompts):
        alike[len(prompt)].append(place)
    for some in (places[n : n + ANSWERED] for places in alike.values() for n in range(0, len(places), ANSWERED)):
        input_ids = torch.tensor([prompts[place] for place in some])
        ids = greedy(peer, input_ids, data.images([images[place] for place in some]), ends)
        for place, row in zip(some, ids.tolist(), strict=True):
            end = next((number for number, token in enumerate(row) if token in ends), len(row))
            said[place] = data.tokenizer.decode(row[:end], skip_special_tokens=True).strip()
    return said


@torch.inference_mode()
def greedy(peer: Peer, input_ids: torch.Tensor, features: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Generates (B, answer) ids until each row has one of `ends`."""
    images, cache, tokens = peer.encode(features), peer.new_cache(), []
    is_done = torch.zeros(len(input_ids), dtype=torch.bool)
    while len(tokens) < MOST_TOKENS and not is_done.all():
        tokens.append(peer.logits(peer.read(input_ids, images, cache)[:, -1]).argmax(-1))
        is_done |= torch.isin(tokens[-1], ends)
        input_ids = tokens[-1][:, None]
    return torch.stack(tokens, dim=1)


def text_of(peer: Peer, data: Data, rows: Rows) -> HeldOut:
    """Measures the decoder on held-out text without images."""
    return measure_text(peer.decoder, data.tokenizer, replace(rows, ids=rows.ids[:TEXT_ROWS]))

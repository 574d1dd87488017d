"""What a model says of test images, and what can be said without one."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from arlow_vl.data.prompts import stop_token_ids
from arlow_vl.evaluation.controls import most_frequent, nearest_neighbour, question_prior
from arlow_vl.evaluation.held_out_text import HeldOut, Rows, measure_text
from arlow_vl.evaluation.metrics.scenes import answer_scores, scene_scores
from experiments.peers.data import Data, Shown, prompts_of
from experiments.peers.models import Peer

SLOTS = ("thing", "colour", "count", "relation")
TESTS = ("test-new", "test-pairs")
ANSWERED = 64
"""Rows at once."""
MOST_TOKENS = 40
"""Of an answer."""
TEXT_ROWS = 64
"""Of held-out text, 256 tokens each."""


def scores_of(peer: Peer, data: Data, tokenizer: Any) -> dict[str, Any]:
    """Shares of what is right: captions of every test, captions with another image shown, answers by kind."""
    found: dict[str, Any] = {}
    for split in TESTS:
        shown = data.splits[split]
        names = [one.image for one in shown]
        found[split] = told_scenes(answers(peer, data, tokenizer, [None] * len(shown), names), shown)
        if split == TESTS[0]:  # twins stand side by side, so another image is one far away
            others = names[len(names) // 2 :] + names[: len(names) // 2]
            captions = answers(peer, data, tokenizer, [None] * len(shown), others)
            found["another image"] = told_scenes(captions, shown)
    asked = [(shown.image, one) for shown in data.splits[TESTS[0]] for one in shown.asked]
    said = answers(peer, data, tokenizer, [one.question for _, one in asked], [image for image, _ in asked])
    found["questions"] = answer_scores(said, [one.answer for _, one in asked], [one.kind for _, one in asked])
    return found


def controls_of(data: Data) -> dict[str, Any]:
    """The same scores of the nearest training image's caption, of the most frequent caption, and of the answer that
    training gives most often to a wording."""
    train = data.splits["train"]
    captions = [shown.caption for shown in train]
    features = data.features.mean([shown.image for shown in train]).numpy()
    found: dict[str, Any] = {}
    for split in TESTS:
        shown = data.splits[split]
        its = data.features.mean([one.image for one in shown]).numpy()
        found[split] = told_scenes(
            nearest_neighbour(features - features.mean(0), captions, its - features.mean(0)), shown
        )
        found[f"{split}, most frequent"] = told_scenes([most_frequent(captions)] * len(shown), shown)
    known = [(one.question, one.answer, one.kind) for shown in train for one in shown.asked]
    asked = [one for shown in data.splits[TESTS[0]] for one in shown.asked]
    found["questions"] = {}
    for kind in sorted({one.kind for one in asked}):
        its = [one for one in asked if one.kind == kind]
        prior = question_prior([(q, a) for q, a, of in known if of == kind], [one.question for one in its])
        found["questions"] |= answer_scores(prior, [one.answer for one in its], [kind] * len(its))
    return found


def told_scenes(captions: Sequence[str], shown: Sequence[Shown]) -> dict[str, float]:
    scores = scene_scores(captions, [one.scene for one in shown])
    return {"whole": scores.whole, **{slot: scores.slots[slot] for slot in SLOTS if slot in scores.slots}}


def answers(
    peer: Peer, data: Data, tokenizer: Any, questions: Sequence[str | None], images: Sequence[str]
) -> list[str]:
    """Greedy; prompts of one length go together, so that nothing is padded."""
    prompts, ends = prompts_of(tokenizer, questions), torch.tensor(stop_token_ids(tokenizer))
    alike, said = defaultdict(list), [""] * len(prompts)
    for place, prompt in enumerate(prompts):
        alike[len(prompt)].append(place)
    for places in alike.values():
        for start in range(0, len(places), ANSWERED):
            some = places[start : start + ANSWERED]
            ids = greedy(
                peer, torch.tensor([prompts[place] for place in some]), data.images([images[p] for p in some]), ends
            )
            for place, row in zip(some, ids.tolist(), strict=True):
                end = next((number for number, token in enumerate(row) if token in ends), len(row))
                said[place] = tokenizer.decode(row[:end], skip_special_tokens=True).strip()
    return said


@torch.inference_mode()
def greedy(peer: Peer, input_ids: torch.Tensor, features: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """(B, answer) ids, up to where every row has had one of `ends`."""
    images, cache, tokens = peer.encode(features), peer.new_cache(), []
    is_done = torch.zeros(len(input_ids), dtype=torch.bool)
    while len(tokens) < MOST_TOKENS and not is_done.all():
        tokens.append(peer.logits(peer.read(input_ids, images, cache)[:, -1]).argmax(-1))
        is_done |= torch.isin(tokens[-1], ends)
        input_ids = tokens[-1][:, None]
    return torch.stack(tokens, dim=1)


def text_of(peer: Peer, tokenizer: Any, rows: Rows) -> HeldOut:
    """What the decoder makes of held-out text without any image."""
    return measure_text(peer.decoder, tokenizer, replace(rows, ids=rows.ids[:TEXT_ROWS]))

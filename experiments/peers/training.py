"""Trains every model with the same optimizer and batches; searches its learning rate, and times its steps."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from arlow_vl.data.prompts import about_image, encode_messages
from arlow_vl.training.optimizers import GATE_LR, build_schedule, decays, is_gate
from arlow_vl.training.settings import OptimConfig
from experiments.benchmarks.measure import Timings, alternate
from experiments.peers.data import Batch, Data, Item
from experiments.peers.models import Peer

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TRIED = (2, 5)
"""Range of the rates that the search begins with; while the best of those tried is at an end, the range grows."""
VALIDATED = 64
"""Batch size of validation."""


@dataclass(frozen=True)
class Plan:
    """The budget of every model."""

    steps: int = 250
    search_steps: int = 80
    """Steps for each rate that is tried."""
    captions: int = 8
    """Captions per step."""
    questions: int = 4
    """Questions per step."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of the scored runs; the search uses seed 0."""


def optimizer_of(peer: Peer, lr: float) -> AdamW:
    """Builds the optimizer of `arlow fit`: only matrices decay, and gates (Mllama's, too) learn ten times as fast."""
    optim, groups = OptimConfig(lr=lr), {}
    for name, parameter in peer.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((is_gate(name), decays(name, parameter)), []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "lr": GATE_LR * lr if gates else lr,
                "weight_decay": optim.weight_decay * matrices,
            }
            for (gates, matrices), parameters in groups.items()
        ],
        betas=optim.betas,
        fused=True,
    )


def train_step(peer: Peer, optimizer: AdamW, batch: Batch) -> float:
    """Makes an optimizer step, and returns the loss before it."""
    loss = peer(batch)
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in peer.parameters() if p.grad is not None], OptimConfig().grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def fit(peer: Peer, data: Data, plan: Plan, *, lr: float, steps: int, seed: int) -> dict[str, Any]:
    """Trains a model; returns the CPU seconds of training and the mean loss of each tenth of the steps."""
    optimizer = optimizer_of(peer.train(), lr)
    schedule = build_schedule(optimizer, OptimConfig(lr=lr, warmup_steps=steps // 10), steps)
    captions = endless(data.captions, plan.captions, seed)
    questions = endless(data.questions, plan.questions, seed)
    start, losses = time.process_time(), []
    for _ in range(steps):
        losses.append(train_step(peer, optimizer, data.batch([*next(captions), *next(questions)])))
        schedule.step()
    peer.eval()
    tenths = torch.tensor(losses).tensor_split(10)
    curve = [round(tenth.mean().item(), 3) for tenth in tenths if len(tenth)]
    return {"cpu_seconds": round(time.process_time() - start, 1), "curve": curve}


def endless(items: Sequence[Item], number: int, seed: int) -> Iterator[list[Item]]:
    """Yields `number` items at a time, epoch after epoch, shuffled anew in each."""
    dice = torch.Generator().manual_seed(seed)
    places = itertools.chain.from_iterable(
        torch.randperm(len(items), generator=dice).tolist() for _ in itertools.count()
    )
    while True:
        yield [items[place] for place in itertools.islice(places, number)]


@torch.inference_mode()
def validation_loss(peer: Peer, data: Data) -> float:
    """Returns the validation loss in nats per token, the mean over batches."""
    batches = [data.validation[start : start + VALIDATED] for start in range(0, len(data.validation), VALIDATED)]
    return sum(peer(data.batch(items)).item() for items in batches) / len(batches)


def search(loss_of: Callable[[float], float]) -> dict[float, float]:
    """Returns the validation loss by rate, for rates around the best of `RATES`."""
    first, last, losses = *TRIED, {}
    while True:
        losses |= {rate: loss_of(rate) for rate in RATES[first:last] if rate not in losses}
        best = RATES.index(min(losses, key=lambda rate: losses[rate]))
        if best == first > 0:
            first -= 1
        elif best == last - 1 < len(RATES) - 1:
            last += 1
        else:
            return dict(sorted(losses.items()))


def speeds(peers: dict[str, Peer], data: Data, plan: Plan, *, images: int, rounds: int) -> Timings:
    """Times a step, in CPU seconds, over as many images as in training: `images` per row, each row with one caption."""
    count = max(1, (plan.captions + plan.questions) // images)
    chosen, rows = data.splits["train"][: count * images], []
    for shown in chosen[::images]:
        messages = about_image(answer=shown.caption, images=images)
        rows.append(Item(shown.image, *encode_messages(data.tokenizer, messages)))
    features = data.images([shown.image for shown in chosen]).flatten(0, 1).unflatten(0, (count, images))
    batch = data.batch(rows)._replace(features=features)
    cases = {}
    for name, peer in peers.items():
        optimizer = optimizer_of(peer.train(), RATES[0])
        cases[name] = lambda peer=peer, optimizer=optimizer: train_step(peer, optimizer, batch)
    return alternate(cases, rounds, clock=time.process_time)

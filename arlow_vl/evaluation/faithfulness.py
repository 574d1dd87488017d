"""Tests whether the heat maps of `explain` are faithful, by hiding encoder tokens (deletion).

A growing share of the tokens that a word attended to most is hidden from the decoder, and the fall of the word's
log-probability is measured (Petsiuk et al., 2018, arXiv:1806.07421). If the heat is faithful, that fall is larger than
the one from hiding as many random tokens, and hiding the least attended ones causes a smaller one. The latter is also
insertion: with the least attended 7/8 hidden, only the most attended 1/8 are shown.

A hidden token is removed from what the decoder, or a perceiver, attends to; the encoder has still seen its patch. At
least one token stays.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from arlow_vl.data.samples import Message
from arlow_vl.errors import DataError
from arlow_vl.evaluation.bootstrap import Interval, difference_interval, draw_weights, metric_interval
from arlow_vl.evaluation.explain import Written, word_places, write_and_watch
from arlow_vl.evaluation.metrics.sums import mean
from arlow_vl.evaluation.numbers import format_number, legend
from arlow_vl.evaluation.tasks.predictions import read_json, write_json
from arlow_vl.printing import number_of, visible
from arlow_vl.progress import ProgressLine
from vision.projector import PerceiverResampler

SHARES = (0.125, 0.25, 0.5, 0.75, 0.875)
ORDERS = ("most", "random", "least")
RANDOM_ORDERS, ROWS_AT_ONCE = 8, 32

Falls = dict[str, np.ndarray]
"""Falls of each word's log-probability in nats, (words, shares), by order of hiding."""
LogProbabilities = Callable[[Tensor], Tensor]
"""Maps masks of shown tokens, (rows, encoder tokens) bool, to (rows, N): the log-probability of each written token."""


def hiding_falls(
    heat: Float[Tensor, "words tokens"],
    places: Sequence[Sequence[int]],
    log_probabilities: LogProbabilities,
    *,
    seed: int = 0,
) -> Falls:
    """Measures the falls when tokens are hidden by each word's heat, and at random.

    `places` are the positions of each word's tokens in the answer.

    Raises:
        ValueError: the image has a single token, so nothing can be hidden.
    """
    words, tokens = heat.shape
    if tokens < 2:
        raise ValueError("the image is one encoder token, of which nothing can be hidden; use a larger image_size")
    generator = torch.Generator().manual_seed(seed)
    most = heat.argsort(dim=-1, descending=True)
    chance = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(RANDOM_ORDERS)])
    orders = torch.cat([most, most.flip(-1), chance])
    shown = torch.stack([hide_first(order, share) for order in orders for share in SHARES])
    every = torch.ones(1, tokens, dtype=torch.bool)
    values = log_probabilities(torch.cat([every, shown]))
    falls = (values[:1] - values[1:]).unflatten(0, (len(orders), len(SHARES))).cpu().double()

    def of_words(rows: Callable[[int], slice]) -> np.ndarray:
        """Returns the mean over the given orders of the sum over each word's tokens."""
        per_word = [falls[rows(word), :, list(at)].sum(-1).mean(0) for word, at in enumerate(places)]
        return torch.stack(per_word).numpy() if per_word else np.zeros((0, len(SHARES)))

    return {
        "most": of_words(lambda word: slice(word, word + 1)),
        "least": of_words(lambda word: slice(words + word, words + word + 1)),
        "random": of_words(lambda _: slice(2 * words, None)),
    }


def hide_first(order: Tensor, share: float) -> Bool[Tensor, " tokens"]:
    """Returns a mask that hides (False) the first share of the order; at least one token is hidden and one stays."""
    count = min(max(round(share * len(order)), 1), len(order) - 1)
    return torch.ones(len(order), dtype=torch.bool).index_fill_(0, order[:count], False)


@torch.inference_mode()
def hideable_image(model: Any, images: Mapping[str, Tensor]) -> Callable[[Tensor], dict[str, Tensor]]:
    """Encodes one image; returns a function from masks of shown tokens, one a row, to the arguments of `forward`."""
    read: list[tuple[Tensor, ...]] = []
    projector = model.model.projector
    hook = projector.register_forward_pre_hook(lambda _, args: read.append(args))
    try:
        encoded = model.model.encode_images(**images)
    finally:
        hook.remove()
    if isinstance(projector, PerceiverResampler):
        features, its_places, _ = read[0]

        def through_perceiver(shown: Tensor) -> dict[str, Tensor]:
            kept = shown.nonzero()[:, 1]
            return {"encoder_hidden_states": projector(features[kept], its_places[kept], shown.sum(1))}

        return through_perceiver
    states = encoded.states.flatten(0, -2)
    return lambda shown: {
        "encoder_hidden_states": states[shown.nonzero()[:, 1]],
        "encoder_lengths": shown.sum(1),
    }


def written_log_probabilities(
    model: Any, written: Written, image: Callable[[Tensor], dict[str, Tensor]]
) -> LogProbabilities:
    """Returns the function that `hiding_falls` calls: the answer's log-probabilities, given parts of the image."""
    ids = torch.cat([written.prompt, written.ids], 1)

    @torch.inference_mode()
    def log_probabilities(shown: Tensor) -> Tensor:
        found = []
        for rows in shown.split(ROWS_AT_ONCE):
            logits = model(input_ids=ids.expand(len(rows), -1), use_cache=False, **image(rows)).logits
            of_written = logits[:, written.prompt.shape[1] - 1 : -1].float().log_softmax(-1)
            found.append(of_written.gather(-1, written.ids[..., None].expand(len(rows), -1, 1))[..., 0])
        return torch.cat(found)

    return log_probabilities


def falls_of_image(
    model: Any,
    tokenizer: Any,
    messages: Sequence[Any],
    images: dict[str, Tensor],
    *,
    layers: Sequence[int],
    max_new_tokens: int,
) -> dict[int, Falls]:
    """Generates an answer about one image, and measures the falls by the heat of each layer in turn.

    Raises:
        As `write_and_watch` and `hiding_falls`.
    """
    written = write_and_watch(model, tokenizer, messages, images, layers=layers, max_new_tokens=max_new_tokens)
    places = [at for _, at in word_places(tokenizer, written.ids[0].tolist())]
    ask = written_log_probabilities(model, written, hideable_image(model, images))
    found = {}
    for layer, heat in zip(layers, written.heat, strict=True):
        of_words = torch.stack([heat[at].mean(0) for at in places]) if places else heat[:0]
        found[layer] = hiding_falls(of_words, places, ask)
    return found


class AskedImage(NamedTuple):
    """An image that the model is asked about, to test its heat."""

    image: Image.Image
    messages: Sequence[Message]
    max_new_tokens: int


@dataclass(frozen=True)
class HeatTest:
    """The test of one layer's heat, over all words of all images. Intervals are bootstrapped over images."""

    layer: int
    images: int
    words: int
    falls: dict[str, list[Interval]]
    """Mean fall of a word at each of `SHARES`, in nats, by order of hiding."""
    over_random: Interval
    """Fall from hiding the most attended tokens minus that from hiding random ones, the mean over shares; above zero,
    the heat marks tokens that matter."""
    over_least: Interval
    """The same, minus the fall from hiding the least attended tokens."""


def measure_heat(
    model: Any, processor: Any, asked: Iterable[AskedImage], *, layers: Sequence[int], total: int
) -> list[HeatTest]:
    """Lets the model write about each of `total` images, and tests the heat of each layer; shows its progress.

    Raises:
        As `falls_of_image` and `evaluate_heat`.
    """
    progress, falls = ProgressLine("heat", "images"), []
    for image, messages, max_new_tokens in asked:
        images = dict(processor.image_processor([image], return_tensors="pt"))
        how = {"layers": layers, "max_new_tokens": max_new_tokens}
        falls.append(falls_of_image(model, processor.tokenizer, messages, images, **how))
        progress(len(falls), total)
    return evaluate_heat(falls)


def evaluate_heat(falls: Sequence[Mapping[int, Falls]]) -> list[HeatTest]:
    """Tests the heat of each layer; `falls` has an entry for each image (`falls_of_image`).

    Raises:
        ValueError: there are fewer than two images, or the model wrote no word about any.
    """
    if len(falls) < 2:
        raise ValueError(f"an interval over images needs two images at least, got {len(falls)}; give more")
    weights = draw_weights(len(falls))
    found = []
    for layer in falls[0]:
        words = [len(of_image[layer]["most"]) for of_image in falls]
        if not any(words):
            raise ValueError("the model wrote no word about these images, so there is no heat to test; train it longer")

        def sums(order: str, share: int | None, layer: int = layer, words: Sequence[int] = words) -> np.ndarray:
            """Returns (images, 2): the sum of the words' falls, at one share or averaged over all, and their number."""
            values = [of_image[layer][order] for of_image in falls]
            totals = [(of.mean(axis=1) if share is None else of[:, share]).sum() for of in values]
            return np.column_stack([totals, words]).astype(np.float64)

        most = sums("most", None)
        found.append(
            HeatTest(
                layer,
                len(falls),
                sum(words),
                {
                    order: [metric_interval(sums(order, i), mean, weights) for i in range(len(SHARES))]
                    for order in ORDERS
                },
                difference_interval(most, sums("random", None), mean, weights),
                difference_interval(most, sums("least", None), mean, weights),
            )
        )
    return found


def write_heat_tests(path: Path, tests: Sequence[HeatTest]) -> None:
    """Writes the tests as heat.json, which `arlow report` draws."""
    write_json(path, {"shares": SHARES, "layers": [asdict(test) for test in tests]})


def read_heat_tests(path: Path) -> list[HeatTest]:
    """Reads heat.json. Raises DataError for a file that `write_heat_tests` did not write."""
    values = read_json(path)
    try:
        if tuple(values["shares"]) != SHARES:
            raise ValueError("shares")
        return [_heat_test(of) for of in values["layers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{visible(str(path))}: no tests of heat maps ({visible(repr(error))}); remove it") from None


def _heat_test(of: Mapping[str, Any]) -> HeatTest:
    falls = {order: [_interval(one) for one in of["falls"][order]] for order in ORDERS}
    if any(len(one) != len(SHARES) for one in falls.values()):
        raise ValueError("falls")
    layer, images, words = (int(of[name]) for name in ("layer", "images", "words"))
    return HeatTest(layer, images, words, falls, _interval(of["over_random"]), _interval(of["over_least"]))


def _interval(of: Mapping[str, Any]) -> Interval:
    return Interval(*(float(of[end]) for end in ("estimate", "low", "high")))


def format_heat_tests(tests: Sequence[HeatTest]) -> str:
    """Formats a block for each layer: the curves, then the differences from the most attended tokens to the others."""
    looked_at = f"{number_of(tests[0].images, 'image')}, {number_of(tests[0].words, 'word')}"
    blocks = [f"{looked_at}; fall of a word's log-probability, in nats"]
    for test in tests:
        head = f"{f'layer {test.layer}, hidden':24}" + "".join(f"{f'{share:.1%}':>9}" for share in SHARES)
        lines = [head]
        for order in ORDERS:
            label = "at random" if order == "random" else f"{order} attended"
            lines.append(f"  {label:22}" + "".join(f"{format_number(of.estimate, 3):>9}" for of in test.falls[order]))
        for label, of in (("random", test.over_random), ("least attended", test.over_least)):
            numbers = (format_number(value, 3, is_signed=True) for value in (of.estimate, of.low, of.high))
            lines.append("  most minus {}: {} [{}, {}]".format(label, *numbers) + (" *" if of.is_outside_zero else ""))
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, legend()])

"""Duration of an evaluation beside its peers.

    python -m experiments.benchmarks.evaluate

scoring     All caption metrics from the text of 25,000 captions with five references each, goal: 60 s of one core; and
            CIDEr-D of the same words beside loops over dictionaries, as pycocoevalcap has them, goal: twice as fast.
            Captions are made of the words of tests/samples, as frequent as there. Seconds are of the processor.
answers     Whole models: see `evaluate_answers`.
"""

import argparse
import json
import math
import random
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch

from arlow_vl.evaluation.metrics.captions import cider_scores, match_ngrams
from arlow_vl.evaluation.metrics.ptb import tokenize_caption
from arlow_vl.evaluation.metrics.registry import METRICS, Prediction, metric_sums
from experiments.benchmarks.evaluate_answers import answers
from experiments.benchmarks.measure import alternate, report, table

SAMPLES, REFERENCES, ROUNDS = 25_000, 5, 3
ANSWER_ROUNDS = 9
SCORING_SECONDS, CIDER_RATIO = 60, 2
TEXT = Path("tests/samples/text/train.jsonl")
CAPTION_METRICS = ("cider_d", "cider", "rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4")

Words = list[str]


def made_captions(samples: int, references: int) -> tuple[list[str], list[list[str]]]:
    """Captions of 8 to 13 words, and references that share about half of them, in another order."""
    texts = (json.loads(line)["text"] for line in TEXT.read_text(encoding="utf-8").splitlines())
    counts, dice = Counter(word for text in texts for word in text.split()), random.Random(0)
    words, frequencies = list(counts), list(counts.values())

    def caption(topic: list[str]) -> str:
        said = [*dice.sample(topic, k=len(topic) // 2), *dice.choices(words, frequencies, k=dice.randint(4, 8))]
        return " ".join(said).capitalize() + "."

    candidates, targets = [], []
    for _ in range(samples):
        topic = dice.choices(words, frequencies, k=10)
        candidates.append(caption(topic))
        targets.append([caption(topic) for _ in range(references)])
    return candidates, targets


def cut(captions: list[str]) -> list[Words]:
    return [tokenize_caption(caption) for caption in captions]


def cider_of_arrays(candidates: list[Words], targets: list[list[Words]]) -> list[float]:
    return cider_scores(match_ngrams(candidates, targets))[0].tolist()


def cider_of_dictionaries(candidates: list[Words], targets: list[list[Words]]) -> list[float]:
    """CIDEr-D from its definition (arXiv:1411.5726), a dictionary of weights for each order of each caption."""
    cooked = [[cook(words) for words in group] for group in targets]
    frequency: dict = defaultdict(float)
    for group in cooked:
        for ngram in {ngram for counts in group for ngram in counts}:
            frequency[ngram] += 1
    log_images = math.log(len(targets))
    scores = []
    for words, group in zip(candidates, cooked, strict=True):
        candidate = weigh(cook(words), frequency, log_images)
        total = sum(similarity(candidate, weigh(counts, frequency, log_images)) for counts in group)
        scores.append(10 * total / len(group))
    return scores


def cook(words: Words) -> dict[tuple[str, ...], int]:
    counts: dict = defaultdict(int)
    for order in range(1, 5):
        for start in range(len(words) - order + 1):
            counts[tuple(words[start : start + order])] += 1
    return counts


def weigh(counts: dict, frequency: dict, log_images: float) -> tuple[list[dict], list[float], int]:
    weights: list[dict] = [defaultdict(float) for _ in range(4)]
    norms, bigrams = [0.0] * 4, 0
    for ngram, count in counts.items():
        order = len(ngram) - 1
        weights[order][ngram] = count * (log_images - math.log(max(1.0, frequency.get(ngram, 0.0))))
        norms[order] += weights[order][ngram] ** 2
        bigrams += count if order == 1 else 0
    return weights, [math.sqrt(norm) for norm in norms], bigrams


def similarity(one: tuple, other: tuple) -> float:
    total = 0.0
    for order in range(4):
        theirs, norms = other[0][order], one[1][order] * other[1][order]
        shared = sum(min(weight, theirs.get(n, 0.0)) * theirs.get(n, 0.0) for n, weight in one[0][order].items())
        total += shared / norms if norms else 0.0
    return total / 4 * math.exp(-((one[2] - other[2]) ** 2) / 72)


def scoring(samples: int, rounds: int) -> tuple[str, dict[str, object]]:
    """The section's text and figures."""
    candidates, targets = made_captions(samples, REFERENCES)
    predictions = [
        Prediction(id=str(i), image=str(i), text=text, references=group)
        for i, (text, group) in enumerate(zip(candidates, targets, strict=True))
    ]
    start = time.process_time()
    metrics = {name: METRICS[name] for name in CAPTION_METRICS}
    sums = metric_sums(metrics, predictions)
    values = {name: float(metric.value(sums[name].sum(axis=0))) for name, metric in metrics.items()}
    seconds = time.process_time() - start

    words = cut(candidates), [cut(group) for group in targets]
    cases = {"arrays": lambda: cider_of_arrays(*words), "dictionaries": lambda: cider_of_dictionaries(*words)}
    timings = alternate(cases, rounds=rounds, warmup=0, clock=time.process_time)
    ratio = timings.speed_over("arrays", "dictionaries")
    rows = [
        ["all caption metrics", f"{seconds:.1f} s", "", f"at most {SCORING_SECONDS} s"],
        [
            "CIDEr-D of words",
            f"{timings.median('arrays'):.2f} s",
            "{median} ({low} to {high}) times as fast as dictionaries".format_map(ratio),
            f"{CIDER_RATIO} times",
        ],
    ]
    title = f"Scoring, {samples:,} captions x {REFERENCES} references, seconds of one processor core"
    text = f"{title}\n\n{table(['what', 'seconds', 'ratio', 'goal'], rows)}"
    figures = {"samples": samples, "references": REFERENCES, "rounds": rounds, "values": values}
    return text, {**figures, "all_seconds": seconds, "cider_seconds": timings.seconds, "cider_over_dictionaries": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("scoring", "answers"), help="this section alone")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"captions to score (default: {SAMPLES:,})")
    parser.add_argument("--rounds", type=int, help=f"rounds (default: {ROUNDS} of CIDEr-D, {ANSWER_ROUNDS} of answers)")
    parser.add_argument("--toy", action="store_true", help="answers of a test's size: figures say nothing")
    args = parser.parse_args()
    if args.only != "answers":
        text, figures = scoring(args.samples, args.rounds or ROUNDS)
        is_whole = args.samples == SAMPLES and args.rounds is None
        report("evaluate_scoring" if is_whole else None, text, figures)
    if args.only != "scoring":
        torch.set_num_threads(1 if args.toy else 2)
        text, figures = answers(args.rounds or ANSWER_ROUNDS, args.toy)
        report(None if args.toy or args.rounds else "evaluate_answers", text, figures)


if __name__ == "__main__":
    main()

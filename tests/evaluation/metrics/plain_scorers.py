"""Caption metrics as their papers define them, word by word: what the fast ones must equal."""

import math
from collections import Counter


def ngrams(words, order):
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def cider(candidates, targets, *, is_d):
    """CIDEr-D or CIDEr of each candidate, from equations 1 to 4 of arXiv:1411.5726."""
    images = len(targets)
    frequency = Counter(
        gram for group in targets for gram in {g for words in group for n in (1, 2, 3, 4) for g in ngrams(words, n)}
    )

    def vector(words, order):
        return {g: c * math.log(images / max(1, frequency[g])) for g, c in ngrams(words, order).items()}

    def cosine(words, target, order):
        one, other = vector(words, order), vector(target, order)
        norms = math.hypot(*one.values()) * math.hypot(*other.values())
        shared = sum((min(w, other[g]) if is_d else w) * other[g] for g, w in one.items() if g in other)
        return shared / norms if norms else 0.0

    scores = []
    for words, group in zip(candidates, targets, strict=True):
        total = 0.0
        for target in group:
            bigrams = max(0, len(words) - 1) - max(0, len(target) - 1)
            penalty = math.exp(-(bigrams**2) / 72) if is_d else 1.0
            total += penalty * sum(cosine(words, target, order) for order in (1, 2, 3, 4)) / 4
        scores.append(10 * total / len(group))
    return scores


def bleu_row(words, group):
    """Clipped matches, n-grams, length and the nearest length of a reference (Papineni et al., 2002)."""
    matching = []
    for order in (1, 2, 3, 4):
        most = {g: max(ngrams(target, order)[g] for target in group) for g in ngrams(words, order)}
        matching.append(sum(min(count, most[g]) for g, count in ngrams(words, order).items()))
    available = [sum(ngrams(words, order).values()) for order in (1, 2, 3, 4)]
    closest = min(map(len, group), key=lambda length: (abs(length - len(words)), length))
    return [*matching, *available, len(words), closest]


def common_subsequence(one, other):
    """The textbook's table."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]

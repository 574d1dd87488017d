"""Two multiple-choice tasks out of WordNet: a text model answers the same before and after it learnt to see.

    python -m experiments.smollm2.words runs/smollm2/text runs/smollm2/scenes/hf --out runs/smollm2/words.json

`kinds` asks for what a thing is ("A robin is a kind of" ...), `meanings` for the word of a definition. Each has four
answers, of which three are those of other questions; the likeliest a byte is the model's. WordNet 3.0 comes with
`arlow data fetch`; its nouns of one word and one sense are asked about.
"""

import argparse
import hashlib
import json
import random
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.fetch.archives import read_members
from arlow_vl.data.fetch.packages import WORDNET
from arlow_vl.evaluation.likelihood import Candidate, likelihoods
from arlow_vl.models.open_model import open_model
from vision.whole_files import write_whole

ANSWERS = 4
HYPERNYM = "@"


class Noun(NamedTuple):
    word: str
    above: str
    """Position of the synset that it is a kind of."""
    meaning: str


class Question(NamedTuple):
    prompt: str
    answers: tuple[str, ...]
    right: int


def nouns_of(data: str) -> dict[str, Noun]:
    """By the place of their synset in WordNet's data.noun; those of one written word."""
    found = {}
    for line in data.splitlines():
        head, bar, gloss = line.partition(" | ")
        fields = head.split()
        if line.startswith(" ") or not bar or len(fields) < 8:
            continue
        word, words = fields[4], int(fields[3], 16)
        pointers = fields[5 + 2 * words :]
        above = next((pointers[i + 1] for i, field in enumerate(pointers) if field == HYPERNYM), "")
        if re.fullmatch("[a-z]{3,}", word) and above:
            found[fields[0]] = Noun(word, above, re.split("[;(]", gloss)[0].strip())
    return found


def questions(nouns: dict[str, Noun], count: int, seed: int = 0) -> dict[str, list[Question]]:
    """So many of each task, the same for the same seed."""
    dice = random.Random(seed)
    senses: dict[str, int] = {}
    for noun in nouns.values():
        senses[noun.word] = senses.get(noun.word, 0) + 1
    known = [
        one for one in nouns.values() if senses[one.word] == 1 and one.above in nouns and 20 < len(one.meaning) < 80
    ]
    asked = dice.sample(sorted(known), count)
    kinds, meanings = [], []
    for noun in asked:
        above = nouns[noun.above].word
        others = sorted({nouns[one.above].word for one in asked} - {above})
        kinds.append(_question(dice, f"A {noun.word} is a kind of", above, others))
        words = sorted({one.word for one in asked if one.above != noun.above})
        meanings.append(_question(dice, f'Definition: "{noun.meaning}." The word that is defined is', noun.word, words))
    return {"kinds": kinds, "meanings": meanings}


def _question(dice: random.Random, prompt: str, right: str, others: Sequence[str]) -> Question:
    answers = [*dice.sample(others, ANSWERS - 1), right]
    dice.shuffle(answers)
    return Question(prompt, tuple(f" {answer}" for answer in answers), answers.index(right))


def answer(model: Any, tokenizer: Any, asked: Sequence[Question]) -> dict[str, Any]:
    """Accuracy, and the SHA-256 of all log-probabilities: equal only where each is equal to the last bit."""
    candidates = []
    for question in asked:
        prompt = [tokenizer.bos_token_id, *tokenizer(question.prompt, add_special_tokens=False)["input_ids"]]
        for one in question.answers:
            candidates.append(Candidate(prompt, (), tokenizer(one, add_special_tokens=False)["input_ids"]))
    nats = [one.nats for one in likelihoods(model, tokenizer.pad_token_id, candidates, lambda _: {}, batch_size=16)]
    right = 0
    for number, question in enumerate(asked):
        of_question = nats[number * ANSWERS : (number + 1) * ANSWERS]
        a_byte = [one / len(text) for one, text in zip(of_question, question.answers, strict=True)]
        right += a_byte.index(max(a_byte)) == question.right
    digest = hashlib.sha256(struct.pack(f"<{len(nats)}d", *nats)).hexdigest()
    return {"questions": len(asked), "right": right, "sha256_of_log_probabilities": digest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model folders, the first before the others")
    parser.add_argument("--wordnet", type=Path, default=Path("data/packages"), help="folder of the package")
    parser.add_argument("--count", type=int, default=100, help="questions of each task")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    [(_, data)] = read_members(args.wordnet / WORDNET.file, "usr/share/wordnet/data.noun".__eq__)
    tasks = questions(nouns_of(data.decode("latin-1")), args.count)
    results = []
    for folder in args.models:
        opened = open_model(folder, device="cpu", precision="float32")
        results.append({name: answer(opened.model, opened.tokenizer, asked) for name, asked in tasks.items()})
        print(folder, json.dumps(results[-1]))
    equal = all(result == results[0] for result in results)
    print("equal to the last bit" if equal else "NOT equal")
    write_whole(args.out, json.dumps({"before": results[0], "equal": equal}, indent=1) + "\n")


if __name__ == "__main__":
    main()

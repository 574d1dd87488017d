"""Encoding speed of the tokenizers, beside Qwen2's of transformers with the same vocabulary and merges.

    python -m experiments.benchmarks.tokenizer

The text is what every machine with Python has: the documentation of the language (`pydoc_data/topics.py`) and the
modules of the standard library. One thread; the cases take turns. The ids are compared before anything is timed.
"""

import argparse
import os

os.environ["RAYON_NUM_THREADS"] = "1"  # before `tokenizers` starts its threads

import pydoc_data.topics
import string
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from arlow_vl.models.arlow.tokenization_arlow import ArlowTokenizer
from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer
from experiments.benchmarks.measure import alternate, report, table

VOCABULARY, ROUNDS, DOCUMENT = 8192, 11, 4096
# Words of the same lengths and frequencies, out of two-byte letters.
CYRILLIC = str.maketrans(string.ascii_letters, "".join(map(chr, [*range(0x430, 0x44A), *range(0x410, 0x42A)])))

Encode = Callable[[], object]


def texts() -> dict[str, list[str]]:
    prose = "\n\n".join(pydoc_data.topics.topics.values())
    modules = [path.read_text(encoding="utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    code = "\n".join(modules)[: len(prose)]
    kinds = {"prose": prose, "code": code, "prose in Cyrillic letters": prose.translate(CYRILLIC)}
    return {
        kind: [text[start : start + DOCUMENT] for start in range(0, len(text), DOCUMENT)]
        for kind, text in kinds.items()
    }


def build(documents: dict[str, list[str]], folder: Path) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers, by their class names, all with one vocabulary."""
    arlow = train_tokenizer((document for kind in documents.values() for document in kind), VOCABULARY)
    arlow.save_pretrained(folder)
    return {
        "ArlowTokenizerFast": arlow,
        "Qwen2TokenizerFast": Qwen2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")),
        "ArlowTokenizer": ArlowTokenizer.from_pretrained(folder),
    }


def encode_each(tokenizer, documents: list[str]) -> list[list[int]]:
    return [tokenizer(document).input_ids for document in documents]


def encode_batch(tokenizer, documents: list[str]) -> list[list[int]]:
    return tokenizer(documents).input_ids


def encode_one(tokenizer, documents: list[str]) -> list[list[int]]:
    return [tokenizer("".join(documents)).input_ids]


CALLS = {"document by document": encode_each, "a batch": encode_batch, "one long text": encode_one}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    documents = texts()
    with TemporaryDirectory() as folder:
        tokenizers = build(documents, Path(folder))
    rows, figures = [], []
    for kind, parts in documents.items():
        size = len("".join(parts).encode())
        for call, encode in CALLS.items():
            ids = {name: encode(tokenizer, parts) for name, tokenizer in tokenizers.items()}
            plain = [row[1:] for row in ids["ArlowTokenizerFast"]]  # without bos, which Qwen2's does not put
            assert ids["ArlowTokenizer"] == ids["ArlowTokenizerFast"] and plain == ids["Qwen2TokenizerFast"]
            cases: dict[str, Encode] = {name: partial(encode, each, parts) for name, each in tokenizers.items()}
            timings = alternate(cases, rounds=ROUNDS, warmup=1)
            ratio = timings.speed_over("ArlowTokenizerFast", "Qwen2TokenizerFast")
            speeds = {name: round(size / timings.median(name) / 1e6, 2) for name in tokenizers}
            rows.append([kind, call, *speeds.values(), "{median} ({low} to {high})".format_map(ratio)])
            figures.append(
                {"text": kind, "bytes": size, "call": call, "megabytes_per_second": speeds, "fast_over_qwen2": ratio}
            )
    header = ["text", "call", *(f"{name}, MB/s" for name in tokenizers), "fast over Qwen2's"]
    note = f"Medians of {ROUNDS} rounds on one thread, {VOCABULARY:,} entries; ratios with their middle half."
    settings = {"vocabulary": VOCABULARY, "rounds": ROUNDS, "tokenizer_threads": 1}
    report("tokenizer", f"{note}\n\n{table(header, rows)}", {**settings, "cases": figures})


if __name__ == "__main__":
    main()

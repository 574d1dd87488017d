"""The largest error of every way to compute attention, over random documents with images, against float64.

Run it with `python -m experiments.benchmarks.attention_parity`; some five minutes on one core. On a machine with CUDA
the varlen kernel has its rows too.
"""

import argparse
import subprocess
import sys
from collections import defaultdict
from functools import partial
from random import Random

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from experiments.benchmarks.attention_layouts import FORMS, Document, arranged, random_documents
from experiments.benchmarks.attention_reference import (
    GROUPS,
    HIDDEN,
    Outcome,
    decoded,
    measured,
    reference,
    small_decoder,
)
from experiments.benchmarks.measure import report, table

HEAD_DIMS, KEY_SHARING = (64, 96, 128, 192, 256), (1, 3, 4, 8)
COMBINATIONS = [(head_dim, sharing) for head_dim in HEAD_DIMS for sharing in KEY_SHARING]
PRECISE, HALF = (torch.float64, torch.float32), (torch.float16, torch.bfloat16)
TRANSFORMERS_SDPA = "transformers_sdpa"  # a name that Arlow does not take for its gate
AttentionInterface.register(TRANSFORMERS_SDPA, sdpa_attention_forward)
AttentionMaskInterface.register(TRANSFORMERS_SDPA, sdpa_mask)
IMPLEMENTATIONS = {"gate: SDPA": "arlow", "transformers' sdpa": TRANSFORMERS_SDPA, "eager": "eager"}

Errors = dict[tuple[str, ...], dict[str, float]]


def drawn(number: int, dtype: torch.dtype):
    """The layout of this number and its model: every combination of head size and heads a key comes in turn."""
    dice = Random(number)
    documents = random_documents(dice, HIDDEN, shortest_image=0 if number % 2 else 1)
    head_dim, sharing = COMBINATIONS[number % len(COMBINATIONS)]
    return documents, small_decoder(head_dim, sharing, seed=number, dtype=dtype), dice


def outcomes(number: int, documents: list[Document], model, dice: Random) -> dict[str, Outcome]:
    """Returns the outcome of each path; the gate gets every layout, its peers take turns with them."""
    results = {}
    for path, implementation in IMPLEMENTATIONS.items():
        model.set_attn_implementation(implementation)
        forms = FORMS if implementation == "arlow" else [FORMS[number % len(FORMS)], FORMS[(number + 2) % len(FORMS)]]
        results |= {f"{path}, {form}": measured(model, documents, partial(arranged, form=form)) for form in forms}
        if number % 2 == 0:
            results[f"{path}, decoded from a cache"] = decoded(model, documents, dice)
    if torch.cuda.is_available() and model.dtype in HALF:
        model.set_attn_implementation("arlow")
        model.cuda()
        results |= {f"gate: varlen, {form}": measured(model, documents, partial(arranged, form=form)) for form in FORMS}
    return results


def largest_errors(layouts: int, dtypes: tuple[torch.dtype, ...]) -> tuple[Errors, Errors]:
    """By path and dtype; by head size and dtype, of the gate alone."""
    paths: Errors = defaultdict(dict)
    heads: Errors = defaultdict(dict)
    for number in range(layouts):
        for dtype in dtypes:
            documents, model, dice = drawn(number, dtype)
            expected = reference(model, documents)
            name = str(dtype).removeprefix("torch.")
            for path, outcome in outcomes(number, documents, model, dice).items():
                errors = outcome.errors(expected)
                rows = [paths[path, name]]
                if path.startswith("gate"):
                    rows.append(heads[str(model.config.head_dim), name])
                for row in rows:
                    row |= {group: max(error, row.get(group, 0.0)) for group, error in errors.items()}
    return dict(paths), dict(heads)


def flex_errors(layouts: int) -> None:
    """Prints a line for each layout and form: outputs only, since flex has no backward on a CPU."""
    for number in range(layouts):
        documents, model, _ = drawn(3 * number, torch.float32)
        model.set_attn_implementation("flex_attention")
        with torch.no_grad():
            batches = {form: arranged(documents, form) for form in ("right padded", "packed")}
            logits = {
                form: {n: model(**inputs(batch), use_cache=False).logits[row, c : c + len(documents[n].tokens)]
                       for n, (row, c) in batch.places.items()}
                for form, (batch,) in batches.items()
            }  # fmt: skip
        expected = reference(model, documents)
        for form, by_document in logits.items():
            outcome = Outcome({"logits": [by_document[n] for n in sorted(by_document)]})
            print(f"flex, {form}:", outcome.errors(expected)["logits"], flush=True)


def inputs(batch) -> dict[str, torch.Tensor]:
    return {name: x for name, x in batch.inputs.items() if name != "labels"}


def flex_in_own_process(layouts: int) -> Errors:
    command = [sys.executable, "-m", "experiments.benchmarks.attention_parity", "--flex", str(layouts)]
    errors: Errors = defaultdict(dict)
    for line in subprocess.check_output(command, text=True).splitlines():
        if line.startswith("flex"):
            path, error = line.rsplit(":", 1)
            row = errors[path, "float32"]
            row["logits"] = max(float(error), row.get("logits", 0.0))
    return dict(errors)


def lines(errors: Errors) -> list[list[object]]:
    return [
        [*key, *(f"{row[group]:.1e}" if group in row else "" for group in GROUPS)]
        for key, row in sorted(errors.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--layouts", type=int, default=200, help="in float32 and float64; a third of it in half precision"
    )
    parser.add_argument("--flex", type=int, help="only print flex_attention's errors on that many layouts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.flex is not None:
        flex_errors(arguments.flex)
        return

    paths, heads = largest_errors(arguments.layouts, PRECISE)
    for part, half in zip((paths, heads), largest_errors(arguments.layouts // 3, HALF), strict=True):
        part |= half
    flex_layouts = max(1, arguments.layouts // 20)
    paths |= flex_in_own_process(flex_layouts)
    header = ["dtype", *GROUPS]
    text = (
        "# Attention against its definition\n\n"
        f"{arguments.layouts} layouts ({arguments.layouts // 3} in half precision, {flex_layouts} with flex_attention) "
        "of one to four documents with 0 to 8 images of 0 to 5 tokens, runs of 0 to 5 words; two layers with a "
        "cross-attention block each; head sizes 64 to 256, 1 to 8 query heads a key head. Each figure is the largest "
        "difference from a plain float64 computation with the same weights, over the largest entry of that group in "
        "that layout. Norms, gates, rotary angles and the loss are float32 in a float64 model too.\n\n"
        f"{table(['path', *header], lines(paths))}\n\nThe gate's paths by head size:\n\n"
        f"{table(['head size', *header], lines(heads))}\n\n"
        + ("" if torch.cuda.is_available() else "No CUDA device here: the varlen kernel was not run.\n")
    )
    figures = {name: {", ".join(k): v for k, v in part.items()} for name, part in (("paths", paths), ("heads", heads))}
    report("attention_parity", text.rstrip(), {"layouts": arguments.layouts, **figures})


if __name__ == "__main__":
    main()

"""Arlow's decoder against Llama's and Qwen3's of transformers, same shapes, in turn.

Run it with `python -m experiments.benchmarks.decoder`. About 25 million parameters, vocabulary 8192, float32, two
threads; some ten minutes on a quiet machine.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from arlow_vl import ArlowConfig, ArlowForCausalLM
from arlow_vl.models.arlow.linear import product
from experiments.benchmarks import loss_memory
from experiments.benchmarks.measure import Timings, alternate, report, table

SHAPE = dict(  # noqa: C408 (keywords of three configs)
    vocab_size=8192,
    hidden_size=384,
    intermediate_size=2048,
    num_hidden_layers=8,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=3,
)
PEERS = ("Llama", "Qwen3")
BATCH, WIDTH = 4, 256
PROMPT, NEW_TOKENS = 128, 128
GOALS = {
    "train": 1.10,
    "train, blocks compiled": 1.05,
    "prefill": 1.10,
    "decode, batch 1": 1.5,
    "decode, batch 8": 1.15,
}


def build(compiled: bool = False) -> dict[str, PreTrainedModel]:
    models = {
        "Arlow": ArlowForCausalLM(ArlowConfig(**SHAPE, use_cross_attention=False)),
        "Llama": LlamaForCausalLM(LlamaConfig(**SHAPE)),
        "Qwen3": Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
    }
    if compiled:
        for model in models.values():
            for layer in model.model.layers:
                layer.compile()
    return models


def train_steps(models: dict[str, PreTrainedModel]) -> dict[str, Callable[[], None]]:
    ids = torch.randint(10, SHAPE["vocab_size"], (BATCH, WIDTH))

    def step(model, optimizer, **options) -> None:
        model.train()
        model(input_ids=ids, labels=ids, use_cache=False, **options).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for name, model in models.items()}
    steps = {name: partial(step, model, optimizers[name]) for name, model in models.items()}
    steps["Arlow, skip_logits"] = partial(step, models["Arlow"], optimizers["Arlow"], skip_logits=True)
    return steps


def train_flops() -> float:
    """Of one step: six a weight of a product and token, and causal attention's scores and sums."""
    width, hidden, layers = SHAPE["intermediate_size"], SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
    keys = SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * width) + hidden * SHAPE["vocab_size"]
    return BATCH * WIDTH * (6 * weights + 6 * layers * hidden * WIDTH)


def generations(models: dict[str, PreTrainedModel], batch: int) -> list[dict[str, Callable[[], None]]]:
    """Prefill of a prompt, and greedy decoding behind it (prefill included), by each model."""
    ids = torch.randint(10, SHAPE["vocab_size"], (batch, PROMPT))
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def prefill(model) -> None:
        model.eval()(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)

    def decode(model) -> None:
        length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
        model.eval().generate(input_ids=ids, attention_mask=mask, do_sample=False, **length)

    return [{name: partial(run, model) for name, model in models.items()} for run in (prefill, decode)]


def gemm_rates(rounds: int) -> dict[str, float]:
    """GFLOP/s of a float32 product of 1024 x 1024 matrices by torch.mm, and by the kernel that Arlow's layers take."""
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    cases = {"torch.mm": lambda: torch.mm(left, right.t()), "Arlow": lambda: product(left, right)}
    timings = alternate(cases, rounds=4 * rounds)
    return {name: round(2 * 1024**3 / min(timings.seconds[name]) / 1e9, 1) for name in cases}


def row(measure: str, timings: Timings, units: int, unit: str) -> tuple[dict, list[list[str]]]:
    """The figures of one measure, and its lines of the table: every form of Arlow over the faster peer."""
    faster = min(PEERS, key=timings.median)
    speeds = {case: round(units / timings.median(case)) for case in timings.seconds}
    ours = {case: timings.speed_over(case, faster) for case in timings.seconds if case not in PEERS}
    peers = [f"{speeds[peer]:,}" for peer in PEERS]
    lines = []
    for case, ratio in ours.items():
        label = measure + case.removeprefix("Arlow")
        spread = f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"
        lines.append([label, unit, f"{speeds[case]:,}", *peers, spread, f"{GOALS[measure]:.2f}"])
    return {"unit": unit, "speed": speeds, "faster_peer": faster, "over_faster_peer": ours}, lines


def measure_speed(rounds: int, compiled: bool) -> tuple[dict, list]:
    models = build()
    plan = [("train", train_steps(models), BATCH * WIDTH, "tokens/s")]
    if compiled:
        plan.append(("train, blocks compiled", train_steps(build(compiled=True)), BATCH * WIDTH, "tokens/s"))
    prefill, decode = generations(models, 8)
    plan += [
        ("prefill", prefill, 8 * PROMPT, "prompt tokens/s"),
        ("decode, batch 1", generations(models, 1)[1], NEW_TOKENS, "tokens/s"),
        ("decode, batch 8", decode, 8 * NEW_TOKENS, "tokens/s"),
    ]
    figures, lines = {}, []
    for name, cases, units, unit in plan:
        figures[name], rows = row(name, alternate(cases, rounds), units, unit)
        lines += rows
        print(*rows, sep="\n", flush=True)
    return figures, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled rows out")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)

    before = gemm_rates(arguments.rounds)
    figures, lines = measure_speed(arguments.rounds, not arguments.no_compile)
    after = gemm_rates(arguments.rounds)
    rates = {kernel: max(before[kernel], after[kernel]) for kernel in before}  # the machine's, not a busy moment's
    losses = loss_memory.in_own_processes()

    shares = {}
    for name in set(figures) & {"train", "train, blocks compiled"}:
        for case, speed in figures[name]["speed"].items():
            rate = train_flops() * speed / (BATCH * WIDTH) / 1e9
            shares[f"{name}: {case}"] = {kernel: round(rate / best, 2) for kernel, best in rates.items()}
    speed_table = table(["measure", "unit", "Arlow", *PEERS, "Arlow over the faster peer", "goal"], lines)
    share_table = table(
        ["training step", "of torch.mm's rate", "of the rate of Arlow's kernel"],
        [[name, share["torch.mm"], share["Arlow"]] for name, share in sorted(shares.items())],
    )
    plain = losses["materialised"]
    loss_table = table(
        [f"loss at vocabulary {loss_memory.VOCAB:,}", "peak MiB over the inputs", "x memory", "x speed", "loss"],
        [
            [way, x["peak_mib"], f"{x['peak_mib'] / plain['peak_mib']:.2f}",
             f"{plain['milliseconds'] / x['milliseconds']:.2f}", x["loss"]]
            for way, x in losses.items()
        ],
    )  # fmt: skip
    text = (
        "# Decoder\n\nMedians of alternating rounds; in brackets the middle half of the rounds. "
        f"1024 x 1024 products: torch.mm {rates['torch.mm']} GFLOP/s, Arlow's kernel {rates['Arlow']} GFLOP/s.\n\n"
        f"{speed_table}\n\n{share_table}\n\n{loss_table}"
    )
    report("decoder", text, {"gemm_gflops": rates, "speed": figures, "share_of_gemm": shares, "loss": losses})


if __name__ == "__main__":
    main()

"""Arlow's decoder against Llama's and Qwen3's of transformers, and litgpt's, same shapes, in turn.

Run it with `python -m experiments.benchmarks.decoder`. About 25 million parameters, vocabulary 8192, float32, two
threads; some eight minutes on a quiet machine. litgpt pins other versions of what is used here, so it gets a folder of
its own, `pip install --no-deps --target build/litgpt litgpt==0.5.13`; without the folder it is left out.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from arlow_vl import ArlowConfig, ArlowForCausalLM
from arlow_vl.cli.doctor import advise_precision, cpu_field
from arlow_vl.models.arlow.linear import product
from experiments.benchmarks import loss_memory
from experiments.benchmarks.measure import alternate, machine_line, report, speed_row, table

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
TOY_SHAPE = SHAPE | {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16,
}  # fmt: skip
LITGPT = Path("build/litgpt")
BATCH, WIDTH = 4, 256
PROMPT, NEW_TOKENS = 128, 128
GOAL_OF_TRAINING = 1.10
MIXED = "train, bf16-mixed"
GOALS = {
    "train": GOAL_OF_TRAINING,
    MIXED: GOAL_OF_TRAINING,
    "train, blocks compiled": 1.05,
    "prefill": 1.10,
    "decode, batch 1": 1.3,
    "decode, batch 4": 1.15,
    "decode, batch 8": 1.15,
}


def build(shape: dict, compiled: bool = False) -> dict[str, nn.Module]:
    models = {
        "Arlow": ArlowForCausalLM(ArlowConfig(**shape, use_cross_attention=False)),
        "Llama": LlamaForCausalLM(LlamaConfig(**shape)),
        "Qwen3": Qwen3ForCausalLM(Qwen3Config(**shape)),
    }
    blocks = {name: model.model.layers for name, model in models.items()}
    if LITGPT.is_dir():
        litgpt = litgpt_model(shape)
        models["litgpt"], blocks["litgpt"] = litgpt, litgpt.transformer.h
    for block in (block for of_model in blocks.values() for block in of_model):
        if compiled:
            block.compile()
    return models


def litgpt_model(shape: dict) -> Any:
    """The same shape in litgpt's words."""
    if str(LITGPT) not in sys.path:
        sys.path.append(str(LITGPT))
    from litgpt.config import Config  # pyrefly: ignore[missing-import]
    from litgpt.model import GPT  # pyrefly: ignore[missing-import]

    model = GPT(
        Config(
            block_size=shape["max_position_embeddings"],
            padded_vocab_size=shape["vocab_size"],
            n_layer=shape["num_hidden_layers"],
            n_head=shape["num_attention_heads"],
            n_query_groups=shape["num_key_value_heads"],
            n_embd=shape["hidden_size"],
            head_size=shape["head_dim"],
            intermediate_size=shape["intermediate_size"],
            rotary_percentage=1.0,
            bias=False,
            parallel_residual=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
        )
    )
    model.lm_head.weight = model.transformer.wte.weight
    return model


def adamw_step(model: nn.Module, inputs: dict) -> Callable[..., None]:
    """A training step of a transformers model on these inputs; options of its forward may be added to each."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step(**options) -> None:
        model.train()
        model(**inputs, **options).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class WithLoss(nn.Module):
    """litgpt's model, called as transformers' are."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor, use_cache: bool) -> CausalLMOutputWithPast:
        logits = self.model(input_ids)
        return CausalLMOutputWithPast(loss=F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))


def train_steps(models: dict[str, nn.Module], vocab_size: int) -> dict[str, Callable[[], None]]:
    ids = torch.randint(10, vocab_size, (BATCH, WIDTH))
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
    steps = {name: adamw_step(WithLoss(m) if name == "litgpt" else m, inputs) for name, m in models.items()}
    return steps | {"Arlow, skip_logits": partial(steps["Arlow"], skip_logits=True)}


def in_mixed_precision(step: Callable[..., None]) -> Callable[[], None]:
    """As Lightning's bf16-mixed has it; the backward runs in the dtypes of the forward in any case."""

    def mixed() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step()

    return mixed


def train_flops() -> float:
    """Returns the FLOPs of one step: six per weight of a product and token, and causal attention's scores and sums."""
    width, hidden, layers = SHAPE["intermediate_size"], SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
    keys = SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * width) + hidden * SHAPE["vocab_size"]
    return BATCH * WIDTH * (6 * weights + 6 * layers * hidden * WIDTH)


def generations(models: dict[str, nn.Module], batch: int, vocab_size: int, tokens: int) -> list[dict[str, Any]]:
    """Prefill of a prompt, and greedy decoding of `tokens` behind it (prefill included), by each model."""
    ids = torch.randint(10, vocab_size, (batch, PROMPT))
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def prefill(model) -> None:
        model.eval()(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)

    def decode(model) -> None:
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        model.eval().generate(input_ids=ids, attention_mask=mask, do_sample=False, **length)

    cases = [{name: partial(run, m) for name, m in models.items() if name != "litgpt"} for run in (prefill, decode)]
    if "litgpt" in models:
        cases[0]["litgpt"] = partial(litgpt_decode, models["litgpt"], ids, 1)
        cases[1]["litgpt"] = partial(litgpt_decode, models["litgpt"], ids, tokens)
    return cases


@torch.inference_mode()
def litgpt_decode(model: Any, ids: Tensor, tokens: int) -> None:
    """Greedy decoding of a batch over litgpt's cache, as its `generate` does for one row; one token: the prefill."""
    model.eval()
    model.max_seq_length = ids.shape[1] + tokens
    model.set_kv_cache(batch_size=len(ids))
    positions = torch.arange(ids.shape[1])
    for _ in range(tokens):
        ids = model(ids, positions)[:, -1:].argmax(-1)
        positions = positions[-1:] + 1
    model.clear_kv_cache()


def gemm_rates(rounds: int) -> dict[str, float]:
    """GFLOP/s of a float32 product of 1024 x 1024 matrices by torch.mm, and by the kernel that Arlow's layers take."""
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    cases = {"torch.mm": lambda: torch.mm(left, right.t()), "Arlow": lambda: product(left, right)}
    timings = alternate(cases, rounds=4 * rounds)
    return {name: round(2 * 1024**3 / min(timings.seconds[name]) / 1e9, 1) for name in cases}


def measure_speed(shape: dict, rounds: int, compiled: bool, tokens: int) -> tuple[dict, list, list[str]]:
    """Figures, lines of the table, and the peers that they are of."""
    models, vocab_size = build(shape), shape["vocab_size"]
    peers = [name for name in models if name != "Arlow"]
    steps = train_steps(models, vocab_size)
    plan = [("train", steps, BATCH * WIDTH, "tokens/s")]
    if advise_precision(cpu_field("flags").split())[0] == "bf16-mixed":  # elsewhere it takes ten times as long
        plan.append(
            (MIXED, {name: in_mixed_precision(step) for name, step in steps.items()}, BATCH * WIDTH, "tokens/s")
        )
    if compiled:
        steps = train_steps(build(shape, compiled=True), vocab_size)
        plan.append(("train, blocks compiled", steps, BATCH * WIDTH, "tokens/s"))
    for batch in (1, 4, 8):
        prefill, decode = generations(models, batch, vocab_size, tokens)
        if batch == 8:
            plan.append(("prefill", prefill, batch * PROMPT, "prompt tokens/s"))
        plan.append((f"decode, batch {batch}", decode, batch * tokens, "tokens/s"))
    figures, lines = {}, []
    for name, cases, units, unit in plan:
        figures[name], rows = speed_row(name, alternate(cases, rounds), units, unit, peers, GOALS[name])
        lines += rows
        print(*map(" | ".join, rows), sep="\n", flush=True)
    return figures, lines, peers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled rows out")
    parser.add_argument("--toy", action="store_true", help="sizes of a test: figures say nothing and are not kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.toy else 2)
    torch.manual_seed(0)
    if arguments.toy:
        measure_speed(TOY_SHAPE, arguments.rounds, not arguments.no_compile, tokens=4)
        return

    before = gemm_rates(arguments.rounds)
    figures, lines, peers = measure_speed(SHAPE, arguments.rounds, not arguments.no_compile, NEW_TOKENS)
    after = gemm_rates(arguments.rounds)
    rates = {kernel: max(before[kernel], after[kernel]) for kernel in before}  # the machine's, not a busy moment's
    losses = loss_memory.in_own_processes()

    shares = {}
    for name in set(figures) & {"train", "train, blocks compiled"}:
        for case, speed in figures[name]["speed"].items():
            rate = train_flops() * speed / (BATCH * WIDTH) / 1e9
            shares[f"{name}: {case}"] = {kernel: round(rate / best, 2) for kernel, best in rates.items()}
    speed_table = table(["measure", "unit", "Arlow", *peers, "Arlow over the fastest peer", "goal"], lines)
    share_table = table(
        ["training step", "of torch.mm's rate", "of the rate of Arlow's kernel"],
        [[name, share["torch.mm"], share["Arlow"]] for name, share in sorted(shares.items())],
    )
    plain = losses["materialised"]
    loss_table = table(
        [f"loss at vocabulary {loss_memory.VOCAB:,}", "peak MiB over the inputs", "x memory", "x speed",
         "x speed under no_grad", "loss"],
        [
            [way, x["peak_mib"], f"{x['peak_mib'] / plain['peak_mib']:.2f}",
             *(f"{plain[key] / x[key]:.2f}" for key in ("milliseconds", "milliseconds_without_gradients")), x["loss"]]
            for way, x in losses.items()
        ],
    )  # fmt: skip
    text = (
        f"# Decoder\n\n{machine_line()} "
        f"1024 x 1024 products: torch.mm {rates['torch.mm']} GFLOP/s, Arlow's kernel {rates['Arlow']} GFLOP/s.\n\n"
        f"{speed_table}\n\n{share_table}\n\n{loss_table}"
    )
    report("decoder", text, {"gemm_gflops": rates, "speed": figures, "share_of_gemm": shares, "loss": losses})


if __name__ == "__main__":
    main()

"""Size on disk and perplexity of the decoder at float32, bfloat16, 8 and 4 bits.

`python -m experiments.benchmarks.low_precision` trains a small decoder for a minute or two on the bundled speeches
(`tests/samples/text`) and measures it on those held out; `--model FOLDER` takes a text checkpoint instead.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, TorchAoConfig

from arlow_vl.data.packing import PackedRows, collate_rows, pack_documents
from arlow_vl.data.text import LineTally, read_jsonl
from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer
from arlow_vl.models.auto import ArlowConfig, ArlowForCausalLM, ArlowTokenizerFast
from experiments.benchmarks.measure import report, table

TEXT = Path(__file__).parents[2] / "tests" / "samples" / "text"
ROW_LENGTH, BATCH_SIZE, VOCAB_SIZE, STEPS = 128, 8, 1024, 250
GROUP_SIZE = 32
"""Weights that share a scale in torchao's 4 bits; bitsandbytes' nf4 has 64."""


def torchao_int8() -> dict:
    from torchao.quantization import Int8WeightOnlyConfig

    return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}


def torchao_int4() -> dict:
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    int4 = torch.int4  # pyrefly: ignore[missing-attribute]
    return {"quantization_config": TorchAoConfig(IntxWeightOnlyConfig(int4, granularity=PerGroup(GROUP_SIZE)))}


def nf4() -> dict:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return {"quantization_config": config}


PRECISIONS: dict[str, Callable[[], dict]] = {
    "float32": lambda: {"dtype": torch.float32},
    "bfloat16": lambda: {"dtype": torch.bfloat16},
    "int8 (torchao)": torchao_int8,
    "int4 (torchao)": torchao_int4,
    "nf4 (bitsandbytes)": nf4,
}


def train(folder: Path) -> None:
    """A decoder of two million parameters and its tokenizer, saved into `folder`."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(read_jsonl(TEXT / "train.jsonl", LineTally()), vocab_size=VOCAB_SIZE)
    config = ArlowConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=ROW_LENGTH,
        use_cross_attention=False,
        initializer_range=0.05,
    )
    model = ArlowForCausalLM(config).train()
    rows = pack_documents(TEXT / "train.jsonl", tokenizer, ROW_LENGTH, folder / "packed")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        picked = [rows[int(i)] for i in torch.randint(len(rows), (BATCH_SIZE,))]
        batch = collate_rows(picked, bos_token_id=tokenizer.bos_token_id)
        model(**batch, use_cache=False, skip_logits=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.inference_mode()
def nats_by_row(model: ArlowForCausalLM, rows: PackedRows, bos_token_id: int) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of each row, and how many tokens it counts."""
    nats, tokens = [], []
    for first in range(0, len(rows), BATCH_SIZE):
        picked = [rows[i] for i in range(first, min(first + BATCH_SIZE, len(rows)))]
        batch = collate_rows(picked, bos_token_id=bos_token_id)
        labels = batch["labels"][:, 1:]
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        nats.append(losses.double().sum(1))
        tokens.append((labels >= 0).sum(1))
    return torch.cat(nats), torch.cat(tokens)


def measure(model_folder: Path, text: Path, scratch: Path) -> dict[str, dict[str, float]]:
    tokenizer = ArlowTokenizerFast.from_pretrained(model_folder)
    rows = pack_documents(text, tokenizer, ROW_LENGTH, scratch / "packed")
    figures, plain = {}, None
    for name, settings in PRECISIONS.items():
        model = ArlowForCausalLM.from_pretrained(model_folder, device_map="cpu", **settings()).eval()
        folder = scratch / name.split()[0]
        model.save_pretrained(folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        reloaded = ArlowForCausalLM.from_pretrained(folder, device_map="cpu").eval()
        nats, tokens = nats_by_row(reloaded, rows, tokenizer.bos_token_id)
        plain = nats if plain is None else plain
        change = (nats - plain).sum() / tokens.sum()
        spread = (nats - plain - change * tokens).std() * len(tokens) ** 0.5 / tokens.sum()
        figures[name] = {
            "mib": size / 2**20,
            "perplexity": math.exp(nats.sum() / tokens.sum()),
            "change": math.expm1(change),
            "standard_error": spread.item(),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a text checkpoint with its tokenizer; without it one is trained")
    parser.add_argument("--text", type=Path, default=TEXT / "validation.jsonl", help="held-out text, JSON lines")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model or Path(scratch) / "trained"
        if args.model is None:
            train(folder)
        parameters = ArlowForCausalLM.from_pretrained(folder).num_parameters()
        figures = measure(folder, args.text, Path(scratch))
    plain = figures["float32"]
    rows = [
        (
            name,
            f"{one['mib']:.2f}",
            f"{one['mib'] / plain['mib']:.2f}",
            f"{one['perplexity']:.3f}",
            f"{one['change']:+.2%} ± {one['standard_error']:.2%}",
        )
        for name, one in figures.items()
    ]
    source = f"the checkpoint {args.model.name}" if args.model else f"trained for {STEPS} steps on bundled speeches"
    text = "\n".join(
        [
            "# Low precision",
            "",
            f"A decoder of {parameters / 1e6:.1f} M parameters, {source}; perplexity a token of held-out text, after",
            "saving and loading again. Embedding (tied to the head), norms and gates are not quantised. torchao's",
            "4 bits for machines without its CUDA kernels lie in a byte each: they show the loss, they save nothing.",
            "± is the standard error of the change over rows of text.",
            "",
            table(["weights", "MiB on disk", "of float32", "perplexity", "change"], rows),
        ]
    )
    packages = {name: version(name) for name in ("torchao", "bitsandbytes", "peft")}
    report("low_precision", text, {"parameters": parameters, "quantisers": packages, "precisions": figures})


if __name__ == "__main__":
    main()

"""Text pretraining by transformers' own Trainer. The text is streamed; every option of `TrainingArguments` is one here.

Lightning (`arlow fit`) is the main path; this one is for those whose scripts are built on the Trainer. It takes
tokenizer, model, text, row length and policy from the same recipe; steps, batch, precision and schedule are options:

    python -m experiments.text_pretraining.hf_trainer --recipe experiments/text_pretraining/text.yaml \\
        --output_dir runs/hf-trainer --max_steps 1200 --per_device_train_batch_size 16 --learning_rate 2e-3 \\
        --warmup_steps 60 --logging_steps 10 --save_steps 100 [--bf16 | --fp16] [--gradient_checkpointing]

A run that was stopped resumes, along the same curve, with `--resume_from_checkpoint last`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from transformers import HfArgumentParser, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from arlow_vl.data.packing import collate_rows
from arlow_vl.data.prompts import plain_ids
from arlow_vl.data.text import LineTally, read_jsonl
from arlow_vl.errors import DataError
from arlow_vl.models.auto import ArlowConfig, ArlowForCausalLM
from arlow_vl.models.folders import load_tokenizer
from arlow_vl.training.build import token_fields
from arlow_vl.training.recipe import TextRecipe
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.stages import apply_policy

DOCUMENTS_AT_ONCE = 64


@dataclass
class Source:
    """Model and text of the run."""

    recipe: str
    """The YAML of a text stage: its tokenizer, model, train_text, row_length and policy are used."""


class StreamedRows(IterableDataset):
    """Rows of tokens without padding, made while they are read; at the end of the file it begins again, for ever."""

    def __init__(self, texts: Path, tokenizer: PreTrainedTokenizerFast, row_length: int) -> None:
        self.texts, self.tokenizer, self.row_length = texts, tokenizer, row_length

    def __iter__(self) -> Iterator[np.ndarray]:
        worker = get_worker_info()
        rows = self._rows()
        return rows if worker is None else islice(rows, worker.id, None, worker.num_workers)

    def _rows(self) -> Iterator[np.ndarray]:
        waiting = np.zeros(0, dtype=np.int64)
        while True:
            found = 0
            for ids in self._documents():
                found += len(ids)
                waiting = np.concatenate([waiting, ids])
                while len(waiting) >= self.row_length:
                    yield waiting[: self.row_length]
                    waiting = waiting[self.row_length :]
            if not found:
                raise DataError(f"{self.texts} holds no document; give a file of JSON lines with a text in each")

    def _documents(self) -> Iterator[np.ndarray]:
        """Each document as bos, its plain text, eos."""
        texts = read_jsonl(self.texts, LineTally())
        while some := list(islice(texts, DOCUMENTS_AT_ONCE)):
            for ids in plain_ids(self.tokenizer, some):
                yield np.array([self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id], dtype=np.int64)


def check_text(recipe: TextRecipe) -> None:
    """Reads the text once and warns of unusable lines. Raises DataError if they are too large a share."""
    lines = LineTally()
    for _ in read_jsonl(recipe.train_text, lines):
        pass
    lines.report(recipe.train_text, recipe.max_bad_fraction)


def build_trainer(recipe: TextRecipe, arguments: TrainingArguments) -> Trainer:
    """A decoder with random weights and its stream of text, in the hands of transformers."""
    if arguments.max_steps <= 0:
        raise ValueError("the text is a stream without an end; say with --max_steps when to stop")
    check_text(recipe)
    if recipe.tokenizer is None:
        raise ValueError("the recipe names no tokenizer; here weights are random, so give one without checkpoint")
    tokenizer = load_tokenizer(recipe.tokenizer)
    set_seed(arguments.seed)
    sizes: dict[str, Any] = {**token_fields(tokenizer, recipe.tokenizer), **recipe.model}
    model = ArlowForCausalLM(ArlowConfig(**sizes))
    apply_policy(model, recipe.policy)
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=StreamedRows(Path(recipe.train_text), tokenizer, recipe.row_length),
        data_collator=partial(collate_rows, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id),
        processing_class=tokenizer,
    )


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Trains, writes `hf` into the output folder, and returns the losses that were logged."""
    source, arguments = HfArgumentParser((Source, TrainingArguments)).parse_args_into_dataclasses(argv)
    recipe = parse_recipe(["--config", source.recipe])
    if not isinstance(recipe, TextRecipe):
        raise ValueError(f"{source.recipe} is no text recipe; give one whose stage is text")
    resume = arguments.resume_from_checkpoint
    if resume == "last":
        resume = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
        if resume is None:
            raise ValueError(f"{arguments.output_dir} holds no checkpoint; leave out --resume_from_checkpoint")
    trainer = build_trainer(recipe, arguments)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(Path(arguments.output_dir, "hf")))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()

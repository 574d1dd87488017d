"""The pretraining script on transformers' Trainer, on tiny text."""

import re
import shlex
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainingArguments

from arlow_vl.errors import DataError
from arlow_vl.training.recipe_parsing import parse_recipe
from experiments.text_pretraining.hf_trainer import Source, StreamedRows, main
from tests.tiny_runs import sentences, tiny_tokenizer, weights_sha256, write_jsonl, write_text_recipe

OPTIONS = "--per_device_train_batch_size 2 --learning_rate 3e-3 --warmup_steps 2 --logging_steps 1 --use_cpu"


def train(folder: Path, output: str, *options: str) -> list[float]:
    arguments = ["--recipe", str(folder / "text.yaml"), "--output_dir", str(folder / output), *OPTIONS.split()]
    return main([*arguments, *options])


@pytest.fixture
def folder(tmp_path):
    write_text_recipe(tmp_path)  # with dropout, so that random numbers must go on too
    return tmp_path


def test_a_resumed_run_follows_the_same_curve_to_the_same_weights(folder):
    whole = train(folder, "whole", "--max_steps", "20", "--save_steps", "10")
    resumed = train(folder, "rest", "--max_steps", "20", "--resume_from_checkpoint", f"{folder}/whole/checkpoint-10")
    assert len(whole) == 20
    assert whole[-1] < whole[0] - 0.5
    assert resumed == whole
    assert weights_sha256(folder / "rest/hf") == weights_sha256(folder / "whole/hf")


def test_the_product_opens_by_the_auto_classes_with_its_shut_pathway_untouched(folder):
    train(folder, "run", "--max_steps", "2")
    model = AutoModelForCausalLM.from_pretrained(folder / "run/hf")
    assert AutoTokenizer.from_pretrained(folder / "run/hf").get_vocab() == tiny_tokenizer().get_vocab()
    gates = [value for name, value in model.named_parameters() if name.endswith("_gate")]
    assert gates
    assert all(torch.equal(gate, torch.zeros(1)) for gate in gates)


def test_gradient_checkpointing_keeps_the_losses(folder):
    plain = train(folder, "plain", "--max_steps", "20")
    saving = train(folder, "saving", "--max_steps", "20", "--gradient_checkpointing")
    assert saving == pytest.approx(plain, abs=1e-6)  # float32: the same sums, computed twice


def test_bfloat16_stays_close_and_is_in_use(folder):
    full = train(folder, "full", "--max_steps", "20")
    half = train(folder, "half", "--max_steps", "20", "--bf16")
    assert half != full
    assert half == pytest.approx(full, abs=0.1)  # eight bits of mantissa, 20 steps


def test_last_means_the_last_checkpoint_of_the_output_folder(folder):
    whole = train(folder, "whole", "--max_steps", "6")
    train(folder, "run", "--max_steps", "6", "--save_steps", "2")
    shutil.rmtree(folder / "run/checkpoint-6")  # as if it had been stopped behind the fourth step
    assert train(folder, "run", "--max_steps", "6", "--resume_from_checkpoint", "last") == whole


def test_the_command_of_the_readme_is_understood():
    readme = Path(__file__).parents[1] / "experiments/text_pretraining/README.md"
    command = re.search(r"-m experiments\.text_pretraining\.hf_trainer (.*?)```", readme.read_text(), re.DOTALL)[1]
    parser = HfArgumentParser((Source, TrainingArguments))
    source, arguments = parser.parse_args_into_dataclasses(shlex.split(command.replace("\\\n", " ")))
    assert parse_recipe(["--config", source.recipe]).stage == "text"
    assert arguments.max_steps == 1200


def test_the_stream_cuts_documents_into_rows_and_never_ends(tmp_path):
    tokenizer = tiny_tokenizer()
    path = write_jsonl(tmp_path / "texts.jsonl", sentences(3))
    ids = tokenizer(sentences(3), add_special_tokens=False)["input_ids"]
    once = np.concatenate([[tokenizer.bos_token_id, *some, tokenizer.eos_token_id] for some in ids])
    rows = list(islice(StreamedRows(path, tokenizer, 16), 20))
    assert np.array_equal(np.concatenate(rows), np.resize(once, 320))


def test_workers_share_the_rows_without_reading_one_twice(tmp_path):
    rows = StreamedRows(write_jsonl(tmp_path / "texts.jsonl", sentences(20)), tiny_tokenizer(), 16)
    loader = DataLoader(rows, batch_size=None, num_workers=2)
    for ours, alone in zip(islice(loader, 10), rows, strict=False):
        assert np.array_equal(ours, alone)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "say with --max_steps when to stop"),
        (["--max_steps", "2", "--resume_from_checkpoint", "last"], "holds no checkpoint; leave out"),
    ],
)
def test_options_that_cannot_work_are_refused(folder, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(folder, "run", *options)


def test_a_file_without_documents_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"empty\.jsonl holds no document"):
        next(iter(StreamedRows(write_jsonl(tmp_path / "empty.jsonl", []), tiny_tokenizer(), 16)))

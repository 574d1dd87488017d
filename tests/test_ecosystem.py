"""What docs/ecosystem.md shows, run as it stands on a tiny model, and what must come out of it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, pipeline

from arlow_vl.cli import main
from arlow_vl.data.prompts import about_image, encode_messages
from tests.serving.tiny_folders import write_folders
from tests.tiny_runs import SAMPLES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ecosystem.md").read_text()
MODEL, CAPTIONS = "runs/first-light/vision/hf", ("a fox in snow", "a red fox")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folders(tmp_path_factory.mktemp("models"))[1]


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Runs a block of the page with the tiny model in the place of the demo's, and gives its names."""
    monkeypatch.chdir(ROOT)

    def run_block(heading: str, number: int = 0) -> dict[str, Any]:
        section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        block = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[number]
        block = block.replace(MODEL, str(folder)).replace('"runs/', f'"{tmp_path}/')
        names: dict[str, Any] = {}
        exec(compile(block, heading, "exec"), names)
        return names

    return run_block


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def logits(model: Any, processor: Any, image: str | None = None) -> torch.Tensor:
    words = "the cat sat on a mat"
    given = {"text": words} if image is None else {"text": f"<image>{words}", "images": image}
    with torch.no_grad():
        return model.eval()(**processor(**given, return_tensors="pt")).logits


def assert_images_were_learnt_and_text_is_as_it_was(folder: Path, product: Path) -> None:
    before, after = (AutoModelForImageTextToText.from_pretrained(path) for path in (folder, product))
    processor, fox = AutoProcessor.from_pretrained(product), str(SAMPLES / "fox.jpg")
    assert torch.equal(logits(before, processor), logits(after, processor))
    assert not torch.allclose(logits(before, processor, fox), logits(after, processor, fox), atol=1e-2)


def assert_labels_are_those_of_arlow_fit(batch: Any, processor: Any) -> None:
    for row, caption in enumerate(CAPTIONS):
        ids, labels = encode_messages(processor.tokenizer, about_image(None, caption))
        assert batch["input_ids"][row, : len(ids)].tolist() == ids
        assert batch["labels"][row].tolist() == labels + [-100] * (batch["labels"].shape[1] - len(labels))


def test_a_pipeline_answers_a_batch_as_one_at_a_time_and_on_the_cpu_as_where_accelerate_puts_it(run, folder):
    names = run("Pipelines")
    ask, chats, options = names["ask"], names["chats"], {"max_new_tokens": 8, "return_full_text": False}
    together = [answers[0]["generated_text"] for answers in ask(chats, batch_size=3, **options)]
    on_cpu = pipeline("image-text-to-text", model=str(folder), device_map="cpu")
    alone = [on_cpu(chat, **options)[0]["generated_text"] for chat in chats]
    assert together == alone
    assert len(set(alone)) > 1


def test_transformers_trainer_teaches_images_and_leaves_text(run, folder, tmp_path, capsys):
    names = run("transformers' Trainer")
    assert losses(names["trainer"])[-1] < losses(names["trainer"])[0] - 0.1
    assert_labels_are_those_of_arlow_fit(names["collate"](names["samples"][:2]), names["processor"])
    product = tmp_path / "hf-trainer" / "hf"
    assert_images_were_learnt_and_text_is_as_it_was(folder, product)
    capsys.readouterr()
    assert main(["caption", str(SAMPLES / "fox.jpg"), "--model", str(product), "--max-new-tokens", "3"]) == 0
    assert "fox.jpg" in capsys.readouterr().out


def test_one_command_trains_adapters_on_a_folder_of_images_and_leaves_text(folder, tmp_path, monkeypatch):
    command = re.search(r"arlow (fit --config \S*photos\.yaml)", PAGE)[1].split()
    shutil.copytree(ROOT / "experiments" / "stages", tmp_path / "experiments" / "stages")
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(SAMPLES / "fox.jpg", Path("photos", name))
    Path("photos/train.csv").write_text("file_name,text\na.jpg,A fox.\nb.jpg,A red fox.\n")
    Path("photos/validation.csv").write_text("file_name,text\nb.jpg,A red fox in snow.\n")
    steps = ["--run.max_steps", "3", "--run.validate_every", "3", "--run.threads", "1", "--optim.warmup_steps", "0"]
    assert main([*command, "--checkpoint", str(folder), "--optim.lr", "0.01", *steps]) == 0
    assert_images_were_learnt_and_text_is_as_it_was(folder, Path("runs/photos/hf"))


def test_qlora_trains_adapters_beside_four_bits(run, tmp_path):
    model, trainer = run("LoRA on your folder, in one command")["model"], run("transformers' Trainer")
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("o_proj")}
    assert "Linear4bit" in kinds
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name and ".cross_block." in name for name in trained)
    options = {"max_steps": 6, "learning_rate": 3e-2, "logging_steps": 1, "per_device_train_batch_size": 4}
    arguments = TrainingArguments(tmp_path / "q", **options, remove_unused_columns=False, report_to=[])
    tuned = Trainer(model, arguments, data_collator=trainer["collate"], train_dataset=trainer["samples"])
    tuned.train()
    assert losses(tuned)[-1] < losses(tuned)[0] - 0.1


def test_trls_sft_trainer_teaches_images_and_leaves_text(run, folder, tmp_path):
    pytest.importorskip("trl", reason="needs trl: pip install 'arlow-vl[trl]'")
    import trl

    names = run("trl")
    assert isinstance(names["trainer"], trl.SFTTrainer)
    assert losses(names["trainer"])[-1] < losses(names["trainer"])[0] - 0.1
    batch = names["trainer"].data_collator([dict(row) for row in names["rows"][:2]])
    assert_labels_are_those_of_arlow_fit(batch, names["processor"])
    assert_images_were_learnt_and_text_is_as_it_was(folder, tmp_path / "trl" / "hf")


def test_torchaos_eight_bits_answer_nearly_as_the_whole_model(run, folder):
    names = run("Fewer bits")
    small, processor = names["model"], names["processor"]
    decoder = [module for name, module in small.model.language_model.named_modules() if name.endswith("_proj")]
    assert {type(module.weight.data).__name__ for module in decoder} == {"Int8Tensor"}
    whole, fox = AutoModelForImageTextToText.from_pretrained(folder), str(SAMPLES / "fox.jpg")
    got, expected = logits(small, processor, fox).log_softmax(-1), logits(whole, processor, fox).log_softmax(-1)
    assert not torch.equal(got, expected)
    assert (got - expected).abs().mean() < 0.1 * expected.std()  # 8 bits: steps of a hundredth of the largest weight


NOT_INSTALLED = """
import sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "arlow_vl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("auto_class", "reason"),
    [
        ("AutoProcessor", "packages that were not found in your environment: arlow_vl"),
        ("AutoModelForImageTextToText", "packages that were not found in your environment: arlow_vl"),
    ],
)
def test_without_the_package_transformers_names_what_is_missing(folder, auto_class, reason):
    load = f"transformers.{auto_class}.from_pretrained({str(folder)!r}, trust_remote_code=True)"
    ran = subprocess.run(
        [sys.executable, "-c", f"{NOT_INSTALLED}import transformers; {load}"], cwd="/", capture_output=True, text=True
    )
    assert ran.returncode != 0
    assert reason in ran.stderr

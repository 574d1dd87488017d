"""lm-eval on local files: its text model on an Arlow folder in three forms, its image model, and ours.

    python -m experiments.harnesses.lm_eval_trial --text runs/first-light/text/hf --vision runs/first-light/vision/hf \\
        --work /tmp/lm-eval
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from arlow_vl.evaluation.metrics.answers import exact_match
from arlow_vl.evaluation.metrics.perplexity import bits_per_byte
from arlow_vl.models.auto import save_with_code
from arlow_vl.models.convert.exporting import export_llama
from arlow_vl.models.folders import load_text_model
from experiments.harnesses.environment import OFFLINE, Row, make_environment, report, run_in, versions_in
from experiments.harnesses.local_tasks import MAX_NEW_TOKENS, evaluate_ours, write_local_tasks

PACKAGES = ("lm-eval>=0.4.13",)
WITH_ARLOW = ("-m", "arlow_vl.evaluation.harnesses", "lm-eval")
PLAIN = ("-m", "lm_eval")
MEDIA = """from PIL import Image


def images(doc):
    with Image.open(doc["image"]) as image:
        return [image.convert("RGB")]
"""


class Function(str):
    """The name of a function, which YAML tags with `!function`."""


yaml.SafeDumper.add_representer(Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))


def write_tasks(folder: Path, data: Path) -> None:
    """Writes the tasks in lm-eval's format."""
    folder.mkdir(exist_ok=True)
    (folder / "media.py").write_text(MEDIA)
    about_image = {"doc_to_image": Function("media.images"), "doc_to_text": "<image>{{question}}"}
    tasks: dict[str, tuple[str, dict[str, Any]]] = {
        "endings": (
            "endings",
            {
                "output_type": "multiple_choice",
                "doc_to_text": "{{context}}",
                "doc_to_choice": "choices",
                "doc_to_target": "label",
                "metric_list": [{"metric": "acc"}],
            },
        ),
        "documents": (
            "documents",
            {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": [{"metric": "bits_per_byte"}],
            },
        ),
        "questions": (
            "questions",
            about_image
            | {
                "output_type": "generate_until",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": {"max_gen_toks": MAX_NEW_TOKENS, "do_sample": False, "until": ["\n"]},
                "metric_list": [{"metric": "exact_match"}],
            },
        ),
        "choices": (
            "questions",
            about_image
            | {
                "output_type": "multiple_choice",
                "doc_to_choice": "choices",
                "doc_to_target": "{{choices.index(answer)}}",
                "metric_list": [{"metric": "acc"}],
            },
        ),
    }
    for name, (file, fields) in tasks.items():
        place = {"data_files": {"test": str(data / f"{file}.jsonl")}}
        values = {"task": f"arlow_{name}", "dataset_path": "json", "dataset_kwargs": place, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values | fields))


def scores(folder: Path, name: str, ours: dict[str, dict[str, str]]) -> Row:
    """Returns lm-eval's score of a task, and ours from the samples that it wrote."""
    (results,) = folder.rglob("results_*.json")
    (samples,) = folder.rglob(f"samples_arlow_{name}_*.jsonl")
    found = json.loads(results.read_text())["results"][f"arlow_{name}"]
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    if name == "documents":
        nats = math.fsum(float(row["filtered_resps"][0]) for row in rows)
        size = sum(len(row["doc"]["text"].encode()) for row in rows)
        sums = np.array([nats, 0, size])
        return Row(folder.name, "bits per byte", found["bits_per_byte,none"], float(bits_per_byte(sums)))
    if name == "questions":
        outputs = {row["doc"]["id"]: row["filtered_resps"][0] for row in rows}
        metric, right = "exact_match", [exact_match(outputs[row["doc"]["id"]], [row["doc"]["answer"]]) for row in rows]
    else:
        best = [int(np.argmax([float(nats) for nats, _ in row["filtered_resps"]])) for row in rows]
        outputs = {row["doc"].get("id"): row["doc"]["choices"][place] for row, place in zip(rows, best, strict=True)}
        metric, right = "acc", [float(place == int(row["target"])) for row, place in zip(rows, best, strict=True)]
    same = sum(ours[name][key] == output for key, output in outputs.items()) if name in ours else 0
    agreement = f"{same} of {len(outputs)}" if name in ours else ""
    return Row(folder.name, f"{name}: {metric}", found[f"{metric},none"], sum(right) / len(right), agreement)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="hf/ folder of a text run")
    parser.add_argument("--vision", type=Path, required=True, help="hf/ folder of a vision run")
    parser.add_argument("--work", type=Path, required=True, help="new folder for the environment and all files")
    args = parser.parse_args()
    work, text, vision = args.work.resolve(), args.text.resolve(), args.vision.resolve()
    ours = evaluate_ours(vision, work / "local")
    write_local_tasks(work / "local", ours["questions"].keys())
    write_tasks(work / "local" / "lm_eval", work / "local")
    model, tokenizer = load_text_model(text)
    save_with_code(model, work / "code")
    tokenizer.save_pretrained(work / "code")
    if not (work / "llama").exists():
        export_llama(text, work / "llama")
    python = make_environment(work / "environment", PACKAGES)
    runs = {
        "hf on the Arlow folder": (WITH_ARLOW, "hf", f"pretrained={text}", ("endings", "documents")),
        "hf on it with its code": (
            PLAIN,
            "hf",
            f"pretrained={work / 'code'},trust_remote_code=True",
            ("endings", "documents"),
        ),
        "hf on its export as Llama": (PLAIN, "hf", f"pretrained={work / 'llama'}", ("endings", "documents")),
        "arlow_vl on the text folder": (WITH_ARLOW, "arlow_vl", f"pretrained={text}", ("endings", "documents")),
        "hf-multimodal": (WITH_ARLOW, "hf-multimodal", f"pretrained={vision}", ("questions",)),
        "arlow_vl": (WITH_ARLOW, "arlow_vl", f"pretrained={vision}", ("questions", "choices")),
    }
    rows = []
    for name, (started, kind, model_args, tasks) in runs.items():
        output = work / "out" / name
        if not output.exists():
            named = ["--tasks", ",".join(f"arlow_{task}" for task in tasks), "--device", "cpu", "--batch_size", "8"]
            chat = ["--apply_chat_template"] if "questions" in tasks else []
            where = ["--include_path", str(work / "local" / "lm_eval"), "--output_path", str(output), "--log_samples"]
            run_in(
                python, *started, "run", "--model", kind, "--model_args", model_args, *named, *chat, *where, **OFFLINE
            )
        rows += [scores(output, task, ours) for task in tasks]
    report("lm_eval", rows, versions_in(python, "lm-eval", "torch", "transformers"))


if __name__ == "__main__":
    main()

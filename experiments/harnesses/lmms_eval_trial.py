"""lmms-eval on local files, without a network: Arlow as its chat model and as its simple one.

python -m experiments.harnesses.lmms_eval_trial --vision runs/first-light/vision/hf --work /tmp/lmms-eval
"""

import argparse
import json
from pathlib import Path

import yaml

from arlow_vl.evaluation.metrics.answers import exact_match
from experiments.harnesses.environment import OFFLINE, Row, make_environment, report, run_in, versions_in
from experiments.harnesses.lm_eval_trial import MEDIA, Function
from experiments.harnesses.local_tasks import MAX_NEW_TOKENS, evaluate_ours, write_local_tasks

PACKAGES = ("lmms-eval>=0.7.3", "filelock<4")  # it imports filelock._api, which 4 no longer has
FUNCTIONS = """

def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def score(doc, results):
    return {"exact_match": float(results[0].strip().lower() == doc["answer"])}
"""


def write_tasks(folder: Path, data: Path) -> None:
    """Writes the tasks in lmms-eval's format."""
    folder.mkdir(exist_ok=True)
    (folder / "media.py").write_text(MEDIA + FUNCTIONS)
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data / "questions.jsonl")}},
        "test_split": "test",
        "doc_to_visual": Function("media.images"),
        "doc_to_text": Function("media.question"),
        "metadata": [{"version": 0.0}],
    }
    generation = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "temperature": 0}
    questions = {
        "task": "arlow_questions",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": generation,
        "process_results": Function("media.score"),
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    choices = {
        "task": "arlow_choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "{{choices.index(answer)}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    for task in (questions, choices):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(shared | task))


def scores(folder: Path, name: str, questions: list[dict], ours: dict[str, str]) -> Row:
    """Returns lmms-eval's score of a task, and ours from the samples that it wrote."""
    (results,) = folder.rglob("*_results.json")
    (samples,) = folder.rglob(f"*_samples_arlow_{name}.jsonl")
    found = json.loads(results.read_text())["results"][f"arlow_{name}"]
    outputs = {}
    for row in map(json.loads, samples.read_text().splitlines()):
        question, got = questions[row["doc_id"]], row["filtered_resps"]
        if name == "choices":
            got = min(zip(got, question["choices"], strict=True), key=lambda pair: float(pair[0][0]))[1]  # losses
        outputs[question["id"]] = got
    metric = "exact_match" if name == "questions" else "acc"
    right = [exact_match(outputs[one["id"]], [one["answer"]]) for one in questions]
    same = sum(ours[key] == output for key, output in outputs.items())
    agreement = f"{same} of {len(outputs)}"
    return Row(folder.name, f"{name}: {metric}", found[f"{metric},none"], sum(right) / len(right), agreement)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", type=Path, required=True, help="hf/ folder of a vision run")
    parser.add_argument("--work", type=Path, required=True, help="new folder for the environment and all files")
    args = parser.parse_args()
    work, vision = args.work.resolve(), args.vision.resolve()
    ours = evaluate_ours(vision, work / "local")
    questions = write_local_tasks(work / "local", ours["questions"].keys())["questions"]
    write_tasks(work / "local" / "lmms_eval", work / "local")
    python = make_environment(work / "environment", PACKAGES)
    rows = []
    for name, options, tasks in (
        ("chat", (), ["questions"]),
        ("simple", ("--force_simple",), ["questions", "choices"]),
    ):
        output = work / "out" / name
        if not output.exists():
            named = ["--tasks", ",".join(f"arlow_{task}" for task in tasks), "--batch_size", "8", *options]
            where = ["--include_path", str(work / "local" / "lmms_eval"), "--output_path", str(output), "--log_samples"]
            model = ["--model", "arlow_vl", "--model_args", f"pretrained={vision},device=cpu"]
            run_in(python, "-m", "lmms_eval", "eval", *model, *named, *where, **OFFLINE)
        rows += [scores(output, task, questions, ours[task]) for task in tasks]
    report("lmms_eval", rows, versions_in(python, "lmms-eval", "filelock", "torch", "transformers"))


if __name__ == "__main__":
    main()

"""VLMEvalKit on a local set, without a network: its `run.py` with Arlow in its table of models.

VLMEvalKit is on no package index; `--checkout` names a clone of open-compass/VLMEvalKit.

    python -m experiments.harnesses.vlmevalkit_trial --checkout VLMEvalKit --vision runs/first-light/vision/hf \\
        --work /tmp/vlmevalkit
"""

import argparse
import base64
import csv
import json
import string
import subprocess
from pathlib import Path

from arlow_vl.evaluation.metrics.answers import exact_match
from experiments.harnesses.environment import OFFLINE, Row, make_environment, report, run_in, versions_in
from experiments.harnesses.local_tasks import evaluate_ours, write_local_tasks

# Packages that its run.py imports; those of its requirements that only single benchmarks or models need are left out.
PACKAGES = tuple(
    """anls antlr4-python3-runtime==4.11.1 apted colormath datasets decord distance editdistance einops imageio ipdb
    jieba json_repair latex2sympy2-extended levenshtein math-verify matplotlib nest_asyncio nltk num2words omegaconf
    opencv-python-headless openpyxl pandas portalocker pylatexenc==2.10 python-dotenv qwen_vl_utils rouge scikit-image
    scikit-learn sentencepiece sty tabulate termcolor timeout-decorator validators xlsxwriter zss""".split()
)
SET = "arlow_questions"
"""Name of our set; VLMEvalKit treats a file of an unknown name as multiple choice."""


def write_set(path: Path, questions: list[dict]) -> None:
    """Writes questions with lettered choices, in VLMEvalKit's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_uppercase[: len(questions[0]["choices"])]
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "image", "question", *letters, "answer"])
        for place, one in enumerate(questions):
            image = base64.b64encode(Path(one["image"]).read_bytes()).decode()
            right = letters[one["choices"].index(one["answer"])]
            table.writerow([place, image, one["question"], *one["choices"], right])


def scores(python: Path, output: Path, questions: list[dict]) -> Row:
    """Returns VLMEvalKit's score, and ours, by which the answer is the text of the right choice."""
    (table,) = (output / "arlow_vl").glob("*_acc.csv")
    with open(table, newline="", encoding="utf-8") as file:
        (found,) = csv.DictReader(file)
    (sheet,) = (output / "arlow_vl").glob(f"*{SET}.xlsx")
    lines = output / "predictions.jsonl"
    code = "import sys, pandas; pandas.read_excel(sys.argv[1]).to_json(sys.argv[2], orient='records', lines=True)"
    run_in(python, "-c", code, str(sheet), str(lines))
    outputs = {row["index"]: row["prediction"] for row in map(json.loads, lines.read_text().splitlines())}
    right = [exact_match(str(outputs[place]), [one["answer"]]) for place, one in enumerate(questions)]
    return Row("run.py", "multiple choice: Overall", float(found["Overall"]), sum(right) / len(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="a clone of VLMEvalKit")
    parser.add_argument("--vision", type=Path, required=True, help="hf/ folder of a vision run")
    parser.add_argument("--work", type=Path, required=True, help="new folder for the environment and all files")
    args = parser.parse_args()
    work, vision, script = args.work.resolve(), args.vision.resolve(), args.checkout.resolve() / "run.py"
    ours = evaluate_ours(vision, work / "local")
    questions = write_local_tasks(work / "local", ours["questions"].keys())["questions"]
    write_set(work / "sets" / f"{SET}.tsv", questions)
    python = make_environment(work / "environment", PACKAGES)
    words = ["git", "-C", str(script.parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, text=True, capture_output=True).stdout.strip() or "without a commit"
    output = work / "out"
    if not output.exists():
        words = ["--model", "arlow_vl", "--data", SET, "--work-dir", str(output), "--judge", "exact_matching"]
        names = {"ARLOW_VL_MODEL": str(vision), "LMUData": str(work / "sets")}
        run_in(python, "-m", "arlow_vl.evaluation.harnesses", "vlmevalkit", str(script), *words, **OFFLINE, **names)
    report(
        "vlmevalkit",
        [scores(python, output, questions)],
        {"VLMEvalKit": commit} | versions_in(python, "torch", "transformers"),
    )


if __name__ == "__main__":
    main()

"""`arlow evaluate`: lets a model answer test sets, and scores its answers beside controls."""

import argparse
from pathlib import Path

from arlow_vl.cli.model_options import add_model_options
from arlow_vl.cli.parser import Parser, output_folder, positive_int
from arlow_vl.printing import print_line
from arlow_vl.stopping import AGAIN


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "evaluate",
        "answer and score test sets, beside controls",
        "arlow evaluate --model runs/first-light/vision/hf --task easy-vqa --output results",
        "arlow evaluate --model runs/first-light/vision/hf --task easy-vqa --limit 200 --output results",
        description="Answer and score test sets, beside controls. A task is one that comes with the package (see "
        "docs/evaluation.md) or a .yaml file. Stopped and run again, it resumes; `arlow report` shows the results.",
    )
    add_model_options(parser, model="model folder (hf/ of a run)")
    parser.add_argument(
        "--task", action="append", required=True, metavar="TASK", help="name or .yaml of a task; may be repeated"
    )
    parser.add_argument(
        "--data",
        default="data",
        metavar="DATA",
        help="folder of the tasks' data, or the data of one task (default: data)",
    )
    parser.add_argument(
        "--output", type=output_folder, required=True, metavar="DIR", help="folder for predictions and scores"
    )
    parser.add_argument(
        "--features",
        type=output_folder,
        default=Path("data/features"),
        metavar="DIR",
        help="cache of encoder features (default: data/features)",
    )
    parser.add_argument(
        "--features-dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="dtype of the cached features, cache_dtype of the run's recipe (default: float16)",
    )
    parser.add_argument(
        "--training",
        metavar="DATA",
        help="training data of the model, for priors and overlap (default: for overlap, that of the run's recipe)",
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=64, metavar="N", help="prompts per batch (default: 64)"
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        metavar="N",
        help="items of each task, one at random of each of N equal parts of its data (default: all)",
    )
    parser.set_defaults(run=run, again=AGAIN)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.evaluation.tasks.places import place_of, refuse_missing_data, refuse_missing_training
    from arlow_vl.evaluation.tasks.task import load_task, refuse_one_name_twice
    from arlow_vl.models.folder_files import refuse_missing_files, refuse_text_model

    tasks = [load_task(name) for name in args.task]
    refuse_one_name_twice(tasks)
    refuse = refuse_missing_files if all(task.kind == "text" for task in tasks) else refuse_text_model
    refuse(args.model)
    for task in tasks:
        refuse_missing_data(task, place_of(task, args.data))
        refuse_missing_training(task, args.data, args.training)

    from arlow_vl.evaluation.tasks.evaluate import EvaluationOptions, evaluate_tasks  # loads torch, which takes seconds

    evaluate_tasks(
        tasks,
        EvaluationOptions(
            model=args.model,
            data=args.data,
            output=args.output,
            features=args.features,
            features_dtype=args.features_dtype,
            training=args.training,
            device=args.device,
            precision=args.precision,
            batch_size=args.batch_size,
            limit=args.limit,
            files={task.name: name for task, name in zip(tasks, args.task, strict=True)},
        ),
    )
    print()
    print_line(f"`arlow report {args.output}` shows them, `arlow reproduce {args.output}` derives them again")

"""`arlow fit`: runs a recipe, or goes on with a run that was stopped."""

import argparse
import sys

from arlow_vl.cli.parser import Parser
from arlow_vl.printing import print_line

EXAMPLES = (
    "arlow fit --config experiments/first_light/text.yaml",
    "arlow fit --config experiments/first_light/vision.yaml --run.max_steps 200 --run_dir runs/short",
)
DRY_RUN = "--dry-run"


def add_parser(arlow: Parser) -> None:
    # Everything after `fit` is the recipe parser's: with another prefix character no argument is an option here.
    parser = arlow.add_command(
        "fit", "train by a recipe; started again, it goes on", *EXAMPLES, prefix_chars="\0", add_help=False
    )
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(run=run_fit)


def run_fit(args: argparse.Namespace) -> int | None:
    from arlow_vl.training.recipe import parse_recipe

    if {"-h", "--help"} & set(args.arguments):
        print_help()
        return None
    is_dry = DRY_RUN in args.arguments
    recipe = parse_recipe([argument for argument in args.arguments if argument != DRY_RUN])
    if is_dry:
        from arlow_vl.training.dry_run import dry_run
        from arlow_vl.training.run import refuse_before_building

        refuse_before_building(recipe)
        for line in dry_run(recipe):
            print_line(line)
        return None
    from arlow_vl.training.launch import find_place, refuse_too_many, start_processes, starts_processes

    engine = recipe.run.engine
    if starts_processes(engine):
        refuse_too_many(engine)
        return start_processes(engine.devices, args.arguments)

    from arlow_vl.training.run import fit  # seconds of imports, after the recipe is known to be right

    product = fit(recipe)
    if find_place(engine).is_first:
        print_line(f"trained model: {product}")
    return None


def print_help() -> None:
    """The keys of both kinds of recipe, as `--key value` overrides."""
    from arlow_vl.training.recipe import RECIPES, build_parser

    sys.stdout.write(
        "usage: arlow fit --config RECIPE.yaml [--dry-run] [--KEY VALUE ...]\n\n"
        "A stopped run goes on with the same command.\n"
        "--dry-run says what a run would train, what a step holds and what memory it takes, and ends.\n"
    )
    sys.stdout.write("\n  ".join(["\nexamples:", *EXAMPLES]) + "\n")
    for stage, recipe_class in RECIPES.items():
        keys = build_parser(recipe_class).format_help().partition("\n\n")[2]
        sys.stdout.write(f"\nKeys of a recipe with stage: {stage}\n\n{keys}")

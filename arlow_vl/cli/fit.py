"""`arlow fit`: runs a recipe, or resumes a run that was stopped."""

import argparse
import sys
from typing import TYPE_CHECKING

from arlow_vl.cli.exit_status import USAGE
from arlow_vl.cli.parser import Parser
from arlow_vl.printing import print_line
from arlow_vl.stopping import AGAIN

if TYPE_CHECKING:
    from arlow_vl.training.recipe import Recipe

EXAMPLES = (
    "arlow fit --config experiments/first_light/text.yaml",
    "arlow fit --config experiments/first_light/vision.yaml --run.max_steps 250 --run_dir runs/short",
)
DRY_RUN = "--dry-run"


def add_parser(arlow: Parser) -> None:
    # Everything after `fit` is the recipe parser's: with another prefix character no argument is an option here.
    parser = arlow.add_command(
        "fit", "train by a recipe; run again, it resumes", *EXAMPLES, prefix_chars="\0", add_help=False
    )
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(run=run_fit, again=AGAIN)


def run_fit(args: argparse.Namespace) -> int | None:
    from arlow_vl.training.recipe_parsing import parse_recipe

    if {"-h", "--help"} & set(args.arguments):
        print_help()
        return None
    if DRY_RUN in args.arguments:
        from arlow_vl.training.refusals import refuse_misfits

        words = [argument for argument in args.arguments if argument != DRY_RUN]
        return run_dry(parse_recipe(words, look=refuse_misfits))
    recipe = parse_recipe(args.arguments, look=refuse_early)
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


def refuse_early(recipe: "Recipe") -> None:
    """Raises ValueError for a run that cannot start or resume; of several processes, one per machine says why."""
    from arlow_vl.training.launch import find_place, starts_processes
    from arlow_vl.training.refusals import refuse_before_loading

    try:
        refuse_before_loading(recipe)
    except ValueError as error:
        if starts_processes(recipe.run.engine) or find_place(recipe.run.engine).local_rank == 0:
            raise
        raise SystemExit(USAGE) from error


def run_dry(recipe: "Recipe") -> None:
    from arlow_vl.training.dry_run import dry_run
    from arlow_vl.training.run import refuse_before_building

    refuse_before_building(recipe)
    for line in dry_run(recipe):
        print_line(line)


def print_help() -> None:
    """Prints the keys of both kinds of recipe, as `--key value` overrides."""
    from arlow_vl.training.recipe import RECIPES
    from arlow_vl.training.recipe_parsing import build_parser

    sys.stdout.write(
        "usage: arlow fit --config RECIPE.yaml [--dry-run] [--KEY VALUE ...]\n\n"
        "A stopped run resumes with the same command.\n"
        "--dry-run says what a run would train, what a step holds and how much memory it takes, and trains nothing.\n"
    )
    sys.stdout.write("\n  ".join(["\nexamples:", *EXAMPLES]) + "\n")
    for stage, recipe_class in RECIPES.items():
        keys = build_parser(recipe_class).format_help().partition("\n\n")[2]
        sys.stdout.write(f"\nKeys of a recipe with stage: {stage}\n\n{keys}")

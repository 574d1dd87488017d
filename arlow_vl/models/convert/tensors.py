"""A decoder's tensors, by the names that Llama and Arlow share: read, compared, with rows added or removed."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.checkpoint_checks import open_weights, weight_files
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.folders import named, other_tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


def read_tensors(folder: Path, rename: Callable[[str], str | None]) -> Tensors:
    """All tensors of a folder that `rename` gives a name."""
    tensors = {}
    for path in weight_files(folder):
        with open_weights(path) as file:
            names = {key: rename(key) for key in file.keys()}  # noqa: SIM118 - a file is no dict
            tensors |= {new: file.get_tensor(key) for key, new in names.items() if new}
    return tensors


def decoder_name(name: str) -> str | None:
    """The name as it is; None for tables of old checkpoints that follow from the configuration."""
    return None if name.endswith("rotary_emb.inv_freq") else name


def refuse_other_shapes(shapes: Shapes, config: ArlowConfig, place: Path) -> None:
    """Raises CheckpointError unless these are the tensors of the decoder that the configuration describes."""
    if config.num_hidden_layers > len(shapes):  # which would take long to build
        raise CheckpointError(
            f"{place}: {config.num_hidden_layers:,} layers are said and there are only {len(shapes):,} tensors; copy "
            "or download it again"
        )
    with torch.device("meta"):
        model = ArlowForCausalLM(config)
    missing, unknown, misshaped = other_tensors(model, shapes)
    listed = [f"{name} ({list(shapes[name])}, not {list(shape)})" for name, shape in misshaped.items()]
    wrong = {"missing": missing, "that Llama does not have": unknown, "of another shape": listed}
    if any(wrong.values()):
        faults = "; ".join(f"{len(names):,} tensors {kind}: {named(names)}" for kind, names in wrong.items() if names)
        raise CheckpointError(f"{place}: the weights are not those of its configuration, {faults}")


def without_tied_head(tensors: Tensors, config: ArlowConfig, place: Path) -> Tensors:
    """The tensors without a tied head. Raises CheckpointError for one that differs from the embedding."""
    if not config.tie_word_embeddings or HEAD not in tensors:
        return tensors
    if not torch.equal(tensors[HEAD], tensors[EMBEDDING]):
        raise CheckpointError(
            f"{place}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}; set it to what is meant"
        )
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def common_dtype(tensors: Tensors) -> torch.dtype:
    """The narrowest dtype that holds every value."""
    dtype = next(iter(tensors.values())).dtype
    for tensor in tensors.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def with_rows(tensors: Tensors, rows: int) -> Tensors:
    """The tensors, with embedding and head widened to `rows` rows; old rows keep their bytes.

    A new row is the mean of the others, so that its logit is the mean of all and never the largest (Hewitt, 2021,
    "Initializing New Word Embeddings for Pretrained Language Models").
    """
    widened = dict(tensors)
    for name in (EMBEDDING, HEAD):
        if name in tensors and len(tensors[name]) < rows:
            old = tensors[name]
            mean = old.mean(0, dtype=torch.float32).to(old.dtype)
            widened[name] = torch.cat([old, mean.expand(rows - len(old), -1)])
    return widened


def rows_of(tensors: Tensors, index: Tensor) -> Tensors:
    """Returns the tensors, with the rows of embedding and head that `index` names, in its order."""
    return {name: tensor[index] if name in (EMBEDDING, HEAD) else tensor for name, tensor in tensors.items()}

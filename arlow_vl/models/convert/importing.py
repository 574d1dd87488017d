"""A Llama-shaped checkpoint becomes an Arlow text model: the same tensors, the same ids, and `<image>` behind them."""

import copy
from collections.abc import Iterator
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.chat_arlow import IMAGE_TOKEN
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.convert.added_tokens import Additions, with_additions
from arlow_vl.models.convert.gguf_files import open_gguf
from arlow_vl.models.convert.llama_config import arlow_config
from arlow_vl.models.convert.llama_folders import open_folder
from arlow_vl.models.convert.sources import Source
from arlow_vl.models.convert.tensors import common_dtype, refuse_other_shapes, with_rows, without_tied_head
from arlow_vl.models.convert.unread_settings import drop_unread
from arlow_vl.models.folder_files import refuse_full_folder
from arlow_vl.models.folder_writing import save_folder
from arlow_vl.models.folders import one_sentence
from arlow_vl.printing import number_of
from vision.near_names import did_you_mean_file


def import_model(source: Path, out: Path, *, cross_attention_interval: int | None = None) -> list[str]:
    """Writes the text model with its tokenizer into the folder `out`, and returns sentences about it.

    The vision stage will put a cross-attention block in front of every `cross_attention_interval`-th layer.

    Raises:
        CheckpointError: the source is damaged, or nothing that Arlow's decoder can be.
        ValueError: `out` is not empty, or the interval is larger than the decoder is deep.
        ResourceError: `out` cannot be written.
    """
    refuse_full_folder(out)
    opened = open_source(source)
    changes = {"cross_attention_interval": cross_attention_interval}
    config = arlow_config(opened.config, opened.place, **changes, pad_token_id=None)
    refuse_other_shapes(opened.shapes, config, opened.place)
    tokenizer, additions = with_additions(opened.read_tokenizer(), config.vocab_size, source)
    config = arlow_config(
        opened.config,
        opened.place,
        **changes,
        vocab_size=additions.rows,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id if config.bos_token_id is None else config.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if config.eos_token_id is None else config.eos_token_id,
    )
    tensors = with_rows(without_tied_head(opened.read_tensors(), config, opened.place), additions.rows)
    dtype = common_dtype(tensors)
    with one_sentence(source, "the weights"):
        model = ArlowForCausalLM.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    model.generation_config, remarks = generation_config_of(opened)
    save_folder((model, tokenizer), out)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    size = f"{number_of(config.num_hidden_layers, 'layer')}, {parameters:,} parameters"
    size += f" in {str(dtype).removeprefix('torch.')}"
    return [f"{out}: {size}, from {source}", *sentences_about(additions, tokenizer), *remarks]


def open_source(path: Path) -> Source:
    """The checkpoint at `path`. Raises CheckpointError if there is none, or a damaged one."""
    if path.is_file():
        return open_gguf(path)
    if not path.is_dir():
        advice = did_you_mean_file(path, "name a folder with Llama's config.json, or a GGUF file")
        raise CheckpointError(f"{path} does not exist; {advice}")
    return open_folder(path)


def generation_config_of(source: Source) -> tuple[GenerationConfig, list[str]]:
    """The source's settings without those that nothing reads, and a sentence about these.

    Many published files give a temperature and do not sample. transformers reads them, but saves none in which anything
    was changed, and every vision stage adds tokens that end a text.

    Raises:
        CheckpointError: the settings contradict each other in another way.
    """
    if source.generation_config is None:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return GenerationConfig(**{name: source.config.get(name) for name in names}), []
    settings = copy.deepcopy(source.generation_config)
    values = drop_unread(settings)
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise CheckpointError(
            f"{source.place.with_name('generation_config.json')}: {' '.join(str(error).split()):.400}"
        ) from error
    named = ", ".join(f"{name} {value!r}" for name, value in values.items())
    reason = "what reads that (sampling, or beams) is off"
    return settings, [f"generation_config.json: {named} left out, as {reason}"] if values else []


def sentences_about(additions: Additions, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Sentences on the tokens and rows that are new, and on those of the source that are used."""
    vocab = tokenizer.get_vocab()
    old = len(vocab) - len(additions.tokens)
    named = ", ".join(f"{token} ({index:,})" for token, index in additions.tokens.items())
    yield f"tokenizer: {old:,} tokens keep their ids; added behind them: {named or 'nothing, as it has all'}"
    if IMAGE_TOKEN not in additions.tokens:
        yield f"{IMAGE_TOKEN} is the tokenizer's own special token {vocab[IMAGE_TOKEN]:,}"
    new = [(token, index) for token, index in additions.tokens.items() if index >= additions.vocab_size]
    if new:
        rows = ", ".join(f"{index:,} for {token}" for token, index in new)
        yield f"new embedding rows, each the mean of the others: {rows}"
    elif additions.tokens:
        yield "no embedding row is new: rows without a token were left for them"
    if "bos_token" in additions.roles:
        yield f"documents begin with {tokenizer.bos_token}, as the tokenizer has no bos_token"
    if additions.roles.get("pad_token") is not None:
        yield f"padding is {tokenizer.pad_token}, as the source pads with what ends a text"
    if "chat_template" in additions.roles:
        yield "the source has no chat template; Arlow's is taken, which nothing was trained with yet"
    else:
        yield "chat template: the source's own"

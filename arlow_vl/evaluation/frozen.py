"""Verifies that the vision stage left the text model unchanged: its tensors' bytes, its logits' bits, its words.

`arlow verify-frozen` prints the checks of `verify_frozen`.
"""

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import GenerationConfig, TokenizersBackend

from arlow_vl.data.prompts import stop_token_ids
from arlow_vl.evaluation.held_out_text import HeldOut, Rows, describe_text, measure_text, read_rows
from arlow_vl.models.arlow.chat_arlow import CHAT_TEMPLATE, drop_quotes
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration, settings_of_text
from arlow_vl.models.folder_hashes import Hashes, hash_tensor, hash_text_tensors
from arlow_vl.models.folders import check_folder, load_tokenizer, load_weights, named
from arlow_vl.printing import number_of

# The exported text model has no cross-attention blocks; the other keys are bookkeeping.
NOT_COMPARED = {"use_cross_attention", "architectures", "transformers_version", "_name_or_path", "_from_model_config"}
PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")  # of a tokenizer.json
LONGEST_VALUE = 60
"""Most characters of a changed value that is shown."""


@dataclass(frozen=True)
class Check:
    """A claim about a vision-language checkpoint, and the finding."""

    claim: str
    holds: bool
    found: str
    """The things that were compared, or the first that differ."""


@dataclass(frozen=True)
class Probe:
    """Random text that both models read; to the text model `<image>` tokens are ordinary tokens."""

    input_ids: Tensor
    position_ids: Tensor
    image_token_id: int
    pixel_values: Tensor

    @property
    def is_image(self) -> Tensor:
        return self.input_ids == self.image_token_id

    @property
    def untouched(self) -> Tensor:
        """(B, T) bool, True for tokens with no image at or before them in their own document."""
        documents = (self.position_ids == 0).cumsum(1)
        same_document = documents[:, :, None] == documents[:, None]
        return ~(same_document & self.is_image[:, None]).tril().any(-1)


def verify_frozen(text_checkpoint: Path, checkpoint: Path, *, text: Path | None = None) -> list[Check]:
    """Compares a vision-language model with the text model that it was built from, with one in memory at a time.

    With `text`, also compares them on held-out text, encoded by the text model's tokenizer.

    Raises:
        CheckpointError: a folder does not hold a usable model of its kind.
        DataError: the text cannot be read.
    """
    text_config = check_folder(text_checkpoint, "arlow", may_be_quantised=False)
    config = check_folder(checkpoint, "arlow_vl", may_be_quantised=False)
    tokenizer, its = (
        load_tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
        for folder in (text_checkpoint, checkpoint)
    )
    rows = read_rows(text, tokenizer or load_tokenizer(text_checkpoint)) if text else None
    original = hash_text_tensors(text_checkpoint)
    probes = make_probes(text_config, config)
    text_model = load_weights(ArlowForCausalLM, text_checkpoint)
    expected, dtype = [logits_of(text_model, probe) for probe in probes], text_model.dtype
    before = measure_text(text_model, tokenizer, rows) if rows else None
    settings = text_model.generation_config
    del text_model
    gc.collect()
    model = load_weights(ArlowVLForConditionalGeneration, checkpoint, dtype=dtype)  # a stage may have saved a wider one
    return [
        compare_tensors("every frozen tensor has its SHA-256", original, hash_text_tensors(checkpoint, original)),
        *compare_logits(model, probes, expected),
        compare_export(model, original, text_config),
        compare_words((tokenizer, settings), (its, model.generation_config)),
        *([compare_text(model, tokenizer, rows, before)] if rows and before else []),
    ]


def compare_text(model: ArlowVLForConditionalGeneration, tokenizer: Any, rows: Rows, before: HeldOut) -> Check:
    after = measure_text(model, tokenizer, rows)
    found = describe_text(before, after, rows)
    return Check("on held-out text without images, no bit of any logit changes", before == after, found)


def compare_tensors(claim: str, original: Hashes, current: Hashes) -> Check:
    wrong = [f"{name} is missing" for name in original if name not in current]
    wrong += [f"{name} is not in the text checkpoint" for name in current if name not in original]
    for name, (dtype, digest) in original.items():
        if name in current and current[name] != (dtype, digest):
            wrong.append(name if current[name][0] == dtype else f"{name} ({current[name][0]}, was {dtype})")
    if not wrong:
        return Check(claim, True, f"{len(original)} tensors")
    return Check(claim, False, f"{len(wrong)} of {len(original)} differ: {named(wrong)}")


def make_probes(text_config: ArlowConfig, config: Any) -> list[Probe]:
    """Returns a batch of three rows and a packed row of three documents; the second row or document has no image."""
    image, size = config.image_token_id, config.vision_config.input_size
    vocab_size = min(text_config.vocab_size, config.text_config.vocab_size)
    dice = torch.Generator().manual_seed(0)
    probes = []
    for positions, images in (
        ([list(range(24))] * 3, [(0, 9), (2, 5), (2, 6), (2, 15)]),
        ([[*range(8), *range(9), *range(7)]], [(0, 11), (0, 14)]),
    ):
        position_ids = torch.tensor(positions)
        input_ids = torch.randint(vocab_size, position_ids.shape, generator=dice)
        input_ids[input_ids == image] = image - 1 if image else 1
        for row, token in images:
            input_ids[row, token] = image
        pixel_values = torch.randn(len(images), 3, *size, generator=dice)
        probes.append(Probe(input_ids, position_ids, image, pixel_values))
    return probes


@torch.no_grad()
def logits_of(model: Any, probe: Probe, *, look: bool = False, instead: dict | None = None) -> Tensor:
    """Computes the logits of a probe: with its images if `look`, and with the parameters in `instead` replaced."""
    settings = {"position_ids": probe.position_ids, "use_cache": False}
    if look:
        settings |= {"input_ids": probe.input_ids, "pixel_values": probe.pixel_values}
    else:  # the model refuses an `<image>` id without its image, but not its embedding
        settings["inputs_embeds"] = model.get_input_embeddings()(probe.input_ids)
    return functional_call(model, instead or {}, (), settings).logits


def compare_logits(model: ArlowVLForConditionalGeneration, probes: list[Probe], expected: list[Tensor]) -> list[Check]:
    """Compares with closed gates and with the gates as they are; `expected` are the text model's logits by probe."""
    everything = [torch.ones_like(probe.is_image) for probe in probes]
    untouched = [probe.untouched for probe in probes]
    opening = max(abs(gate) for gates in model.gate_openings().values() for gate in gates)
    shut = {name: torch.zeros_like(gate) for name, gate in model.named_parameters() if name.endswith("_gate")}
    closed = [logits_of(model, probe, look=True, instead=shut) for probe in probes]
    blind, seeing = ([logits_of(model, probe, look=look) for probe in probes] for look in (False, True))
    claim = f"before an image and in rows without one, no bit changes (gates open up to {opening:.2g})"
    return [
        compare_bits("with closed gates, images change no bit of any logit", expected, closed, everything),
        compare_bits("without images, no bit of any logit changes", expected, blind, everything),
        compare_bits(claim, expected, seeing, untouched),
    ]


def compare_bits(claim: str, expected: list[Tensor], found: list[Tensor], where: list[Tensor]) -> Check:
    """Compares logits bit for bit, so that -0 differs from 0 and a NaN equals itself."""
    differing, tokens, largest = 0, 0, 0.0
    for was, now, mask in zip(expected, found, where, strict=True):
        if was.shape != now.shape or was.dtype != now.dtype:
            return Check(claim, False, f"logits are {list(now.shape)} {now.dtype}, were {list(was.shape)} {was.dtype}")
        was, now = was[mask], now[mask]
        differs = (was.contiguous().view(torch.uint8) != now.contiguous().view(torch.uint8)).any(-1)
        tokens += len(differs)
        differing += int(differs.sum())
        largest = max(largest, float((was - now).abs().max()))
    if not differing:
        return Check(claim, True, number_of(tokens, "token"))
    return Check(
        claim, False, f"logits of {differing:,} of {number_of(tokens, 'token')} differ, by up to {largest:.2g}"
    )


def compare_export(model: ArlowVLForConditionalGeneration, original: Hashes, text_config: ArlowConfig) -> Check:
    claim = "the exported text model has the original tensors and configuration"
    text_model = model.text_model()
    exported = {name: hash_tensor(tensor) for name, tensor in text_model.named_parameters()}  # tied ones once
    check = compare_tensors(claim, original, exported)
    changes = changes_between(text_config.to_dict(), text_model.config.to_dict())
    return Check(claim, False, f"the configuration differs: {named(changes)}") if check.holds and changes else check


def changes_between(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names the values that differ, with both of them where they are short."""
    changes = []
    for key in was | now:
        values = f"{key} {now.get(key)!r}, was {was.get(key)!r}"
        if key not in NOT_COMPARED and was.get(key) != now.get(key):
            changes.append(values if len(values) <= len(key) + LONGEST_VALUE else key)
    return changes


def compare_words(
    text: tuple[TokenizersBackend | None, GenerationConfig], vision: tuple[TokenizersBackend | None, GenerationConfig]
) -> Check:
    """Compares the tokenizers and the settings of generation, which make of the same logits the same text.

    The vision stage changes two things on purpose: its tokenizer drops the quotes of chats, as Arlow's own always does,
    and a text also ends where the chat template ends an answer.
    """
    (tokenizer, settings), (its, its_settings) = text, vision
    ends, its_ends = (as_list(of.eos_token_id) for of in (settings, its_settings))
    allowed = set() if tokenizer is None or its_ends == ends else set(stop_token_ids(tokenizer)) - set(ends)
    was = words_of(tokenizer) | settings.to_dict() | {"ends of a text": ends}
    now = words_of(its) | settings_of_text(its_settings).to_dict()
    now["ends of a text"] = [end for end in its_ends if end not in allowed]
    changes = changes_between(was, now)
    claim = "tokenizer, chat template and settings of generation are as before"
    tokens = 0 if tokenizer is None else len(tokenizer)
    return Check(claim, not changes, f"these differ: {named(changes)}" if changes else number_of(tokens, "token"))


def words_of(tokenizer: TokenizersBackend | None) -> dict[str, Any]:
    """All of a tokenizer that decides ids, text and chats."""
    if tokenizer is None:
        return {}
    drop_quotes(tokenizer.backend_tokenizer)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {name: spec[name] for name in PARTS} | {f"model.{key}": value for key, value in spec["model"].items()}
    parts |= {name: getattr(tokenizer, name) for name in ("split_special_tokens", "clean_up_tokenization_spaces")}
    return parts | tokenizer.special_tokens_map | {"chat_template": tokenizer.chat_template or CHAT_TEMPLATE}


def as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]

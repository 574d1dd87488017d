"""Tiny Llama checkpoints with tokenizers of other makes, as their own tools save them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, TokenizersBackend

from arlow_vl.models.convert.gguf_tokens import SPLITS
from tests.data.test_prompts import LLAMA, SMOL
from tests.tiny_runs import sentences

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


def smol_tokenizer(vocab_size: int = 320) -> TokenizersBackend:
    """As SmolLM2's: byte-level BPE with single digits, specials among the first ids, bos begins and eos ends a turn."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    backend.train_from_iterator(sentences(50), trainer)
    names = {"bos_token": special[1], "eos_token": special[2], "unk_token": special[0], "pad_token": special[2]}
    return TokenizersBackend(tokenizer_object=backend, chat_template=SMOL, **names)


def llama3_tokenizer() -> TokenizersBackend:
    """As Llama 3's: its regex, bos put in front, specials behind the vocabulary, no padding token."""
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = Tokenizer(BPE())
    split = pre_tokenizers.Split(Regex(SPLITS["llama-bpe"]), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        sentences(50), BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    )
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    bos = (names[0], backend.token_to_id(names[0]))
    backend.post_processor = processors.TemplateProcessing(single=f"{names[0]} $A", special_tokens=[bos])
    return TokenizersBackend(tokenizer_object=backend, bos_token=names[0], eos_token=names[3], chat_template=LLAMA)


def sentencepiece_tokenizer() -> TokenizersBackend:
    """As Llama 2's and TinyLlama's: bytes for unknown characters, a space and bos in front, no padding, no chat."""
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trained.pre_tokenizer = pre_tokenizers.Split(
        "\u2581", "merged_with_next"
    )  # as sentencepiece learns, a word at a time
    trainer = BpeTrainer(
        vocab_size=420, special_tokens=[*special, *byte_tokens], show_progress=False, max_token_length=12
    )
    trained.train_from_iterator(sentences(50), trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    backend = Tokenizer(BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = trained.normalizer
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return TokenizersBackend(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"smol": smol_tokenizer, "llama3": llama3_tokenizer, "sentencepiece": sentencepiece_tokenizer}


def write_llama(
    folder: Path, tokenizer: TokenizersBackend | None = None, *, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A random Llama with its tokenizer and settings of generation."""
    torch.manual_seed(0)
    tokenizer = tokenizer or smol_tokenizer()
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    fields = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, "initializer_range": 0.2, **ids, **SIZES}
    model = LlamaForCausalLM(LlamaConfig(**fields | changes)).to(dtype)
    model.generation_config.update(eos_token_id=[ids["eos_token_id"], 0], repetition_penalty=1.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

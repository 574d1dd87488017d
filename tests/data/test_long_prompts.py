"""Conversations of many turns: what is tokenised once is what each prompt alone would be."""

import random
from functools import partial

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import TokenizersBackend

from arlow_vl.data.prompts import IGNORED, encode_messages, encode_prompt, encode_rendered
from arlow_vl.models.arlow.chat_arlow import CHAT_TEMPLATE, IMAGE_TOKEN, control_tokens, render_chat
from arlow_vl.models.arlow.tokenization_arlow import ArlowTokenizer
from tests.data.test_prompts import BYTES, LLAMA, SMOL, llama, marks_tokenizer, smol
from tests.models.convert.made_llamas import llama3_tokenizer, sentencepiece_tokenizer, smol_tokenizer
from tests.tiny_runs import tiny_tokenizer

ATOMS = [
    "the cat",
    " ",
    "\n",
    "\n\n",
    "\t",
    "a",
    "é",
    "中",
    "🎉",
    "12",
    "<image>",
    "<|im_end|>",
    "</s>",
    "<think>",
    "[",
    "'s",
]

LINE = "+ '\\n'"  # between a role and what it says


def with_template(make, template: str):
    tokenizer = make()
    tokenizer.chat_template = template
    return tokenizer


def first_alone(scheme: str) -> TokenizersBackend:
    """Words of which the first of a text, or each behind a control token, gets a space."""
    tokenizer = sentencepiece_tokenizer()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return tokenizer


def swallowing() -> TokenizersBackend:
    """Ends of turns that take the white space beside them."""
    tokenizer = smol_tokenizer()
    tokenizer.add_tokens(AddedToken("<|im_end|>", lstrip=True, rstrip=True, normalized=False, special=True))
    return tokenizer


def line_ends() -> TokenizersBackend:
    """Two line ends are a token where nothing follows, and two in front of a word."""
    backend = Tokenizer(BPE(vocab=BYTES | {"ĊĊ": len(BYTES)}, merges=[("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<image>"])
    tokenizer = TokenizersBackend(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    tokenizer.chat_template = SMOL.replace("assistant\\n", "assistant\\n\\n").replace(LINE, LINE * 2)
    return tokenizer


def without_bytes() -> TokenizersBackend:
    """Unknown characters are the control token <unk>, which no tokenizer cuts at."""
    backend = Tokenizer(BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<image>"]
    backend.train_from_iterator(["the cat a 12 's [ USER: ASSISTANT:"] * 9, BpeTrainer(special_tokens=special))
    return TokenizersBackend(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def special_bytes() -> TokenizersBackend:
    """The pieces of unknown characters are control tokens by themselves."""
    tokenizer = sentencepiece_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<0x{byte:02X}>" for byte in range(256)]})
    return tokenizer


# No control token stands between a question and its answer.
VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{% else %} ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
TOKENIZERS = {
    "without bytes": partial(with_template, without_bytes, VICUNA),
    "special bytes": partial(with_template, special_bytes, VICUNA),
    "arlow": tiny_tokenizer,
    "slow": partial(with_template, ArlowTokenizer, CHAT_TEMPLATE),
    "bytes": smol,
    "bytes with bos": llama,
    "smol": smol_tokenizer,
    "llama3": llama3_tokenizer,
    "sentencepiece": partial(with_template, sentencepiece_tokenizer, CHAT_TEMPLATE.replace("<|im_end|>", "</s>")),
    "first": partial(with_template, partial(first_alone, "first"), LLAMA.replace("<|eot_id|>", "</s>")),
    "always": partial(with_template, partial(first_alone, "always"), LLAMA.replace("<|eot_id|>", "</s>")),
    "joined": partial(with_template, smol_tokenizer, SMOL.replace("assistant\\n' }}", "assistant\\n\\n' }}")),
    "lines": line_ends,
    "swallowing": swallowing,
    "normalized": partial(marks_tokenizer, normalized=True, normalizer=normalizers.Prepend(" ")),
    "not special": partial(marks_tokenizer, normalized=False, normalizer=normalizers.Prepend(" ")),
}


def by_definition(tokenizer, messages) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation whose prompts are each tokenised by itself."""
    ids = encode_rendered(tokenizer, render_chat(tokenizer, messages, add_generation_prompt=False))
    labels, image = [IGNORED] * len(ids), tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    ends = set(tokenizer.convert_tokens_to_ids(list(control_tokens(tokenizer)))) - {image}
    for turn in (place for place, message in enumerate(messages) if message["role"] == "assistant"):
        prompt = encode_prompt(tokenizer, messages[:turn])
        if ids[: len(prompt)] != prompt:
            raise ValueError("writes another prompt")
        end = next((place for place in range(len(prompt), len(ids)) if ids[place] in ends), None)
        if end is None:
            raise ValueError("writes no special token")
        labels[len(prompt) : end + 1] = [IGNORED if i == image else i for i in ids[len(prompt) : end + 1]]
    return ids, labels


def drawn(draw: random.Random) -> list[dict]:
    def text() -> str:
        return "".join(draw.choices(ATOMS, k=draw.randint(1, 5)))

    turns = []
    for _ in range(draw.randint(1, 4)):
        images = [{"type": "image"}] * draw.randint(0, 2)
        turns.append({"role": "user", "content": [*images, {"type": "text", "text": text()}]})
        turns.append({"role": "assistant", "content": text()})
    return turns


def outcome(encode, *arguments):
    try:
        return encode(*arguments)
    except ValueError as error:
        return "prompt" if "writes another prompt" in str(error) else "no end"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_labels_are_those_of_prompts_tokenised_one_by_one(name):
    tokenizer, draw = TOKENIZERS[name](), random.Random(0)
    outcomes = []
    for _ in range(40):
        messages = drawn(draw)
        expected = outcome(by_definition, tokenizer, messages)
        assert outcome(encode_messages, tokenizer, messages) == expected, messages
        outcomes.append(expected)
    assert any(isinstance(one, tuple) for one in outcomes)
    assert name not in ("joined", "lines") or "prompt" in outcomes


LONG = [{"role": role, "content": "the cat sat on a mat"} for _ in range(40) for role in ("user", "assistant")]


def test_a_conversation_of_many_turns_is_tokenised_once(monkeypatch):
    tokenizer, texts = tiny_tokenizer(), []
    encode = TokenizersBackend._encode_plus
    monkeypatch.setattr(
        TokenizersBackend, "_encode_plus", lambda self, text, *a, **k: texts.append(text) or encode(self, text, *a, **k)
    )
    encode_messages(tokenizer, LONG)
    whole, *prompts = texts
    assert len(prompts) == 40 and max(map(len, prompts)) < 40 < len(whole)


def test_turns_that_begin_behind_the_cut_are_not_looked_at():
    refuses = "{% if add_generation_prompt and messages | length > 9 %}{{ raise_exception('late') }}{% endif %}"
    tokenizer = with_template(smol, refuses + SMOL)
    ids, labels = encode_messages(smol(), LONG, max_length=200)
    assert encode_messages(tokenizer, LONG, max_length=200) == (ids, labels)
    with pytest.raises(ValueError, match="late"):
        encode_messages(tokenizer, LONG)

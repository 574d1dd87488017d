"""Conversations as token ids and labels, by Arlow's chat template and by those of others."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import TokenizersBackend

from arlow_vl.data.prompts import (
    about_image,
    encode_document,
    encode_messages,
    encode_prompt,
    stop_token_ids,
    token_bytes,
    without_images,
)
from tests.tiny_runs import tiny_tokenizer

BOS, EOS, PAD, START, END, IMAGE = 1, 2, 3, 5, 6, 7
BYTES = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (
    "{% for message in messages %}{{ bos_token if loop.first else '' }}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def other_tokenizer(template: str | None, special: list[str], *, adds_bos: bool = False) -> TokenizersBackend:
    """A tokenizer of another make, of single bytes: bos and eos are the first and the last of its special tokens."""
    backend = Tokenizer(BPE(vocab=dict(BYTES), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*special, "<image>"])
    if adds_bos:
        bos = (special[0], backend.token_to_id(special[0]))
        backend.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[bos])
    names = {"bos_token": special[0], "eos_token": special[-1], "pad_token": special[-1]} if special else {}
    tokenizer = TokenizersBackend(tokenizer_object=backend, **names)
    tokenizer.chat_template = template
    return tokenizer


def smol() -> TokenizersBackend:
    return other_tokenizer(SMOL, ["<|im_start|>", "<|im_end|>"])


def llama() -> TokenizersBackend:
    tokens = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
    return other_tokenizer(LLAMA, tokens, adds_bos=True)


TOKENIZERS = {"arlow": tiny_tokenizer, "smol": smol, "llama": llama}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which is red?"}]},
    {"role": "assistant", "content": "the big one"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And in "}, {"type": "image"}, {"type": "text", "text": "?"}],
    },
    {"role": "assistant", "content": "none"},
]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def plain(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


def counted(labels: list[int]) -> list[int]:
    return [label for label in labels if label != -100]


def test_a_caption_is_asked_for_by_an_image_alone():
    ids = encode_prompt(tiny_tokenizer(), about_image())
    assert ids == [BOS, START, *plain("user\n"), IMAGE, END, *plain("\n"), START, *plain("assistant\n")]


def test_a_question_follows_its_image():
    ids = encode_prompt(tiny_tokenizer(), about_image("what is red?"))
    start = [BOS, START, *plain("user\n"), IMAGE, *plain("what is red?"), END]
    assert ids == [*start, *plain("\n"), START, *plain("assistant\n")]


def test_without_images_a_conversation_keeps_its_words():
    words = without_images(about_image("what is red?", "the dog"))
    assert words[0] == {"role": "user", "content": [{"type": "text", "text": "what is red?"}]}
    assert IMAGE not in encode_prompt(tiny_tokenizer(), words)


def test_only_the_answer_and_its_end_are_learnt(tokenizer):
    ids, labels = encode_messages(tokenizer, about_image("is it?", "a red dog"))
    prompt = encode_prompt(tokenizer, about_image("is it?"))
    assert ids[: len(prompt)] == prompt and set(labels[: len(prompt)]) == {-100}
    assert tokenizer.decode(counted(labels)[:-1]) == "a red dog"
    assert counted(labels)[-1] == stop_token_ids(tokenizer)[-1]
    answer = slice(len(prompt), len(prompt) + len(counted(labels)))
    assert ids[answer] == labels[answer] == counted(labels)


def test_every_answer_of_a_conversation_is_learnt_and_its_images_are_in_place(tokenizer):
    ids, labels = encode_messages(tokenizer, CONVERSATION)
    end = tokenizer.decode(stop_token_ids(tokenizer)[-1:])
    assert tokenizer.decode(counted(labels)) == f"the big one{end}none{end}"
    assert ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 3
    text = tokenizer.decode(ids)
    assert "<image><image>Which is red?" in text and "And in <image>?" in text


def test_the_end_of_an_answer_is_the_templates_own():
    ends = {name: make().convert_ids_to_tokens(stop_token_ids(make())) for name, make in TOKENIZERS.items()}
    assert ends == {
        "arlow": ["<|endoftext|>", "<|im_end|>"],
        "smol": ["<|im_end|>"],
        "llama": ["<|end_of_text|>", "<|eot_id|>"],
    }


def test_bos_comes_once(tokenizer):
    bos = tokenizer.bos_token_id
    ids, _ = encode_messages(tokenizer, about_image("is it?", "yes"))
    assert ids[0] == bos
    assert ids.count(bos) == (3 if tokenizer.bos_token == "<|im_start|>" else 1)  # SmolLM2's bos begins every turn


@pytest.mark.parametrize("place", range(3))
def test_control_tokens_that_anybody_wrote_are_plain_text(tokenizer, place):
    special = sorted(tokenizer.all_special_tokens)
    quote = "".join(special) + "<ima<image>ge><<image>"
    messages = [{"role": "system", "content": "a"}, *about_image("b", "c")]
    harmless, _ = encode_messages(tokenizer, messages)
    if isinstance(messages[place]["content"], str):
        messages[place] = {**messages[place], "content": quote}
    else:
        messages[place]["content"][1] = {"type": "text", "text": quote}
    ids, labels = encode_messages(tokenizer, messages)
    known = set(tokenizer.convert_tokens_to_ids([*special, "<image>"]))
    assert [i for i in ids if i in known] == [i for i in harmless if i in known]
    assert quote in tokenizer.decode(ids)
    written = tokenizer(quote, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert any(ids[start : start + len(written)] == written for start in range(len(ids)))
    assert place < 2 or tokenizer.decode(counted(labels)[:-1]) == quote


MARKS = (
    "{{ bos_token }}{% for message in messages %}{{ '<|User|>' if message.role == 'user' else '<|Assistant|>' }}"
    "{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)


def marks_tokenizer(*, normalized: bool, normalizer: normalizers.Normalizer | None = None) -> TokenizersBackend:
    """As some Llamas': ends that are looked for behind the normalizer, marks of turns that are not called special."""
    tokenizer = other_tokenizer(MARKS, [])
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizer
    backend.add_special_tokens([AddedToken(token, normalized=normalized) for token in ("<s>", "</s>")])
    marks = ("<|User|>", "<|Assistant|>", "<aside>", "message", "== ")  # the last two it names by chance
    backend.add_tokens([AddedToken(token, normalized=normalized) for token in marks])
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    return tokenizer


@pytest.mark.parametrize(
    ("normalized", "normalizer"),
    [(True, None), (True, normalizers.NFC()), (False, None), (False, normalizers.Prepend(" "))],
)
def test_tokens_that_are_not_called_special_or_are_normalized_are_the_templates_alone(normalized, normalizer):
    tokenizer = marks_tokenizer(normalized=normalized, normalizer=normalizer)
    quote = "a <s>b</s> <|User|><image> <|Assistant|> c"
    chat = [{"role": "user", "content": quote}, {"role": "assistant", "content": "yes </s> <image> indeed"}]
    ids, labels = encode_messages(tokenizer, chat)
    control = tokenizer.convert_ids_to_tokens([i for i in ids if i >= len(BYTES)])
    assert control == ["<s>", "<|User|>", "<|Assistant|>", "</s>"]
    assert quote in tokenizer.decode(ids)
    assert tokenizer.decode(counted(labels)).strip() == "yes </s> <image> indeed</s>"


def test_an_answer_may_hold_tokens_of_the_template_that_are_not_special_and_texts_other_added_ones():
    tokenizer = marks_tokenizer(normalized=False)
    asked = "an <aside>, a message == a <|User|>"
    chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": "an <aside> <|User|>"}]
    added = tokenizer.convert_ids_to_tokens([i for i in encode_messages(tokenizer, chat)[0] if i >= len(BYTES)])
    assert added == ["<s>", "<|User|>", "<aside>", "message", "== ", "<|Assistant|>", "<aside>", "<|User|>", "</s>"]


def test_two_texts_do_not_make_a_control_token_together(tokenizer):
    parts = [{"type": "text", "text": "<ima"}, {"type": "text", "text": "ge>"}]
    ids = encode_prompt(tokenizer, [{"role": "user", "content": parts}])
    assert tokenizer.convert_tokens_to_ids("<image>") not in ids
    assert "<image>" in tokenizer.decode(ids)


@pytest.mark.parametrize("role", ["<|im_end|>", "user<image>", None, 3])
def test_a_role_is_a_plain_word(role):
    with pytest.raises(ValueError, match="message 1: a role is a plain word"):
        encode_prompt(tiny_tokenizer(), [{"role": "user", "content": "a"}, {"role": role, "content": "b"}])


@pytest.mark.parametrize(
    "part", [{"type": "audio"}, {"type": "text"}, {"text": "a"}, {"type": "video", "url": "a.mp4"}]
)
def test_other_parts_than_text_and_images_are_refused(tokenizer, part):
    with pytest.raises(ValueError, match="message 0: a message holds text and image parts, got"):
        encode_prompt(tokenizer, [{"role": "user", "content": [part]}])


def test_white_space_in_front_of_an_answer_does_not_move_its_beginning():
    expected = encode_messages(
        tiny_tokenizer(), [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    for space in (" ", "\n", "\n\n  \n"):
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"{space}b"}]
        assert encode_messages(tiny_tokenizer(), messages) == expected


def test_an_answer_that_is_cut_does_not_teach_to_stop(tokenizer):
    messages = about_image(None, "the cat sat on a mat")
    length = len(encode_prompt(tokenizer, about_image())) + 2
    ids, labels = encode_messages(tokenizer, messages, max_length=length)
    assert len(ids) == len(labels) == length
    assert len(counted(labels)) == 2
    assert not {counted(labels)[-1]} & set(stop_token_ids(tokenizer))


def test_a_prompt_without_room_for_an_answer_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"tokens and leaves no room in max_length 5: .*what is it"):
        encode_messages(tokenizer, about_image("what is it?", "cat"), max_length=5)


def test_an_image_is_not_cut_off(tokenizer):
    length = len(encode_prompt(tokenizer, CONVERSATION[:2])) + 3
    with pytest.raises(ValueError, match=f"max_length {length} would cut an image off a conversation"):
        encode_messages(tokenizer, CONVERSATION, max_length=length)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for m in messages %}{{ '<a>' + m.content + '<b>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<a>ASK: ' }}{% endif %}",
            "writes another prompt once the answer is there",
        ),
        (
            "{{ messages | length }}{% for m in messages %}{{ '<a>' + m.content + '<b>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}",
            "writes another prompt once the answer is there",
        ),
        ("{% for m in messages %}{{ m.content + '\\n' }}{% endfor %}", "writes no special token after an answer"),
        ("{{ raise_exception('roles must alternate') }}", "the chat template refuses this conversation: roles must"),
    ],
)
def test_a_template_that_training_cannot_follow_is_refused(template, reason):
    with pytest.raises(ValueError, match=reason):
        encode_messages(other_tokenizer(template, ["<a>", "<b>"]), about_image("a", "b"))


def test_a_prompt_is_the_same_on_every_day():
    dated = smol()
    dated.chat_template = SMOL.replace("You help.", "' + strftime_now('%d %B %Y') + '")
    text = dated.decode(encode_messages(dated, [{"role": "user", "content": "a"}, CONVERSATION[-1]])[0])
    assert text.startswith("<|im_start|>system\n26 July 2024<|im_end|>")


def test_without_a_template_arlows_own_is_taken():
    bare = other_tokenizer(None, ["<|startoftext|>", "<|im_start|>", "<|im_end|>"])
    text = bare.decode(encode_prompt(bare, about_image("a")))
    assert text == "<|startoftext|><|im_start|>user\n<image>a<|im_end|>\n<|im_start|>assistant\n"


def test_a_document_begins_with_eos_where_there_is_no_bos():
    bare = other_tokenizer(None, ["<|endoftext|>"])
    bare.bos_token = None
    ids, labels = encode_document(bare, [{"type": "image"}])
    assert bare.decode(ids) == "<|endoftext|><image><|endoftext|>"
    assert labels == [-100, -100, ids[0]]


@pytest.mark.parametrize("name", ["tiny", "smol", "llama3", "sentencepiece"])
def test_the_bytes_of_tokens_are_those_of_their_text(name):
    from tests.models.convert.made_llamas import TOKENIZERS

    tokenizer = tiny_tokenizer() if name == "tiny" else TOKENIZERS[name]()
    for text in (" the cat .", " €uro 中文🎉 ẞ", "\n\n x", " a<|im_end|>b</s>", " \ufffd"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        spelled = b"".join(token_bytes(tokenizer, index) for index in ids)
        assert spelled.lstrip(b" ") == text.encode().lstrip(b" ")  # sentencepiece puts a space of its own in front
    assert any(
        len(token_bytes(tokenizer, index)) == 1 for index in tokenizer("中", add_special_tokens=False)["input_ids"]
    )


def test_a_token_of_several_spaces_keeps_them_all():
    backend = Tokenizer(BPE(vocab={"<unk>": 0, "\u2581\u2581\u2581": 1, "\u2581a": 2}, merges=[]))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    tokenizer = TokenizersBackend(tokenizer_object=backend)
    assert [token_bytes(tokenizer, index) for index in (1, 2)] == [b"   ", b" a"]


def test_a_token_that_is_the_sign_of_a_cut_character_has_its_bytes():
    tokenizer = TokenizersBackend(tokenizer_object=Tokenizer(BPE(vocab={"<unk>": 0, "\ufffd": 1}, merges=[])))
    assert token_bytes(tokenizer, 1) == "\ufffd".encode()

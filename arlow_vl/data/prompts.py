"""What the model is asked, as text and as token ids; training and evaluation both build their prompts here."""

IMAGE = "<image>"
CAPTION_PROMPT = IMAGE
IGNORED = -100


def question_prompt(question: str) -> str:
    return f"{IMAGE}Question: {question}\nAnswer:"


def encode_plain(tokenizer, text: str) -> list[int]:
    """Ids of text that may spell a special token without meaning it."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_prompt(tokenizer, prompt: str) -> list[int]:
    """bos, the id of `<image>` for each `<image>` that the prompt begins with, then plain text."""
    ids = [tokenizer.bos_token_id]
    while prompt.startswith(IMAGE):
        ids.append(tokenizer.convert_tokens_to_ids(IMAGE))
        prompt = prompt.removeprefix(IMAGE)
    return ids + (encode_plain(tokenizer, prompt) if prompt else [])


def encode_example(tokenizer, prompt: str, completion: str, max_length: int) -> tuple[list[int], list[int]]:
    """Ids of prompt, completion and eos, and labels that count the completion and eos only.

    A completion that does not fit is cut and has no eos, for the model should not learn to stop there.

    Raises:
        ValueError: the prompt leaves no room for a completion.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    if len(prompt_ids) >= max_length:
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens and leaves no room in max_length {max_length}: {prompt[:60]!r}"
        )
    completion_ids = [*encode_plain(tokenizer, completion), tokenizer.eos_token_id]
    ids = (prompt_ids + completion_ids)[:max_length]
    return ids, ([IGNORED] * len(prompt_ids) + completion_ids)[:max_length]

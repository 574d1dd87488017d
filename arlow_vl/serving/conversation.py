"""A conversation with a model: its messages and the images that they show."""

from collections.abc import Generator
from contextlib import closing

from arlow_vl.data.samples import Message, Part
from arlow_vl.serving.assistant import Assistant, PreparedImage
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.writing import stream


class Conversation:
    """A chat with a model, turn by turn. A turn that fails leaves it unchanged."""

    def __init__(self, assistant: Assistant, decoding: Decoding) -> None:
        self.assistant, self.decoding = assistant, decoding
        self.waiting: list[PreparedImage] = []
        """Images that the next turn shows."""
        self.messages: list[Message] = []
        self.images: list[PreparedImage] = []

    def show(self, path: str) -> None:
        """Adds an image to the next turn. Raises ImageError, OSError, or ValueError for a text model."""
        self.waiting.append(self.assistant.image(path, name=path))

    def reset(self) -> None:
        self.waiting, self.messages, self.images = [], [], []

    def answer(self, text: str) -> Generator[str, None, None]:
        """Yields pieces of the answer to a turn of the waiting images and a text; "" asks for a caption of the images.

        An answer that is closed before its end is kept as far as it was written.

        Raises:
            ValueError: the turn is empty, or the conversation leaves no room for an answer.
        """
        if not text and not self.waiting:
            raise ValueError("a turn needs some text, or an image")
        parts: list[Part] = [{"type": "image"} for _ in self.waiting]
        parts += [{"type": "text", "text": text}] if text else []
        turn: Message = {"role": "user", "content": parts if self.waiting else text}
        messages, images = [*self.messages, turn], [*self.images, *self.waiting]
        try:
            prompt = self.assistant.chat(messages, images)
        except ValueError as error:
            raise ValueError(f"{error}, or begin anew with /reset" if self.messages else str(error)) from None
        said = ""
        try:
            with closing(stream(self.assistant, prompt, self.decoding)) as pieces:
                for piece in pieces:
                    said += piece
                    yield piece
        except (GeneratorExit, KeyboardInterrupt):
            self._keep(messages, images, said)
            raise
        self._keep(messages, images, said)

    def _keep(self, messages: list[Message], images: list[PreparedImage], said: str) -> None:
        self.messages = [*messages, {"role": "assistant", "content": said}]
        self.images, self.waiting = images, []

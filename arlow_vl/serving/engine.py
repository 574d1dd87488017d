"""Continuous batching: one thread owns the model, and requests join and leave the batch between two tokens.

The method is Orca's (Yu et al., 2022, OSDI 22), over the model's own forward and cache. transformers has it for text
only, in pages that hold no images.
"""

import copy
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from arlow_vl.serving.assistant import Assistant, Prompt
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.encoding import ImageEncoder
from arlow_vl.serving.events import Done, Event, Failed, Fault, Finished, FinishReason, Piece, TokenLogprob
from arlow_vl.serving.jobs import Answer, Job, Work
from arlow_vl.serving.next_token import NextToken, processors_of, refuse_unhonoured
from arlow_vl.serving.refusals import Refusal
from arlow_vl.serving.rows import ReadPrompts, Rows
from arlow_vl.serving.text_stream import TextStream

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 4096  # prompts are read together up to this many tokens, padding included, while running rows wait
MESSAGES: dict[Fault, str] = {
    "late": "the answer was not finished within the time that a request may take; ask for fewer tokens, or later again",
    "stopped": "the server is shutting down and ended this answer; ask again when it is back",
    "model": "the model could not write this answer; the reason is in the server's log",
}


class Busy(RuntimeError):
    """The queue is full."""


class Stopping(RuntimeError):
    """The engine takes no more requests."""


class Engine:
    """Answers prompts. The public methods may be called from any thread."""

    def __init__(self, assistant: Assistant, *, max_batch: int = 16, max_waiting: int = 64) -> None:
        """Raises CheckpointError if the generation config sets an option that the engine cannot honour."""
        refuse_unhonoured(assistant.model.generation_config)
        self._assistant, self._model = assistant, assistant.model.eval()
        self._tokenizer = copy.deepcopy(assistant.tokenizer)  # other threads encode with the assistant's own
        self._stop_ids = assistant.stop_ids
        self.max_batch, self.max_waiting = max_batch, max_waiting
        text_config = self._model.config.get_text_config()
        self._image_token_id = text_config.image_token_id if text_config.use_cross_attention else None
        self._encoder = ImageEncoder(assistant)
        self._rows = Rows(self._model, self._tokenizer.pad_token_id or 0)
        self._running: list[Answer] = []
        self._joining: list[Answer] = []
        """Taken out of the queue, but not running yet."""
        self._waiting: deque[Answer] = deque()
        self._works: deque[Work] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def is_full(self) -> bool:
        return len(self._waiting) + len(self._works) >= self.max_waiting

    @property
    def load(self) -> tuple[int, int]:
        """Numbers of answers being written and of requests waiting."""
        return len(self._running) + len(self._joining), len(self._waiting) + len(self._works)

    def submit(
        self,
        prompt: Prompt,
        decoding: Decoding,
        deliver: Callable[[Event], None],
        *,
        seconds: float = float("inf"),
        top_logprobs: int | None = None,
    ) -> Answer:
        """Puts a request in the queue.

        Args:
            deliver: Called by the engine's thread, which it must not block, with some `Piece`s and then one `Finished`
                or `Failed`.
            seconds: Time limit of the answer from now on, waiting included.
            top_logprobs: Report the log-probability of each token and of this many of the likeliest; None: of none.

        Raises:
            ValueError: beams are asked for, or `max_new_tokens` do not fit after the prompt.
            Busy: the queue is full.
            Stopping: the engine takes no more requests.
        """
        if decoding.num_beams > 1:
            raise ValueError(
                "num_beams above 1 is not for answers that are written together; take arlow caption or vqa"
            )
        room = self._assistant.max_length - len(prompt.ids)
        if decoding.max_new_tokens > room:
            raise ValueError(
                f"max_new_tokens is {decoding.max_new_tokens:,}, and behind the {len(prompt.ids):,} tokens of the "
                f"prompt the model has room for {room:,}; ask for fewer or shorten the prompt"
            )
        answer = Answer(prompt, decoding, deliver, seconds)
        answer.top_logprobs = top_logprobs
        answer.stream = TextStream(self._tokenizer, decoding.stop, prompt=prompt.ids)
        processors = processors_of(self._assistant, decoding, len(prompt.ids), self._model.device)
        answer.next_token = NextToken(decoding, prompt.ids, processors)
        self._queue(answer)
        return answer

    def submit_work(
        self, do: Callable[[ImageEncoder], Any], deliver: Callable[[Event], None], *, seconds: float = float("inf")
    ) -> Work:
        """Puts work in the queue, which the engine's thread does between two tokens of the answers.

        Args:
            do: Returns the value that one `Done` delivers. It may raise Refusal, whose message a `Failed` then has.

        Raises:
            Busy: the queue is full.
            Stopping: the engine takes no more requests.
        """
        work = Work(do, deliver, seconds)
        self._queue(work)
        return work

    def _queue(self, job: Answer | Work) -> None:
        with self._changed:
            if self._is_stopping:
                raise Stopping
            if self.is_full:
                raise Busy
            if isinstance(job, Work):
                self._works.append(job)
            else:
                self._waiting.append(job)
            self._changed.notify()

    def write(self, prompt: Prompt, decoding: Decoding) -> Iterator[Event]:
        """Yields the events of one answer as they come; an answer that is not read to its end is cancelled."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        answer = self.submit(prompt, decoding, events.put)
        try:
            while True:
                event = events.get()
                yield event
                if not isinstance(event, Piece):
                    return
        finally:
            answer.cancel()

    def stop(self) -> None:
        """Ends all answers and the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    # The methods below run in the engine's thread.

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._works or self._is_stopping)
                if self._is_stopping:
                    break
            try:
                self._drop_ended()
                self._do_work()
                self._admit()
                if self._running:
                    self._step()
            except Exception as error:  # the cache may be inconsistent: the running rows end, and the engine continues
                self._end_all(error)
        for job in self._all_jobs():
            self._fail(job, "stopped")
        self._running, self._joining, self._rows = [], [], Rows(self._model, 0)
        self._waiting.clear()
        self._works.clear()

    def _all_jobs(self) -> list[Job]:
        """All requests that a client waits for."""
        return [*self._running, *self._joining, *self._waiting, *self._works]

    def _end_all(self, error: Exception) -> None:
        for answer in (*self._running, *self._joining):
            self._fail(answer, "model", error)
        self._rows.keep([])
        self._running, self._joining = [], []

    def _drop_ended(self) -> None:
        """Removes requests that were cancelled or took too long."""
        now = time.monotonic()
        with self._changed:
            for job in self._all_jobs():
                if now > job.deadline:
                    self._fail(job, "late")
            self._waiting = deque(answer for answer in self._waiting if not answer.is_cancelled)
            self._works = deque(work for work in self._works if not work.is_cancelled)
        self._keep([answer for answer in self._running if not answer.is_cancelled])

    def _keep(self, answers: list[Answer]) -> None:
        if len(answers) == len(self._running):
            return
        kept = set(map(id, answers))
        self._rows.keep([row for row, answer in enumerate(self._running) if id(answer) in kept])
        self._running = answers

    def _do_work(self) -> None:
        """Does one piece of work; the answers get a token between two of them."""
        if not self._works:
            return
        work = self._works[0]
        try:
            event: Event = Done(work.do(self._encoder))
        except Refusal as refusal:
            event = Failed("request", str(refusal))
        except Exception as error:  # whatever it is, no answer is touched by it
            logger.error("work failed: %s", error, exc_info=error)
            event = Failed("model", MESSAGES["model"])
        self._works.popleft()  # before it is delivered: its receiver finds the place free
        self._send(work, event)

    def _admit(self) -> None:
        """Reads the prompts of the next requests, as many as fit, and adds them to the running rows."""
        with self._changed:
            self._joining = _next_group(self._waiting, self.max_batch - len(self._running))
        for answers, read in self._read(self._joining):
            self._joining = [answer for answer in self._joining if answer not in answers]
            self._running += answers
            self._rows.join(read)
            self._write(answers, read.logits)
        self._joining = []

    def _read(self, group: list[Answer]) -> Iterator[tuple[list[Answer], ReadPrompts]]:
        """Reads the prompts of a group together; one that fails ends only its own answer."""
        if not group:
            return
        images = [answer.prompt.images for answer in group]
        try:
            states = self._encoder.encode([image for of_row in images for image in of_row])
            read = self._rows.read([answer.prompt.ids for answer in group], images, states)
        except Exception as error:  # whatever it is, it is one prompt's fault and no other's
            if len(group) == 1:
                self._fail(group[0], "model", error)
            else:
                for answer in group:
                    yield from self._read([answer])
            return
        yield group, read

    def _step(self) -> None:
        logits = self._rows.step([answer.last_token for answer in self._running])
        self._write(self._running, logits)

    def _write(self, answers: Sequence[Answer], logits: Tensor) -> None:
        """Chooses the next token of each of the last rows and delivers what it adds."""
        best, is_finite = self._best(logits)
        for row, answer in enumerate(list(answers)):
            if answer.is_cancelled:
                continue
            if not is_finite[row]:
                self._fail(answer, "model", "its logits are not finite, so the weights are damaged or diverged")
                continue
            try:
                token = best[row] if answer.next_token.takes_best else answer.next_token.choose(logits[row])
            except (RuntimeError, ValueError) as error:  # of one row's own options
                self._fail(answer, "model", error)
                continue
            if answer.top_logprobs is not None:
                answer.unreported.append(_logprob(logits[row], token, answer.top_logprobs))
            answer.last_token, answer.written = token, answer.written + 1
            self._deliver(answer, token)
        self._keep([answer for answer in self._running if not answer.is_cancelled])

    def _best(self, logits: Tensor) -> tuple[list[int], list[bool]]:
        """Returns the likeliest token but `<image>` of each row, and whether the row's logits are finite."""
        is_finite = logits.amax(-1).isfinite()  # the maximum of a row with a NaN is NaN
        if self._image_token_id is not None:
            logits = logits.clone()
            logits[:, self._image_token_id] = -torch.inf
        return logits.argmax(-1).tolist(), is_finite.tolist()

    def _deliver(self, answer: Answer, token: int) -> None:
        reason: FinishReason | None = None
        if token in self._stop_ids:
            text, reason = answer.stream.rest(), "stop"
        else:
            text = answer.stream.push(token)
            if answer.stream.is_stopped:
                reason = "stop"
            elif answer.written >= answer.decoding.max_new_tokens:
                text += answer.stream.rest()
                reason = "stop" if answer.stream.is_stopped else "length"
        if text or (reason and answer.unreported):
            tokens, answer.unreported = tuple(answer.unreported), []
            self._send(answer, Piece(text, tokens))
        if reason:
            self._send(answer, Finished(reason, len(answer.prompt.ids), answer.written))
            answer.is_cancelled = True

    def _fail(self, job: Job, fault: Fault, why: object = None) -> None:
        if why is not None:
            error = why if isinstance(why, BaseException) else None
            logger.error("an answer failed: %s", why, exc_info=error)
        self._send(job, Failed(fault, MESSAGES[fault]))
        job.is_cancelled = True

    def _send(self, job: Job, event: Event) -> None:
        if job.is_cancelled:
            return
        try:
            job.deliver(event)
        except RuntimeError:  # the receiver has gone, and its event loop with it
            job.is_cancelled = True


def _next_group(waiting: deque[Answer], room: int) -> list[Answer]:
    """Takes the next requests out of the queue whose prompts are read together."""
    group: list[Answer] = []
    longest = 0
    while waiting and len(group) < room:
        longest = max(longest, len(waiting[0].prompt.ids))
        if group and longest * (len(group) + 1) > PREFILL_TOKENS:
            break
        group.append(waiting.popleft())
    return group


def _logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(min(top, len(logprobs)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return TokenLogprob(token, logprobs[token].item(), tuple(pairs))

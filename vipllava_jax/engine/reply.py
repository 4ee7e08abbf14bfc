"""The reply to a question: written by the engine's thread, and read by another while it arrives."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError

import numpy as np

from vipllava_jax.answering.answer_text import AnswerText
from vipllava_jax.engine.pieces import Answer, NewIds, Piece, Times, TokenLogprobs
from vipllava_jax.engine.question import EncodedQuestion
from vipllava_jax.generation.stopping import AnswerEnds, RowStops
from vipllava_jax.inputs.processor import Processor


class Reply:
    """The reply to one question, with num_return_sequences samples; methods may be called from any thread.

    The engine's thread only finds the ends of the answers. Their texts are decoded where they are read.
    """

    def __init__(
        self,
        question: EncodedQuestion,
        processor: Processor,
        on_end: Callable[['Reply'], None] = lambda reply: None,
    ) -> None:
        self.question, self.processor, self._on_end = question, processor, on_end
        self.times = Times(time.perf_counter())
        self.prompt_tokens, self.cached_tokens = len(question.ids), 0
        self.warnings: tuple[str, ...] = ()  # about the pictures; complete when the first piece arrives
        self.images: np.ndarray | None = None  # Ihw3 uint8, what the model sees, if the question asks for it
        self.cancelled = False
        settings, n = question.settings, question.settings.num_return_sequences
        self.ends = AnswerEnds(
            np.repeat(question.limit, n),
            question.eos,
            processor.tokenizer.pad,
            [RowStops(processor, settings.stop) for _ in range(n)] if settings.stop else [],
            np.repeat(settings.per_row('max_time', 1, none=np.inf), n),
            question.stop_ids,
        )
        self._written: list[NewIds] = []
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._callback: Callable[[], None] | None = None

    def __iter__(self) -> 'PieceReader':
        """The pieces of all samples as they arrive; then raises the error of a question that has failed.

        Each iteration begins with the first piece. CancelledError follows the pieces of a cancelled reply.
        """
        return PieceReader(self)

    def result(self, timeout: float | None = None) -> tuple[Answer, ...]:
        """Waits for all samples, at most `timeout` seconds; TimeoutError leaves the question running.

        Raises the error of a question that has failed, and CancelledError after `cancel`.
        """
        if not self.wait(timeout):
            raise TimeoutError(f'the question is not answered after {timeout} seconds; it is still running')
        if self._error:
            raise self._error
        return tuple(map(self._answer, range(len(self.ends.reasons))))

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the reply is `done`, at most `timeout` seconds; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.done, timeout)

    @property
    def error(self) -> BaseException | None:
        """Why the question was not answered; None if it was, or still may be."""
        return self._error

    @property
    def done(self) -> bool:
        """Whether nothing more will be written."""
        return self._error is not None or self.ends.all_ended

    def cancel(self) -> None:
        """Ends a reply that is not complete: the engine frees its rows at the next step."""
        self._end(CancelledError('the reply was cancelled'), cancelled=True)

    def on_progress(self, callback: Callable[[], None]) -> None:
        """Calls `callback`, which must be quick, whenever new pieces or the end can be read.

        It is called in the thread of the engine, and at once if there is something to read. The reply is
        cancelled if it raises an exception, because nobody seems to read it any more.
        """
        with self._changed:
            self._callback = callback
            is_late = bool(self._written) or self.done
        if is_late:
            self._notify()

    def written_after(self, count: int, wait: bool) -> list[NewIds]:
        """What was written after the first `count` parts; with `wait` something, unless the reply has ended.

        Raises the error of the reply if there is one and nothing else is left.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self.done or len(self._written) > count)
            if self._error and len(self._written) == count:
                raise self._error
            return self._written[count:]

    def started(self, prompt_tokens: int, cached_tokens: int) -> None:
        """The engine begins to answer: max_time counts from now on."""
        self.prompt_tokens, self.cached_tokens = prompt_tokens, cached_tokens
        self.times.started = time.perf_counter()

    def push(
        self,
        sample: int,
        ids: Sequence[int],
        now: float,
        logprobs: Sequence[TokenLogprobs] | None = None,
        is_whole: bool = False,
    ) -> str:
        """New ids of a sample -> why it has ended, 'stop', 'length', 'time' or 'cancelled'; '' if it has not.

        `now` is the time of `time.perf_counter`, and `logprobs` has an entry for each id. The sample ends
        with them if it `is_whole`. What follows the end of a sample is ignored.
        """
        try:
            reason = self._write(sample, ids, now, logprobs, is_whole)
        except Exception as error:  # of a tokenizer that cannot decode these ids
            self.fail(error)
            return 'cancelled'
        self._notify()
        if self.done:
            self._on_end(self)
        return reason

    def _write(
        self,
        sample: int,
        ids: Sequence[int],
        now: float,
        logprobs: Sequence[TokenLogprobs] | None,
        is_whole: bool,
    ) -> str:
        with self._changed:
            if self._error:
                return 'cancelled'
            if reason := self.ends.reasons[sample]:
                return reason
            begin = self.times.submitted if self.times.started is None else self.times.started
            n = self.ends.push_row(sample, ids, now - begin)
            if is_whole:
                self.ends.reasons[sample] = 'stop'
            reason = self.ends.reasons[sample]
            if n and self.times.first_token is None:
                self.times.first_token = now
            if n or reason:
                kept = None if logprobs is None else tuple(logprobs[:n])
                self._written.append(NewIds(sample, tuple(map(int, ids[:n])), kept, bool(reason)))
            if self.ends.all_ended:
                self.times.finished = now
            self._changed.notify_all()
        return reason

    def fail(self, error: BaseException) -> None:
        """Ends a reply that is not complete with an error, which its readers get after what was written."""
        self._end(error)

    def _end(self, error: BaseException, cancelled: bool = False) -> None:
        with self._changed:
            if self.done:
                return
            self._error, self.cancelled = error, cancelled
            self.times.finished = time.perf_counter()
            self._changed.notify_all()
        self._notify()
        self._on_end(self)

    def _notify(self) -> None:
        """Calls the callback; not while the lock is held, because it may read the reply."""
        callback = self._callback
        try:
            if callback:
                callback()
        except Exception:
            self._callback = None
            self.cancel()

    def _answer(self, sample: int) -> Answer:
        parts = [part for part in self._written if part.sample == sample]
        ids = tuple(id for part in parts for id in part.ids)
        text = self.new_text()
        logprobs = [part.logprobs for part in parts if part.logprobs is not None]
        return Answer(
            text.push(ids) + text.end(),
            ids,
            self.ends.reasons[sample],
            self.prompt_tokens,
            self.cached_tokens,
            tuple(entry for part in logprobs for entry in part) if logprobs else None,
        )

    def new_text(self) -> AnswerText:
        """The text of a sample of which nothing is decoded yet."""
        return AnswerText(self.processor, self.question.eos, self.question.settings)


class PieceReader(Iterator[Piece]):
    """Decodes a reply for one reader: iterate to wait for pieces, or take those that are available."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self._texts = [reply.new_text() for _ in reply.ends.reasons]
        self._count = 0  # parts that have been decoded

    def __next__(self) -> Piece:
        for part in self.reply.written_after(self._count, wait=True)[:1]:
            return self._piece(part)
        raise StopIteration

    def available(self) -> list[Piece]:
        """The pieces that have arrived since the last one that was read, without waiting.

        Raises the error of the reply if there is one and nothing else is left. A call after the reply is
        `done` returns all that is left.
        """
        return [self._piece(part) for part in self.reply.written_after(self._count, wait=False)]

    def _piece(self, part: NewIds) -> Piece:
        self._count += 1
        text = self._texts[part.sample]
        piece = text.push(part.ids) + (text.end() if part.is_last else '')
        reason = self.reply.ends.reasons[part.sample] if part.is_last else ''
        return Piece(part.sample, piece, part.ids, part.logprobs, reason)

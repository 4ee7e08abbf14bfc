"""The engine: answers questions as they come, many at a time, in rows that are refilled as they end."""

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future

from vipllava_jax.answering.questions import check_model
from vipllava_jax.engine.compiling import CompilationCounter, compile_all
from vipllava_jax.engine.device import Device
from vipllava_jax.engine.matching import Vocabulary
from vipllava_jax.engine.memory import SLOTS, default_prefix_bytes, shapes_for
from vipllava_jax.engine.pictures import Pictures, Prepared
from vipllava_jax.engine.prefix_store import PrefixStore
from vipllava_jax.engine.programs import PICTURES
from vipllava_jax.engine.question import EncodedQuestion, Question, QuestionError, QueueFull, encode
from vipllava_jax.engine.reply import Reply
from vipllava_jax.engine.scheduler import Scheduler
from vipllava_jax.engine.stats import Counts, Stats
from vipllava_jax.engine.waiting import Waiting, waiting_for, with_pictures
from vipllava_jax.generation.model import Model
from vipllava_jax.messages import brief

Progress = Callable[[int, int], None]


class Engine:
    """Answers questions from any number of threads; a context manager, because it holds memory and processes.

    `rows` of `slots` slots, by default as many as the memory has room for, are decoded together; a slot holds
    a token of a prompt or an answer. `long_rows` more have the slots of the whole context; a mapping gives
    numbers of rows by their slots, such as {2048: 8, 4096: 2}. Beginnings of prompts up to their last picture
    are kept in `prefix_bytes`, and not computed again. At most `queue` questions wait, beside those for which
    a row is free. With `exact`, the answer to a question does not depend on what else is answered, also in
    bfloat16: each is prefilled alone, all rows are always decoded, and no prefix is shared. `workers`
    processes prepare pictures, which have at most `max_pixels`; None is PIL's limit.

    All programs are compiled when it is created; `progress` is called with the numbers of those and of all.
    Raises ValueError for a number that is out of range, or if the memory has no room for a row; TypeError for
    what is not a Model.
    """

    def __init__(
        self,
        model: Model,
        *,
        rows: int | None = None,
        slots: int = SLOTS,
        long_rows: int | Mapping[int, int] | None = None,
        prefix_bytes: int | None = None,
        queue: int = 1024,
        exact: bool = False,
        workers: int | None = None,
        max_pixels: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_model(model)
        for name, number in {'queue': queue, 'max_pixels': 1 if max_pixels is None else max_pixels}.items():
            if not isinstance(number, int) or number < 1:
                raise ValueError(f'{name} is {brief(number)}: give a whole number from 1 on')
        self.model, self.exact, self._queue = model, exact, queue
        prefix_bytes = default_prefix_bytes() if prefix_bytes is None else prefix_bytes
        self.shapes = shapes_for(model, rows, slots, long_rows, prefix_bytes)
        self._store = PrefixStore(0 if exact else prefix_bytes)
        self._counts = Counts()
        self._vocabulary = Vocabulary(model.processor.tokenizer, model.cfg)
        self._pictures = Pictures(model.processor.image_settings, workers, max_pixels)
        try:
            self._device = Device(model.params, model.cfg, self.shapes, model.processor.image_settings)
            compile_all(self._device, progress)
            self._scheduler = Scheduler(self._device, self._store, self._counts, exact)
        except BaseException:
            self._pictures.close()
            raise
        self._changed = threading.Condition()
        self._prepared: deque[Waiting] = deque()  # for the scheduler
        self._preparing: dict[Reply, Future[Prepared]] = {}
        self._open: set[Reply] = set()  # that have not ended
        self._is_closing = self._is_draining = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name='vipllava engine', daemon=True)
        atexit.register(self.close)  # otherwise the thread would start programs while jax ends
        self._thread.start()

    def submit(self, question: Question) -> Reply:
        """Adds a question to the queue -> its reply, which is written as it is answered.

        Raises QueueFull if too many wait, QuestionError for one that can never be answered, and RuntimeError
        if the engine is closed, draining or has failed. A picture that cannot be read fails the reply.
        """
        self._check_accepting()
        encoded = encode(question, self.model)
        self._check_size(encoded)
        matchers = self._vocabulary.matchers(
            question.answer_format, encoded.settings.num_return_sequences, encoded.eos
        )
        reply = Reply(encoded, self.model.processor, self._ended)
        waiting = waiting_for(reply, self.shapes, matchers)
        with self._changed:
            self._check_accepting()
            self._open.add(reply)
            self._counts.prompt_tokens += len(encoded.ids)
            if question.images:
                self._preparing[reply] = future = self._pictures.submit(question)
            else:
                self._prepared.append(waiting)
                self._changed.notify_all()
        if question.images:
            future.add_done_callback(lambda future: self._pictures_ready(waiting, future))
        return reply

    def _check_size(self, question: EncodedQuestion) -> None:
        """Raises QuestionError for a question for which the engine has not enough rows or slots."""
        if (count := len(question.question.images)) > PICTURES:
            raise QuestionError(
                f'there are {count} images, but the engine reads at most {PICTURES} for a question', 'images'
            )
        tokens = len(question.ids) + question.limit
        if tokens > self.shapes.largest:
            raise QuestionError(
                f'a prompt of {len(question.ids)} tokens and {question.limit} new ones need as many slots, '
                f'but the largest rows of the engine have {self.shapes.largest}: ask for fewer new tokens',
                'max_new_tokens',
            )
        n = question.settings.num_return_sequences
        rows = max(rows for rows, slots in self.shapes.levels if slots >= tokens)
        if n > rows:
            raise QuestionError(
                f'{n} answers are asked for, but the engine has {rows} rows of enough slots: ask for fewer',
                'num_return_sequences',
            )

    def drain(self, timeout: float | None = None) -> bool:
        """Accepts no more questions, and waits until all are answered, at most `timeout` seconds.

        Returns whether all have ended.
        """
        with self._changed:
            self._is_draining = True
            return self._changed.wait_for(lambda: not self._open, timeout)

    @property
    def error(self) -> BaseException | None:
        """Why the engine has failed, and answers nothing more; None if it has not."""
        return self._error

    def fail_open(self, error: BaseException) -> None:
        """Ends every reply that is open with an error, for example if a drain takes too long."""
        with self._changed:
            replies = [*self._open]
        for reply in replies:
            reply.fail(error)

    def close(self) -> None:
        """Ends the engine and its threads: questions that are not answered fail with CancelledError."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # which calls the callbacks of replies
            self._thread.join()
        self._pictures.close()
        self.fail_open(CancelledError('the engine was closed'))
        atexit.unregister(self.close)

    def __enter__(self) -> 'Engine':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> Stats:
        """Counts since the start, and what the engine does now."""
        with self._changed:
            return Stats(
                rows=self.shapes.lanes[-1],
                long_rows=sum(rows for rows, _ in self.shapes.wide),
                slots=self.shapes.slots,
                running=len(self._scheduler.rows),
                waiting=len(self._prepared) + len(self._scheduler.waiting),
                preparing=len(self._preparing),
                prefix_bytes=self._store.bytes,
                **vars(self._counts),
            )

    # Called by other threads

    def _check_accepting(self) -> None:
        if self._error:
            raise RuntimeError(f'the engine has failed: {self._error}') from self._error
        if self._is_closing or self._is_draining:
            raise RuntimeError('the engine is closed' if self._is_closing else 'the engine is draining')
        waiting = len(self._preparing) + len(self._prepared) + len(self._scheduler.waiting)
        free = self.shapes.lanes[-1] + sum(rows for rows, _ in self.shapes.wide) - len(self._scheduler.rows)
        if waiting >= self._queue + free:
            raise QueueFull(f'{self._queue} questions are waiting: ask again later')

    def _pictures_ready(self, waiting: Waiting, future: Future[Prepared]) -> None:
        """Takes over the pictures of a question, in the thread that has prepared them."""
        reply = waiting.reply
        try:
            prepared = future.result()
            reply.warnings = prepared.warnings
            if reply.question.question.keep_images:
                reply.images = prepared.pixels
            ready = with_pictures(waiting, prepared.pixels, prepared.digests, self.model.cfg.image_token)
        except Exception as error:  # a future would swallow it, and the reply would never end
            with self._changed:
                self._preparing.pop(reply, None)
            return reply.fail(error)
        with self._changed:
            self._preparing.pop(reply, None)
            self._prepared.append(ready)
            self._changed.notify_all()

    def _ended(self, reply: Reply) -> None:
        """Counts a reply that has ended, in any thread."""
        with self._changed:
            if reply in self._open:
                self._open.remove(reply)
                name = 'cancelled' if reply.cancelled else 'failed' if reply.error else 'finished'
                setattr(self._counts, name, getattr(self._counts, name) + 1)
            if future := self._preparing.pop(reply, None):
                future.cancel()
            self._changed.notify_all()

    # The thread of the engine

    def _run(self) -> None:
        compiled = CompilationCounter(self._counts)
        try:
            with compiled:
                while self._next_turn():
                    self._scheduler.turn()
        except BaseException as error:
            with self._changed:
                self._error = error
            self._scheduler.fail(error)
            self.fail_open(error)

    def _next_turn(self) -> bool:
        """Hands prepared questions to the scheduler; waits while there is nothing to do; False to end."""
        with self._changed:
            if self._scheduler.is_idle and not self._prepared and not self._is_closing:
                begin = time.perf_counter()
                self._changed.wait_for(lambda: self._prepared or self._is_closing)
                self._counts.seconds_waiting += time.perf_counter() - begin
            self._scheduler.add(self._prepared)
            self._prepared.clear()
            return not self._is_closing

"""The text of one answer, decoded from its ids as they arrive."""

from collections.abc import Collection, Iterable, Sequence

from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.generation.stopping import StopCut, find_stop
from vipllava_jax.inputs.processor import Processor


class DecodedText:
    """Decodes all ids of an answer but the end ids."""

    def __init__(self, processor: Processor, eos: Collection[int], stops: Sequence[str]) -> None:
        self.stream, self.eos, self.stops = processor.text_stream(), eos, stops
        self.text = ''  # so far, including the stop string that ended the answer

    def push(self, ids: Iterable[int]) -> str:
        """New ids -> the text that they complete."""
        piece = self.stream.push(id for id in ids if id not in self.eos)
        self.text += piece
        return piece

    def end(self) -> str:
        """The rest of the text, after the last id."""
        piece = self.stream.end()
        if find_stop(self.text + piece + self.stream.blank, self.stops):
            piece += self.stream.blank  # white space at the end is a part of the stop string
        self.text += piece
        return piece


class VisibleText:
    """Turns decoded text into that of the answer: up to the stop string, without white space at the end.

    The stop string is kept if the settings say so. White space at the start is left to the caller.
    """

    def __init__(self, settings: GenerationSettings) -> None:
        self.cut, self.keep_stop = StopCut(settings.stop), settings.keep_stop
        self.blank = ''  # white space, held back until more text follows: an answer does not end with it

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete, so that no more text follows but that of `end`."""
        return bool(self.cut.found)

    def push(self, piece: str) -> str:
        """A piece of decoded text -> the text that is certain to be a part of the answer."""
        text = self.blank + self.cut.push(piece)
        visible = text.rstrip()
        self.blank = text[len(visible) :]
        return visible

    def end(self) -> str:
        """The rest of the answer, after the last piece."""
        rest = self.blank + self.cut.end()
        return rest + self.cut.found if self.stopped and self.keep_stop else rest.rstrip()


class AnswerText:
    """The text of one answer as its ids arrive: the pieces joined are the answer.

    `eos` are the end ids, which the text leaves out, and `settings` those of `with_template_stops`.
    """

    def __init__(self, processor: Processor, eos: Collection[int], settings: GenerationSettings) -> None:
        self.decoded = DecodedText(processor, eos, settings.stop)
        self.visible = VisibleText(settings)
        self.started = False

    def push(self, ids: Iterable[int]) -> str:
        """New ids -> the text that is certain to be a part of the answer, which may be empty."""
        return self._trimmed(self.visible.push(self.decoded.push(ids)))

    def end(self) -> str:
        """The rest of the answer, after the last id."""
        piece = self.visible.push(self.decoded.end())
        return self._trimmed(piece + self.visible.end())

    def _trimmed(self, piece: str) -> str:
        """A piece without white space at the start of the answer."""
        piece = piece if self.started else piece.lstrip()
        self.started = self.started or bool(piece)
        return piece

"""Stop strings: which texts and ids end an answer, and truncation of streamed text at them."""

from collections.abc import Iterable, Iterator, Sequence

from vipllava_jax.config import Config
from vipllava_jax.inputs.processor import Processor


def ends(processor: Processor, template: str, cfg: Config) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The stop strings and stop ids of a template; a stop string that is one token is also a stop id."""
    stops = processor.stop_strings(template)
    special = [processor.tokenizer.token_to_id(stop) for stop in stops]
    return stops, (*cfg.eos, *[id for id in special if id is not None])


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pieces of text -> pieces of the same text up to the first stop string, as early as possible.

    Text that may be the beginning of a stop string is held back until later pieces decide.
    """
    held = ''
    for piece in pieces:
        held += piece
        found = [at for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            yield held[: min(found)]
            return
        sure = len(held) - _overlap(held, stops)
        if sure:
            yield held[:sure]
            held = held[sure:]
    if held:
        yield held


def _overlap(text: str, stops: Sequence[str]) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)

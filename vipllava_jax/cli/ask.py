"""`vipllava ask`: answers a question about pictures with marks, and streams the answer."""

import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.cli.models import (
    compiling,
    fit_option,
    load,
    model_option,
    template_option,
    types,
    weight_options,
)
from vipllava_jax.cli.numbers import Real, Whole
from vipllava_jax.cli.pictures import check_saving, drawn, mark_option, phrased, save
from vipllava_jax.cli.waiting import spinner
from vipllava_jax.files import other_encoding
from vipllava_jax.messages import safe_answer, safe_json

if TYPE_CHECKING:
    from pathlib import Path

    from vipllava_jax.inputs.batch import Batch
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import Model, Source


LONGEST = 1 << 20  # bytes of a question on stdin; more than any context


@click.command()
@click.argument('question', required=False)
@model_option
@click.option('--image', 'images', metavar='FILE', multiple=True, help='A picture. May be repeated.')
@mark_option
@template_option
@fit_option("the checkpoint's way")
@click.option(
    '--max-new-tokens',
    metavar='N',
    type=Whole(1),
    help='The longest answer.  [default: 512, or what the context leaves]',
)
@click.option(
    '--temperature',
    type=Real(0),
    default=0.0,
    show_default=True,
    help='0 takes the likeliest token each time.',
)
@click.option(
    '--top-p',
    type=Real(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help='Draw from the likeliest tokens that make up this probability.',
)
@click.option(
    '--top-k',
    type=Whole(0),
    default=0,
    show_default=True,
    help='Draw from the k likeliest tokens; 0 for all.',
)
@click.option(
    '--seed',
    type=Whole(0, 2**32 - 1),
    help='Makes drawn answers repeatable.  [default: a fresh one]',
)
@weight_options
@click.option(
    '--json', 'as_json', is_flag=True, help='One JSON object, with times and settings, instead of text.'
)
@click.option('--save-image', metavar='FILE', help='Save the (first) picture with its marks.')
def ask(
    question: str | None,
    source: str,
    images: tuple[str, ...],
    marks: tuple[str, ...],
    template: str,
    fit: Any,
    dtype: str | None,
    quantize: str | None,
    adapter: str | None,
    as_json: bool,
    save_image: str | None,
    **settings: Any,
) -> None:
    """Ask QUESTION about pictures with marks drawn on them; without QUESTION it is read from stdin.

    {mark} (or {mark1}, {mark2}, …) in QUESTION is replaced by a mark's phrase, "within the red rectangle".
    The answer is streamed to stdout; nothing else is written there.

    \b
    Examples:
      vipllava ask --image photo.jpg --mark rectangle:40,60,180,220:red "What is {mark}?"
      vipllava ask --image a.jpg --image b.jpg --mark 2/arrow:0.2,0.3,0.5,0.8 "Compare them: {mark}."
      echo "Describe this." | vipllava ask --model ./vip-llava-7b --image photo.jpg --temperature 0.2 --seed 1
    """
    pictures, made = drawn(images, marks)
    prompt = phrased(read(question), made)
    if save_image:
        if not pictures:
            raise ValueError('--save-image needs an --image')
        check_saving(save_image, images)
    from vipllava_jax import loading
    from vipllava_jax.generation.stopping import stop_conditions
    from vipllava_jax.weight_options import WeightOptions

    folder, processor, batch = prepare(source, prompt, pictures, template, fit)
    if save_image:
        save(pictures[0], save_image, [*images, folder, *([adapter] if adapter else [])])
    weights = loading.open(folder, WeightOptions(dtype=dtype, quantize=quantize, adapter=adapter))
    shapes, cfg = planned(weights, processor, batch, settings['max_new_tokens']), weights.cfg
    if settings['seed'] is None:
        settings['seed'] = secrets.randbits(32)
    told = {
        'model': source,
        'adapter': adapter,
        'template': template,
        'prompt': prompt,
        **types(shapes),
        **settings,
    }
    stops, settings['eos'] = stop_conditions(processor, template, cfg)
    compiled = compiling(shapes, batch, cfg, settings)
    model, seconds = load(weights, processor)
    reply = Reply(model, batch, stops, settings)
    answer = said(reply, compiled, quiet=as_json)
    if as_json:
        told = {'answer': answer, **told, 'load_seconds': seconds, **reply.report()}
    click.echo(safe_json(told) if as_json else '')
    if not pictures:
        click.echo('vipllava: there was no --image: the model answered from the question alone', err=True)


def said(reply: 'Reply', compiled: Callable[[], None], quiet: bool) -> str:
    """The whole answer; unless `quiet`, it is streamed to stdout. Waits for the compilation first."""
    answer = ''
    with spinner('looking at the picture; the first time, compiling …') as stop:
        with contextlib.suppress(Exception):  # decoding raises the same error again
            compiled()
        for piece in reply:
            if piece:
                stop()
            answer += piece
            if not quiet:
                sys.stdout.write(safe_answer(piece))
                sys.stdout.flush()
    return answer


class Reply:
    """The answer to one prompt, iterated as pieces of text, and afterwards a report with its timings."""

    def __init__(self, model: 'Model', batch: 'Batch', stops: tuple[str, ...], settings: dict[str, Any]):
        from vipllava_jax.generation.decoding import stream

        self.processor, self.stops, self.eos = model.processor, stops, settings['eos']
        self.prompt_tokens = int(batch.lengths[0])
        self.tokens: list[int] = []
        self.finished = True  # unless the chunks end before the answer does
        self.chunks = stream(model.params, batch, cfg=model.cfg, **settings)
        self.times = [time.perf_counter()]  # of the start and of each chunk

    def __iter__(self) -> Iterator[str]:
        from vipllava_jax.generation.stopping import truncate_at_stops

        return truncate_at_stops(self._pieces(), self.stops)

    def _pieces(self) -> Iterator[str]:
        text = self.processor.text_stream()
        end = None
        for chunk in self.chunks:
            self.times.append(time.perf_counter())
            ids = [int(i) for i in chunk[0]]
            end = next((n for n, i in enumerate(ids) if i in self.eos), None)
            self.tokens += ids if end is None else ids[: end + 1]
            yield text.push(ids[:end])
        yield text.end()
        self.finished = end is not None

    def report(self) -> dict[str, Any]:
        begin, first, last = self.times[0], self.times[1], self.times[-1]
        rate = (len(self.tokens) - 1) / (last - first) if last > first else None
        return {
            'prompt_tokens': self.prompt_tokens,
            'new_tokens': len(self.tokens),
            'finished': self.finished,
            'first_token_seconds': round(first - begin, 3),
            'tokens_per_second': rate and round(rate, 1),
        }


def read(question: str | None) -> str:
    """The question, or the text on stdin if there is none; ValueError if it is empty or not UTF-8."""
    if question is None and sys.stdin.isatty():
        click.echo('Question, then Ctrl-D:', err=True)
    text = (stdin() if question is None else question).strip()
    if not text:
        raise ValueError('the question is empty: give it as the last argument or on stdin')
    return text


def stdin() -> str:
    """The text on stdin without a byte order mark; ValueError if it is too long or not UTF-8."""
    source = getattr(sys.stdin, 'buffer', None)
    data = source.read(LONGEST + 1) if source else sys.stdin.read(LONGEST + 1).encode()
    if len(data) > LONGEST:
        raise ValueError(f'the question on stdin has more than {LONGEST} bytes: is it the right file?')
    if name := other_encoding(data[:4]):
        raise ValueError(f'the question on stdin is {name}: write it in UTF-8')
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(
            f'the question on stdin is not UTF-8 at byte {error.start}: write it in UTF-8'
        ) from None


def prepare(
    source: str, prompt: str, pictures: list, template: str, fit: Any
) -> 'tuple[Path, Processor, Batch]':
    """Locates the checkpoint and processes the prompt; returns its folder, its processor and the batch."""
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import locate

    folder = locate(source)
    processor = Processor.load(folder)
    return folder, processor, processor(prompt, pictures, template=template, fit=fit)


def planned(
    weights: 'Source', processor: 'Processor', batch: 'Batch', max_new_tokens: int | None
) -> dict[str, Any]:
    """The shapes of the weights.

    Raises ValueError if there is no room for an answer, or the processor does not fit the weights.
    """
    from vipllava_jax.generation.decoding import max_new_tokens_for

    processor.for_model(weights.cfg).check_ids(batch.tokens[0, : batch.lengths[0]].tolist())
    max_new_tokens_for(batch, weights.cfg, max_new_tokens)
    return weights.shapes()

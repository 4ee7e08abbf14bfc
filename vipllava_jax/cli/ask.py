"""`vipllava ask`: a picture, marks, a question; the answer as it comes."""

import json
import secrets
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.checkpoint import FLOATS, QUANTIZED
from vipllava_jax.cli.pictures import drawn, mark_option, phrased, save
from vipllava_jax.cli.waiting import bytes_bar, spinner
from vipllava_jax.inputs.prompts import NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from vipllava_jax.config import Config
    from vipllava_jax.inputs.processor import Batch, Processor
    from vipllava_jax.loading import Model

DEFAULT_MODEL = 'llava-hf/vip-llava-7b-hf'


@click.command()
@click.argument('question', required=False)
@click.option(
    '--model',
    'source',
    metavar='M',
    default=DEFAULT_MODEL,
    show_default=True,
    help='A folder, PyTorch or converted, or a name on the Hugging Face Hub.',
)
@click.option('--image', 'images', metavar='FILE', multiple=True, help='A picture. May be repeated.')
@mark_option
@click.option(
    '--template',
    type=click.Choice(NAMES),
    default='vipllava',
    show_default=True,
    help="The prompt's wording; checkpoint is the folder's own chat template.",
)
@click.option(
    '--fit',
    type=click.Choice(('crop', 'pad', 'squash')),
    help="How a picture becomes square.  [default: the checkpoint's way]",
)
@click.option(
    '--max-new-tokens',
    metavar='N',
    type=click.IntRange(1),
    help='The longest answer.  [default: 512, or what the context leaves]',
)
@click.option(
    '--temperature',
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help='0 takes the likeliest token each time.',
)
@click.option(
    '--top-p',
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help='Draw from the likeliest tokens that make up this probability.',
)
@click.option(
    '--top-k',
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help='Draw from the k likeliest tokens; 0 for all.',
)
@click.option(
    '--seed',
    type=click.IntRange(0, 2**32 - 1),
    help='Makes drawn answers repeatable.  [default: a fresh one]',
)
@click.option('--dtype', type=click.Choice(FLOATS), help="[default: the checkpoint's]")
@click.option(
    '--quantize',
    type=click.Choice(QUANTIZED),
    help="The decoder's large weights in this type.",
)
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
    as_json: bool,
    save_image: str | None,
    **settings: Any,
) -> None:
    """Ask QUESTION about pictures with marks drawn on them; without QUESTION it is read from stdin.

    QUESTION may say {mark} (or {mark1}, {mark2}, …) for a mark's phrase, "within the red rectangle".
    The answer goes to stdout as it comes, and nothing else does.

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
        save(pictures[0], save_image)
    folder, processor, batch = prepare(source, prompt, pictures, template, fit, settings['max_new_tokens'])
    if settings['seed'] is None:
        settings['seed'] = secrets.randbits(32)
    reply = Reply(processor, batch, template, settings)
    reply.compile_for(folder, dtype=dtype, quantize=quantize)
    model, seconds = load(folder, dtype=dtype, quantize=quantize)
    reply.begin(model)
    if as_json:
        answer = ''.join(reply)
        told = {'answer': answer, 'model': source, 'template': template, 'prompt': prompt, **settings}
        click.echo(json.dumps({**told, 'load_seconds': seconds, **reply.report()}, ensure_ascii=False))
        return
    with spinner('looking at the picture; the first time, compiling …') as stop:
        for piece in reply:
            if piece:
                stop()
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write('\n')


class Reply:
    """The answer to one prompt, as pieces of text; once they are read, a report of how it came."""

    def __init__(self, processor: 'Processor', batch: 'Batch', template: str, settings: dict[str, Any]):
        self.processor, self.batch, self.settings = processor, batch, settings
        self.stops = processor.stops(template)
        self.prompt_tokens = int(batch.lengths[0])
        self.tokens: list[int] = []
        self.finished = True  # unless the chunks end before the answer does

    def compile_for(self, folder: 'Path', **kind: Any) -> None:
        """Begins to compile, in the background, for the weights of a folder that are yet to be loaded."""
        from vipllava_jax import loading
        from vipllava_jax.generation.decoding import compile_for

        shapes, cfg = loading.abstract(folder, **kind)
        pool = ThreadPoolExecutor(1)
        self.compiling = pool.submit(compile_for, shapes, self.batch, cfg=cfg, **self._settings(cfg))
        pool.shutdown(wait=False)

    def begin(self, model: 'Model') -> None:
        from vipllava_jax.generation.decoding import stream

        settings = self._settings(model.cfg)
        self.eos = settings['eos']
        self.chunks = stream(model.params, self.batch, cfg=model.cfg, **settings)
        self.times = [time.perf_counter()]  # of the start and of each chunk

    def _settings(self, cfg: 'Config') -> dict[str, Any]:
        special = [self.processor.tokenizer.id_of(stop) for stop in self.stops]
        return {**self.settings, 'eos': (*cfg.eos, *[i for i in special if i is not None])}

    def __iter__(self) -> Iterator[str]:
        from vipllava_jax.generation.stopping import until

        return until(self._pieces(), self.stops)

    def _pieces(self) -> Iterator[str]:
        wait([self.compiling])  # the same error, if there is one, comes again where it belongs
        text = self.processor.stream()
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
    """The question, or stdin if there is none; ValueError if that is empty."""
    if question is None and sys.stdin.isatty():
        click.echo('Question, then Ctrl-D:', err=True)
    text = (sys.stdin.read() if question is None else question).strip()
    if not text:
        raise ValueError('the question is empty: give it as the last argument or on stdin')
    return text


def prepare(
    source: str, prompt: str, pictures: list, template: str, fit: Any, max_new_tokens: int | None
) -> 'tuple[Path, Processor, Batch]':
    """The checkpoint's folder, its processor, what the model will read: mistakes show before weights load."""
    from vipllava_jax.checkpoint import read_config
    from vipllava_jax.generation.decoding import room
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import locate

    folder = locate(source)
    processor = Processor.load(folder)
    batch = processor(prompt, pictures, template=template, fit=fit)
    room(batch, read_config(folder), max_new_tokens)
    return folder, processor, batch


def load(folder: 'Path', **kind: Any) -> 'tuple[Model, float]':
    """The model, loaded under a bar, and how many seconds that took."""
    from vipllava_jax import loading

    begin = time.perf_counter()
    with bytes_bar(f'loading {folder.name}') as progress:
        model = loading.load(folder, **kind, progress=progress)
    return model, round(time.perf_counter() - begin, 3)

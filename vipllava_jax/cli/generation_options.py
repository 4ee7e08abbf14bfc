"""The options for how answers are generated."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from vipllava_jax.cli.numbers import RealNumber, WholeNumber
from vipllava_jax.messages import brief

F = TypeVar('F', bound=Callable[..., Any])
MAX_ANSWERS = 1024  # as in setting_checks, which would import NumPy
WORDS = {'True': True, 'False': False, 'None': None}  # which JSON writes true, false and null


class Setting(click.ParamType):
    """A setting without an option of its own, NAME=VALUE -> (name, value)."""

    name = 'setting'

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from vipllava_jax.generation.refused_settings import REFUSED

        if not isinstance(value, str):
            return value
        name, found, text = value.partition('=')
        if not found:
            self.fail(f'{brief(value)} is not NAME=VALUE, such as typical_p=0.9', param, ctx)
        if name in OPTIONS:
            self.fail(f'{name} has an option of its own: use {OPTIONS[name]}', param, ctx)
        if name in REFUSED:
            self.fail(f'{name} is not a setting: {REFUSED[name]}', param, ctx)
        if name not in other_settings():
            names = ', '.join(other_settings())
            self.fail(f'{brief(name)} is not a setting: they are {names}', param, ctx)
        return name, read_value(text)


def other_settings() -> list[str]:
    """The settings that --set takes: those without an option, except functions."""
    from vipllava_jax.generation.settings import GenerationSettings

    names = GenerationSettings.__dataclass_fields__
    return [name for name in names if name not in OPTIONS and name != 'processors']


def read_value(text: str) -> Any:
    """A value in JSON, or a bare word as a string."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return WORDS.get(text, text)


# The settings that have an option, and that option.
OPTIONS = {
    'max_new_tokens': '--max-new-tokens',
    'temperature': '--temperature',
    'top_p': '--top-p',
    'top_k': '--top-k',
    'min_p': '--min-p',
    'repetition_penalty': '--repetition-penalty',
    'seed': '--seed',
    'stop': '--stop',
    'num_return_sequences': '--n',
    'num_beams': '--beams',
    'logprobs': '--logprobs',
}
DECLARED = [
    click.option(
        '--max-new-tokens',
        metavar='N',
        type=WholeNumber(1),
        help='The maximum number of tokens of the answer.  [default: 512, or what the context '
        'leaves if that is less]',
    ),
    click.option(
        '--temperature',
        metavar='T',
        type=RealNumber(0),
        default=0.0,
        show_default=True,
        help='Sample tokens at this temperature; 0 selects the most likely token at each step.',
    ),
    click.option(
        '--top-p',
        metavar='P',
        type=RealNumber(0, 1, min_open=True),
        default=1.0,
        show_default=True,
        help='Sample only from the most likely tokens whose probabilities add up to this; 1 for all.',
    ),
    click.option(
        '--top-k',
        metavar='K',
        type=WholeNumber(0),
        default=0,
        show_default=True,
        help='Sample only from the k most likely tokens; 0 for all.',
    ),
    click.option(
        '--min-p',
        metavar='P',
        type=RealNumber(0, 1),
        help='Sample only from tokens at least this fraction as likely as the likeliest.',
    ),
    click.option(
        '--repetition-penalty',
        metavar='R',
        type=RealNumber(0, min_open=True),
        help='Above 1, tokens that the prompt or the answer already has become less likely.  [default: 1]',
    ),
    click.option(
        '--seed',
        metavar='N',
        type=WholeNumber(0, 2**32 - 1),
        help='The random seed of sampling, for repeatable answers.  [default: random]',
    ),
    click.option(
        '--stop',
        metavar='TEXT',
        multiple=True,
        help='End the answer before this text. May be repeated.',
    ),
    click.option(
        '--n',
        'num_return_sequences',
        metavar='N',
        type=WholeNumber(1, MAX_ANSWERS),
        help='The number of answers: samples, with --temperature, or the best of --beams.  [default: 1]',
    ),
    click.option(
        '--beams',
        'num_beams',
        metavar='W',
        type=WholeNumber(1, MAX_ANSWERS),
        help='Search with this number of beams for the likeliest answer, which is printed at the end.  '
        '[default: 1, no search]',
    ),
    click.option(
        '--logprobs',
        metavar='K',
        type=WholeNumber(0),
        help='With --json: the log-probability of each token, and the K likeliest tokens in its place.',
    ),
    click.option(
        '--set',
        'others',
        metavar='NAME=VALUE',
        multiple=True,
        type=Setting(),
        help='Another field of GenerationSettings, with a value in JSON, such as typical_p=0.9 or '
        'bad_words_ids=[[306,626]]. May be repeated.',
    ),
]


def generation_options(command: F) -> F:
    """The options of DECLARED, in this order."""
    for option in reversed(DECLARED):
        command = option(command)
    return command


def pop_settings(options: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Removes the values of `generation_options` -> the settings that are given or have a default.

    Raises ValueError, naming the option or the setting, before anything is loaded.
    """
    from vipllava_jax.generation.setting_checks import NUMBERS
    from vipllava_jax.generation.settings import GenerationSettings

    values = {name: options.pop(name) for name in OPTIONS}
    settings = {name: value for name, value in values.items() if value not in (None, ())}
    others = set()
    for name, value in options.pop('others'):
        if name in others:
            raise ValueError(f'--set {name} is given twice')
        if isinstance(value, list) and name in NUMBERS:
            raise ValueError(f'--set {name} is {brief(value)}: give one number, as there is one question')
        settings[name] = value
        others.add(name)
    n, beams = settings.get('num_return_sequences', 1), settings.get('num_beams', 1)
    if n > 1 and beams == 1 and not settings['temperature']:
        raise ValueError(f'--n {n} would give equal answers at --temperature 0: raise it, or use --beams')
    if n > beams > 1:
        raise ValueError(f'--beams {beams} gives at most {beams} answers, but --n is {n}')
    if 'logprobs' in settings and not as_json:
        raise ValueError('--logprobs needs --json, which prints them')
    GenerationSettings(**settings)
    return settings

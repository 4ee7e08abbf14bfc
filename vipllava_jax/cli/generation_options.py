"""The options for how answers are generated."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from vipllava_jax.cli.numbers import RealNumber, WholeNumber
from vipllava_jax.cli.option_groups import GroupedCommand
from vipllava_jax.messages import brief

F = TypeVar('F', bound=Callable[..., Any])
MAX_ANSWERS = 1024  # as in setting_checks, which would import NumPy
WORDS = {'True': True, 'False': False, 'None': None}  # which JSON writes true, false and null


class Setting(click.ParamType):
    """A setting without an option of its own, NAME=VALUE -> (name, value)."""

    name = 'setting'

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        name, found, text = value.partition('=')
        if not found:
            self.fail(f'{brief(value)} is not NAME=VALUE, such as typical_p=0.9', param, ctx)
        if name in OPTIONS:
            self.fail(f'{name} has an option of its own: use {OPTIONS[name]}', param, ctx)
        if name not in other_settings():
            self.fail(explain_unknown(name), param, ctx)
        try:
            return name, read_value(text)
        except ValueError as error:
            self.fail(f'{name} is {brief(text)}, which is not valid JSON: {error}', param, ctx)


def other_settings() -> list[str]:
    """The settings that --set takes: those without an option, except functions."""
    from vipllava_jax.generation.settings import GenerationSettings

    names = GenerationSettings.__dataclass_fields__
    return [name for name in names if name not in OPTIONS and name != 'processors']


def explain_unknown(name: str) -> str:
    """Why a name is not a setting and what to use instead, with the options of the command line."""
    from vipllava_jax.generation.refused_settings import explain

    if name == 'processors':
        return f"'{name}' is not a setting of the command line: it holds functions in Python"
    reason = explain(name, [*other_settings(), *OPTIONS])
    for setting, option in OPTIONS.items():
        reason = re.sub(rf'(?<![\w-]){setting}(?![\w.])', option, reason, count=1)
    return reason


class GenerationCommand(GroupedCommand):
    """A command that answers the name of a setting, given as an option, with how it is set here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if (advice := advice_for(error.option_name)) is None:
                raise
            raise click.UsageError(f'No such option {brief(error.option_name)}: {advice}', ctx) from None


def advice_for(option: str) -> str | None:
    """How a setting is given whose name was used as an option; None if it is not the name of one."""
    from vipllava_jax.generation.refused_settings import REFUSED

    name = option.lstrip('-').replace('-', '_')
    if name in OPTIONS:
        return f'use {OPTIONS[name]}'
    if name in other_settings():
        return f'use --set {name}=VALUE'
    return explain_unknown(name).partition(': ')[2] if name in REFUSED else None


def read_value(text: str) -> Any:
    """A value in JSON, or a bare word as a string; ValueError for a list or an object that is not JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError('it has too many levels') from None
    except ValueError:
        if text[:1] in ('[', '{'):
            example = '\'{"3869": 2}\'' if text[0] == '{' else "'[[306, 626]]'"
            raise ValueError(f'write it in quotes, such as {example}') from None
        return WORDS.get(text, text)


FILTERS = ('top_h', 'top_k', 'top_p', 'min_p', 'typical_p', 'epsilon_cutoff', 'eta_cutoff')  # of samples
OF_SEVERAL = ('num_return_sequences', 'logprobs')  # the options that a single streamed text has no use for
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
        help='In JSON, the log-probability of each token, and of the K likeliest tokens in its place.',
    ),
    click.option(
        '--set',
        'others',
        metavar='NAME=VALUE',
        multiple=True,
        type=Setting(),
        help='Another setting, with a value in JSON, such as typical_p=0.9 or bad_words_ids=[[306,626]]; '
        'docs/generation.md describes all of them. May be repeated.',
    ),
]


def generation_options(command: F, without: Sequence[str] = ()) -> F:
    """The options of DECLARED, in this order, except those with these names."""
    for option, name in reversed([*zip(DECLARED, [*OPTIONS, 'others'], strict=True)]):
        command = command if name in without else option(command)
    return command


def pop_settings(options: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Removes the values of `generation_options` -> the settings that are given or have a default.

    Raises ValueError, naming the option or the setting, before anything is loaded.
    """
    from vipllava_jax.generation.setting_checks import NUMBERS
    from vipllava_jax.generation.settings import GenerationSettings

    values = {name: options.pop(name, None) for name in OPTIONS}
    settings = {name: value for name, value in values.items() if value not in (None, ())}
    others = set()
    for name, value in options.pop('others'):
        if name in others:
            raise ValueError(f'--set {name} is given twice')
        if isinstance(value, list) and name in NUMBERS:
            raise ValueError(f'--set {name} is {brief(value)}: give one number, for all answers')
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


def idle_settings(settings: dict[str, Any]) -> list[str]:
    """The options and names of the given settings that filter samples, if nothing is sampled."""
    from vipllava_jax.generation.settings import GenerationSettings

    default = GenerationSettings()
    given = [name for name in FILTERS if name in settings and settings[name] != getattr(default, name)]
    return [] if settings['temperature'] else [OPTIONS.get(name, name) for name in given]

"""Generates command lines with the options of every subcommand, as listed by the command."""

import json
from importlib import import_module

import click
from hypothesis import strategies as st

from tests.fuzz.nasty import TEXTS, Draw, words
from vipllava_jax.cli import COMMANDS
from vipllava_jax.cli.generation_options import Setting

LINES = {
    'ask': words("""What is {mark}?  --model  model  --image  photo.png  --mark  rectangle:10,10,50,40:red
        --max-new-tokens  9  --temperature  1  --n  2  --stop  x  --set  typical_p=0.9"""),
    'chat': words(
        '--model  model  --image  photo.png  --mark  rectangle:10,10,50,40:red  --max-new-tokens  9'
    ),
    'regions': words('photo.png  --model  model  --boxes  boxes.csv  --max-new-tokens  2  --batch  2'),
    'batch': words('rows.jsonl  --model  model  -o  answers.jsonl  --max-new-tokens  2  --prompt  What?'),
    'serve': words('--model  model  --port  0  --max-new-tokens  2'),
    'draw': words('photo.png  out.png  --mark  rectangle:10,10,50,40:red'),
    'convert': words('model  out'),
    'eval': words('--model  model  --data  rows.jsonl  --batch  2  --max-new-tokens  2'),
    'info': words('--model  model'),
    'train': words('run.toml'),
    'bench': words('--model  model  --what  load'),
    'demo': words('--output  out.png'),
    'doctor': words('--model  model  --time-limit  5'),
}
SLOW_COMMANDS = (
    'batch',
    'serve',
    'train',
    'bench',
    'demo',
    'doctor',
)  # they would take minutes: each of their lines is wrong
# Only paths in the working directory, because some options name files to write.
WORDS = tuple(text for text in TEXTS if not {'/', '\0', '\ud800'} & set(text)) + words("""
    -  -x  rows.json  rows.jsonl  photo.png  link.png  fifo  out.png  out  model  run.toml  type  \udcff
    rectangle:10,10,50,40:red  2/point:1,1  What is {mark}?  {mark9}
""")
INVALID = ('-1', 'x', '', 'nan', '1e400', '9' * 5000, '0x1', '\x1b[31m', '-' + '9' * 30)
INTEGERS = (*words('0  1  2  100  2147483647  2147483648  1.0'), '9' * 30, *INVALID)
SETTINGS = words("""
    typical_p=0.9  typical_p=NaN  top_h=[0.5]  max_time=1e-9  min_new_tokens=3  logit_bias={"7":3}  eos=[]
    early_stopping=never  suppress_tokens=[[1]]  bad_words_ids=[[3,4],[5]]  sequence_bias=[[[3,4],-1e9]]
    exponential_decay_length_penalty=[2,9.5]  renormalize_logits=true  keep_stop=True  guidance_scale=2
    temperature=1  x=  =x  processors=[]  forced_eos_token_id=399  no_repeat_ngram_size=2147483647
""")
STDIN = (b'What?', b'', b'\xff\xfeW\0', b'\xef\xbb\xbfWhat?', b'\xff', b'\x1b[2J', b'x' * (2 << 20))


@st.composite
def commands(draw: Draw) -> dict[str, bytes]:
    """A valid command line, with words inserted or removed and options of the subcommand added."""
    verb = draw(st.sampled_from([*COMMANDS]))
    line = [*LINES[verb]]
    command = getattr(import_module(f'vipllava_jax.cli.{verb}'), verb)
    options = [option for option in command.params if isinstance(option, click.Option)]
    invalid = draw(st.sampled_from([o for o in options if not is_text(o)])) if verb in SLOW_COMMANDS else None
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(line)))
        line[at : at + min(1, draw(st.integers(0, 4)))] = [draw(st.sampled_from(WORDS))]
    for option in draw(st.lists(st.sampled_from(options), max_size=3, unique_by=lambda option: option.name)):
        if option is not invalid:
            line += option_with_value(draw, option)
    if invalid:
        line += [invalid.opts[0], draw(st.sampled_from(INVALID))]
    return {'arguments.json': json.dumps([verb, *line]).encode(), 'stdin': draw(st.sampled_from(STDIN))}


def option_with_value(draw: Draw, option: click.Option) -> list[str]:
    """An option with a valid or invalid value."""
    name = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
    if option.is_flag:
        return [name]
    if isinstance(option.type, Setting):
        return [name, draw(st.sampled_from((*SETTINGS, *WORDS)))]
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    return [name, draw(st.sampled_from((*choices, *(WORDS if is_text(option) else INTEGERS))))]


def is_text(option: click.Option) -> bool:
    return option.is_flag or option.type.name in ('text', 'path', 'file', 'dir')

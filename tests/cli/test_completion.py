"""The shell completes subcommands, options, choices, and the names of files and folders."""

import os
import subprocess
import sys

import pytest

from vipllava_jax.cli import COMMANDS

COMMAND = "import sys; sys.argv[0] = 'vipllava'; from vipllava_jax.cli import main; main()"


def run(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, '-c', COMMAND], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.stderr == ''
    return done.stdout


def completions(line: str, shell: str = 'bash') -> list[str]:
    """What click answers to the completion script of a shell for a line whose last word is incomplete."""
    return run(
        _VIPLLAVA_COMPLETE=f'{shell}_complete',
        COMP_WORDS=line,
        COMP_CWORD=str(line.count(' ')),
    ).split()


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('ask --image ph', 'file,ph'),
        ('ask --model ', 'dir,'),
        ('ask --adapter ./a', 'dir,./a'),
        ('ask --save-image o', 'file,o'),
        ('ask --questions q', 'file,q'),
        ('chat --image ph', 'file,ph'),
        ('chat --load c', 'file,c'),
        ('draw ph', 'file,ph'),
        ('draw photo.jpg m', 'file,m'),
        ('demo --image ph', 'file,ph'),
        ('demo --output o', 'file,o'),
        ('eval --data h', 'file,h'),
        ('eval --images .', 'dir,.'),
        ('eval --data a.jsonl --json t', 'file,t'),
        ('convert ./v', 'dir,./v'),
        ('convert ./v o', 'dir,o'),
        ('convert --adapter a', 'dir,a'),
        ('train r', 'file,r'),
        ('train --data m', 'file,m'),
        ('train --eval-data m', 'file,m'),
        ('train --output r', 'dir,r'),
        ('info --model .', 'dir,.'),
        ('bench --json s', 'file,s'),
        ('bench --plot s', 'file,s'),
        ('--compilation-cache c', 'dir,c'),
    ],
)
def test_bash_completes_file_and_folder_names(line, expected):
    assert completions(f'vipllava {line}') == [expected]


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('ask --image ph', ['file', 'ph', '_']),
        ('ask --adapter a', ['dir', 'a', '_']),
        ('ask --fit p', ['plain', 'pad', '_']),
    ],
)
def test_zsh_completes_file_and_folder_names(line, expected):
    assert completions(f'vipllava {line}', 'zsh') == expected


def test_subcommands_options_and_choices_are_completed():
    assert completions('vipllava ') == [f'plain,{verb}' for verb in COMMANDS]
    assert completions('vipllava ask --te') == ['plain,--template', 'plain,--temperature']
    assert completions('vipllava ask --quantize int') == ['plain,int8', 'plain,int4']


def test_an_unknown_subcommand_has_no_completions():
    assert completions('vipllava aks --image ph') == []


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_every_shell_has_a_script(shell):
    script = run(_VIPLLAVA_COMPLETE=f'{shell}_source')
    assert '_vipllava_completion' in script
    assert f'_VIPLLAVA_COMPLETE={shell}_complete' in script

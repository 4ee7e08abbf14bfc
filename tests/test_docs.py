"""The pages: their links lead somewhere, and what they quote is what the package says and does."""

import re
import tomllib
from pathlib import Path

import click
import pytest

from tests.test_floors import FLOOR, entries
from vipllava_jax import cli

ROOT = Path(__file__).parent.parent
PAGES = [
    path
    for pattern in ('*.md', 'docs/*.md', 'convert/*.md', 'scripts/**/*.md')
    for path in sorted(ROOT.glob(pattern))
]
FENCED = re.compile(r'^```(\w*)\n(.*?)^```', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"')


def links(page: Path) -> list[str]:
    """The targets of a page's links and images."""
    text = FENCED.sub('', page.read_text())
    return [target or attribute for target, attribute in LINK.findall(text)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub forms them."""
    headings = re.findall(r'^#+ (.*)$', FENCED.sub('', page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def code(page: str, language: str) -> str:
    """The blocks of a language on a page, one after another."""
    return '\n'.join(text for name, text in FENCED.findall((ROOT / page).read_text()) if name == language)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for link in links(page):
        if '://' in link or link.startswith('mailto:'):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f'{page.name}: {link} does not exist'
        assert target.is_relative_to(ROOT), f'{page.name}: {link} is outside the repository'
        assert not anchor or anchor in anchors(target), f'{page.name}: {link} has no such heading'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_that_a_page_finds_in_a_file_are_there(page):
    for name, path in re.findall(r'`(\w+)`\s+in\s+\[[^\]]*\]\(([^)]+\.py)\)', page.read_text()):
        assert re.search(rf'\b{name}\b', (page.parent / path).read_text()), f'{page.name}: {name} in {path}'


def test_each_journey_goes_up_the_floors():
    page = (ROOT / 'docs/architecture.md').read_text().partition('## The letters')[0]
    journeys = [
        table for table in re.findall(r'(?:^\|.*\n)+', page, re.MULTILINE) if '](../vipllava_jax/' in table
    ]
    assert len(journeys) == 3
    for table in journeys:
        floors = []
        for name in re.findall(r'\]\(\.\./vipllava_jax/([^)]+)\.py\)', table):
            (entry,) = entries(name.replace('/', '.'))
            floors.append((FLOOR[entry], name))
        assert floors == sorted(floors, key=lambda pair: pair[0])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page):
    for line in re.findall(r'vipllava (?:[^\n`|&]|\\\n)*', page.read_text()):
        command, _, rest = line.removeprefix('vipllava ').partition(' ')
        if command not in cli.COMMANDS:
            continue
        known = cli.vipllava.get_command(None, command)
        options = {name for option in known.params for name in (*option.opts, *option.secondary_opts)}
        for option in re.findall(r'(?<!\S)--[a-z][a-z0-9-]*', rest.partition(' #')[0]):
            assert option in {*options, '--help'}, f'{page.name}: vipllava {command} {option}'


@pytest.mark.parametrize(
    'page',
    [
        'README.md',
        *(
            f'docs/{name}.md'
            for name in (
                *('loading', 'generation', 'chat', 'choices', 'regions', 'engine', 'batch'),
                *('evaluation', 'training'),
            )
        ),
    ],
)
def test_python_is_valid_and_its_names_are_public(page):
    import vipllava_jax

    text = code(page, 'python')
    compile(text, page, 'exec')
    for name in re.findall(r'\bvj\.(\w+)', (ROOT / page).read_text()):
        assert name in vipllava_jax.__all__, f'{page}: vj.{name}'


def test_the_table_of_settings_lists_each_with_whether_it_may_differ_per_row():
    from vipllava_jax.generation.setting_checks import NUMBERS
    from vipllava_jax.generation.settings import GenerationSettings

    table = (ROOT / 'docs/generation.md').read_text().partition('## Differences')[0]
    rows = dict(re.findall(r'^\| `(\w+)` \| (N?) *\|', table, re.MULTILINE))
    assert rows.keys() == GenerationSettings.__dataclass_fields__.keys()
    per_row = {*NUMBERS, 'exponential_decay_length_penalty'}
    assert {name for name, mark in rows.items() if mark} == per_row


def test_toml_is_valid_and_its_keys_are_settings():
    assert {'recipe', 'model', 'data', 'output'} <= tomllib.loads(code('docs/training.md', 'toml')).keys()


def test_the_readme_quotes_what_the_demo_prints(tmp_path, monkeypatch):
    from click.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    printed = CliRunner().invoke(cli.vipllava, ['demo', '--seed', '35'])
    quoted = next(text for _, text in FENCED.findall((ROOT / 'README.md').read_text()) if 'demo.png' in text)
    assert isinstance(cli.vipllava, click.Group)
    assert printed.output.startswith(quoted.removesuffix('…\n'))


def test_the_readme_is_one_page():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 115

"""`vipllava demo --page` serves the bundled model on a free port, and opens its page in the browser."""

import pytest

from vipllava_jax.cli import demo_page
from vipllava_jax.loading import DEMO


@pytest.fixture
def served(monkeypatch):
    """What the server was started with; it says at once where it listens, and opens no browser."""
    calls = []

    def run_server(source, name, mesh, keys, options, listening):
        calls.append((source, keys, options))
        listening('http://127.0.0.1:1234')

    monkeypatch.setattr(demo_page, 'run_server', run_server)
    monkeypatch.setattr(demo_page.webbrowser, 'open', calls.append)
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_the_demo_model_is_served_on_a_free_port(vipllava, served, monkeypatch):
    monkeypatch.setenv('VIPLLAVA_API_KEY', 'secret')
    ran = vipllava('demo', '--page')
    assert ran.code == 0
    assert 'the page is at http://127.0.0.1:1234 (Ctrl-C ends it)' in ran.err
    ((source, keys, options),) = served
    assert (source, keys, options['host'], options['port']) == (DEMO, (), '127.0.0.1', 0)


def test_the_page_is_opened_if_there_is_a_browser(vipllava, served, monkeypatch):
    monkeypatch.setenv('DISPLAY', ':0')
    vipllava('demo', '--page')
    assert served[1:] == ['http://127.0.0.1:1234']


def test_arguments_of_the_terminal_are_refused(vipllava, served):
    ran = vipllava('demo', '--page', '--seed', 3, 'What is {mark}?')
    assert ran.code != 0
    assert 'leave out seed, questions' in ran.err
    assert not served

"""Servers of an engine without a model, and one of the demo model."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from tests.serving.demo import KEY, NAME, chat
from tests.serving.fakes import FakeEngine, fake_protocol, make_model
from tests.serving.live import Live, live_server
from vipllava_jax.engine.engine import Engine
from vipllava_jax.serving.options import ServerOptions


@pytest.fixture(scope='session')
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp('processor'))


@pytest.fixture
def protocol(monkeypatch) -> None:
    """The fake endpoint in the place of the real ones."""
    fake_protocol(monkeypatch.setattr)


@pytest.fixture
def live(model, protocol) -> Iterator[object]:
    """Starts servers, with options and with those of the engine in `engine`; they end after the test."""
    with ExitStack() as stack:

        def start(engine: Mapping[str, object] | None = None, **options: object) -> Live:
            chosen = ServerOptions('tiny', port=0, **options)
            return stack.enter_context(live_server(chosen, lambda _: FakeEngine(model, **engine or {})))

        yield start


@pytest.fixture(scope='session')
def demo(demo_model) -> Iterator[Live]:
    """The demo model, served with an API key, for at most 8 requests at a time."""
    engine = Engine(demo_model, rows=4, slots=512, long_rows=0, workers=0)
    options = ServerOptions(NAME, port=0, api_keys=(KEY,), max_model_len=512, queue=4)
    with live_server(options, lambda report: engine) as live:
        yield live


@pytest.fixture(scope='session')
def client(demo) -> Iterator[Any]:
    """A client of the demo model that asks nothing twice."""
    with openai.OpenAI(base_url=f'http://127.0.0.1:{demo.port}/v1', api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope='session')
def ask(client) -> Any:
    """Asks a question, by default without a picture."""
    return lambda *parts, **fields: client.chat.completions.create(**chat(*parts, **fields))


@pytest.fixture(scope='session')
def text_of(ask) -> Any:
    """The text of the first answer."""
    return lambda *parts, **fields: ask(*parts, **fields).choices[0].message.content

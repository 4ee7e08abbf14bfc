"""Serves a fake engine in a process of its own; the arguments are a folder, and two objects in JSON."""

import json
import sys
from pathlib import Path

from tests.serving.fakes import FakeEngine, fake_protocol, make_model
from vipllava_jax import signals
from vipllava_jax.serving.options import ServerOptions
from vipllava_jax.serving.process import run
from vipllava_jax.serving.state import Server

if __name__ == '__main__':
    folder, options, numbers = sys.argv[1:]
    signals.end_cleanly()
    fake_protocol(setattr)
    model = make_model(Path(folder))
    server = Server(
        ServerOptions('tiny', **json.loads(options)), lambda report: FakeEngine(model, **json.loads(numbers))
    )
    run(server, lambda url: print(url, flush=True))
    print(f'{server.engine.asked} asked, {server.engine.cancelled} cancelled')

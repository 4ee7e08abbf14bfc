"""`vipllava demo --page`: serves the bundled model, and opens the page on which marks are drawn."""

import os
import sys
import webbrowser

import click

from vipllava_jax.cli.serve import serve
from vipllava_jax.cli.serve_start import run_server
from vipllava_jax.loading import DEMO

# A few rows compile sooner than as many as the memory has room for.
ARGUMENTS = ['--model', DEMO, '--port', '0', '--rows', '4', '--slots', '1024']


def serve_page() -> None:
    """Serves the page on a free port until a signal ends it, and opens it in the browser if there is one."""
    with serve.make_context('vipllava serve', ARGUMENTS) as context:
        options = {**context.params, 'origins': (), 'image_hosts': ()}
        source, name, mesh = (options.pop(key) for key in ('source', 'name', 'mesh'))
        for unused in ('api_keys', 'api_key_file'):  # others of this computer may draw as well
            del options[unused]
        run_server(source, name, mesh, (), options, listening=show_page)


def show_page(url: str) -> None:
    """Prints the URL of the page, and opens it; in the terminal alone, it is opened by hand."""
    click.echo(f'vipllava: the page is at {url} (Ctrl-C ends it)', err=True)
    if sys.platform == 'darwin' or os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'):
        webbrowser.open(url)

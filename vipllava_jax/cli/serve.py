"""`vipllava serve`: answers requests over HTTP, as OpenAI's API does, with marks in them."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from vipllava_jax.cli.engine_options import ENGINE_OPTIONS, engine_options
from vipllava_jax.cli.generation_options import OPTIONS, GenerationCommand, generation_options
from vipllava_jax.cli.mesh import mesh_option
from vipllava_jax.cli.models import fit_option, model_option, template_option, weight_options
from vipllava_jax.cli.numbers import RealNumber, WholeNumber
from vipllava_jax.cli.paths import FILE
from vipllava_jax.cli.serve_start import run_server

WITHOUT = ('seed', 'num_return_sequences', 'num_beams', 'logprobs')  # which only requests can ask for
GROUPS = {
    'Address': ('host', 'port', 'uds', 'tls_cert', 'tls_key', 'origins'),
    'Access': ('api_keys', 'api_key_file', 'image_hosts'),
    'Model': ('source', 'name', 'dtype', 'quantize', 'adapter', 'mesh'),
    'Engine': ('max_model_len', 'memory_fraction', *ENGINE_OPTIONS, 'queue'),
    'Generation, where a request says nothing': (
        *(name for name in OPTIONS if name not in WITHOUT),
        'others',
        'template',
        'fit',
    ),
    'Operation': ('drain', 'log_format', 'log_prompts'),
}


@click.command(cls=GenerationCommand, groups=GROUPS)
@model_option
@click.option(
    '--served-model-name',
    'name',
    metavar='NAME',
    help='The name of the model in requests.  [default: that of --model, of a folder its last part]',
)
@weight_options
@mesh_option
@click.option(
    '--host',
    metavar='ADDRESS',
    default='127.0.0.1',
    show_default=True,
    help='The address to listen on; one that others can reach, such as 0.0.0.0, needs an --api-key.',
)
@click.option(
    '--port',
    metavar='N',
    type=WholeNumber(0, 65535),
    default=8000,
    show_default=True,
    help='The port to listen on; 0 for any free one, which is printed.',
)
@click.option('--uds', metavar='PATH', type=FILE, help='Listen on a Unix socket instead of a port.')
@click.option(
    '--api-key',
    'api_keys',
    metavar='KEY',
    multiple=True,
    envvar='VIPLLAVA_API_KEY',
    show_envvar=True,
    help='Answer only requests with this key, or another that is given. May be repeated.',
)
@click.option('--api-key-file', metavar='FILE', type=FILE, help='The file of more keys, one per line.')
@click.option(
    '--allow-origin',
    'origins',
    metavar='ORIGIN',
    multiple=True,
    help='Let web pages of this origin, such as https://example.com, call the server. May be repeated.',
)
@click.option(
    '--allow-image-host',
    'image_hosts',
    metavar='HOST',
    multiple=True,
    help='Fetch pictures of requests from this host. May be repeated.  [default: only data URIs are read]',
)
@click.option('--tls-cert', metavar='FILE', type=FILE, help='Serve https, with this certificate in PEM.')
@click.option(
    '--tls-key', metavar='FILE', type=FILE, help='The key of the certificate.  [default: in --tls-cert]'
)
@click.option(
    '--max-model-len',
    metavar='N',
    type=WholeNumber(16),
    help="The most tokens of a prompt and its answer.  [default: the model's context]",
)
@click.option(
    '--memory-fraction',
    metavar='F',
    type=RealNumber(0, 1, min_open=True),
    help='The part of the memory of a GPU that is used.  [default: 0.95]',
)
@engine_options
@click.option(
    '--queue',
    metavar='N',
    type=WholeNumber(1, 2**20),
    default=1024,
    show_default=True,
    help='The most questions that wait for a row; requests beyond that are refused.',
)
@template_option
@fit_option("as in the checkpoint's files")
@partial(generation_options, without=WITHOUT)
@click.option(
    '--drain',
    metavar='SECONDS',
    type=RealNumber(0, 86400),
    default=30.0,
    show_default=True,
    help='The time for requests to finish after SIGTERM or Ctrl-C.',
)
@click.option(
    '--log-format',
    type=click.Choice(('text', 'json')),
    default='text',
    show_default=True,
    help='The format of the lines on stderr, one for each request.',
)
@click.option('--log-prompts', is_flag=True, help='Also log the texts of prompts.')
def serve(
    source: str,
    name: str | None,
    mesh: Any,
    api_keys: tuple[str, ...],
    api_key_file: str | None,
    **options: Any,
) -> None:
    """Answer requests over HTTP, as OpenAI's API does, with marks drawn on their pictures.

    The server is at http://127.0.0.1:8000/v1 for clients of OpenAI; /openapi.json describes it, and /ready
    says when the model is loaded. After Ctrl-C or SIGTERM it finishes the requests that it has accepted.

    \b
    Examples:
      vipllava serve --model demo
      vipllava serve --model ./vip-llava-7b --port 9000 --max-new-tokens 256
      VIPLLAVA_API_KEY=… vipllava serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
      vipllava serve --uds /run/vipllava/socket --log-format json
    """
    keys = (*api_keys, *(read_keys(api_key_file) if api_key_file else ()))
    run_server(source, name, mesh, keys, options)


def read_keys(path: str) -> list[str]:
    """The keys in a file, one per line; ValueError if there is none."""
    try:
        lines = Path(path).read_text('utf-8').splitlines()
    except UnicodeDecodeError:
        raise ValueError(f'{path}: not UTF-8: expected API keys, one per line') from None
    keys = [line.strip() for line in lines if line.strip()]
    if any(len(key.split()) > 1 for key in keys):
        raise ValueError(f'{path}: a line has spaces: expected API keys, one per line, and nothing else')
    if not keys:
        raise ValueError(f'{path}: empty: expected API keys, one per line')
    return keys

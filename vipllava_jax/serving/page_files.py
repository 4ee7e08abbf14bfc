"""The page at /: its files, the picture that it begins with, and what it must know about the server."""

import gzip
import io
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS
from vipllava_jax.inputs.pixels import FITS
from vipllava_jax.inputs.prompts import TEMPLATE_NAMES
from vipllava_jax.serving.responses import json_response
from vipllava_jax.serving.state import Server

FOLDER = 'page'
TYPES = {'html': 'text/html', 'css': 'text/css', 'js': 'text/javascript', 'svg': 'image/svg+xml'}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
EXAMPLE_SEED = 16  # of a scene with a few things that are easy to tell apart


class PageFiles:
    """Serves the page; its files are read once, so that no path of a request reaches the file system."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.files = {
            entry.name: gzip.compress(entry.read_bytes(), mtime=0)
            for entry in files(__package__).joinpath(FOLDER).iterdir()
            if entry.name.rpartition('.')[2] in TYPES
        }

    async def index(self, request: Request) -> Response:
        return self._response('index.html', request)

    async def file(self, request: Request) -> Response:
        return self._response(request.path_params['name'], request)

    async def example(self, request: Request) -> Response:
        data, _ = await self.server.in_thread(example)
        return Response(data, media_type='image/png')

    async def about(self, request: Request) -> Response:
        """What the page offers, which is known before the model is loaded."""
        options = self.server.options
        _, mark = await self.server.in_thread(example)
        return json_response(
            {
                'model': options.name,
                'needs_key': bool(options.api_keys),
                'template': options.template,
                'templates': TEMPLATE_NAMES,
                'fit': options.fit,
                'fits': FITS,
                'prepositions': PREPOSITIONS,
                'colors': COLORS,
                'limits': options.limits,
                'example': {'marks': [mark], 'question': 'What is {mark}?'},
            }
        )

    def _response(self, name: str, request: Request) -> Response:
        """A file, compressed for all who take that; 404 if there is none of this name."""
        if name not in self.files:
            raise HTTPException(404)
        data, headers = self.files[name], {'content-security-policy': POLICY, 'vary': 'accept-encoding'}
        if 'gzip' in request.headers.get('accept-encoding', ''):
            headers['content-encoding'] = 'gzip'
        else:
            data = gzip.decompress(data)
        return Response(data, headers=headers, media_type=TYPES[name.rpartition('.')[2]])


@cache
def example() -> tuple[bytes, dict[str, Any]]:
    """A picture of the demo's world as a PNG, and a mark around the largest thing in it."""
    from vipllava_jax.demo.drawing import outline, picture
    from vipllava_jax.demo.world import make_scene

    scene = make_scene(Random(EXAMPLE_SEED))
    file = io.BytesIO()
    picture(scene).save(file, 'PNG', optimize=True)
    x, y = zip(*outline(max(scene.things, key=lambda thing: thing.radius)), strict=True)
    box = [round(value) for value in (min(x), min(y), max(x), max(y))]
    return file.getvalue(), {'shape': 'rectangle', 'box': box, 'color': 'red'}

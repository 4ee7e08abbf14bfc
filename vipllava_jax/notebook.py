"""A widget for notebooks: a picture on which marks are drawn, as on the page of the server."""

import base64
import io
import json
import re
from importlib.resources import files
from typing import Any

from vipllava_jax.inputs.images import ImageSource, open_image
from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS, Mark

# In place of the requests of the page: its example is the picture, and the name of the frame is its marks.
API = """
const answers = {
  '/ready': { json: () => ({ status: 'ready' }) },
  '/page/about.json': { json: () => ({ ...given, example: { marks: JSON.parse(self.name), question: '' } }) },
  '/page/example.png': { blob: async () => (await fetch(given.picture)).blob() },
};
export const get = async (path) => answers[path];
export const post = () => new Promise(() => {});
export const [events, apiKey, setApiKey] = [post, () => '', () => {}];
"""
FRAME = """
import 'main.js';
import { regionOf } from 'regions.js';
import { listen, state } from 'state.js';
[document.onpaste, window.ondrop] = [null, (event) => event.preventDefault()];  // it keeps its picture
listen(['marks'], () => parent.postMessage(state.marks.map(regionOf), '*'));
"""
# Modules of a frame have no addresses but those of blobs, for which an import map has their names.
START = """
const address = ([name, text]) => [name, URL.createObjectURL(new Blob([text], { type: 'text/javascript' }))];
const imports = Object.fromEntries(Object.entries(modules).map(address));
const map = Object.assign(document.createElement('script'), { type: 'importmap' });
map.textContent = JSON.stringify({ imports });
document.head.append(map);
addEventListener('DOMContentLoaded', () => import('frame.js'));
"""
STYLE = """
a, header, #asking, #sees, #drawing > .bar > :is(.button, #camera-open, #example) { display: none }
body { height: auto; min-height: 0 } main { display: block } #drawing { padding: 0 } #stage { height: 24rem }
"""
WIDGET = """
export default { render({ model, el }) {
  const properties = { title: 'Marks on a picture', style: 'width: 100%; height: 37rem; border: 0' };
  const frame = Object.assign(document.createElement('iframe'), properties, { srcdoc: model.get('page') });
  const hear = ({ source, data }) => {
    if (source !== frame.contentWindow) return;
    frame.name = JSON.stringify(data);
    model.set('regions', data);
    model.save_changes();
  };
  const show = () => {
    const name = JSON.stringify(model.get('regions'));
    if (name !== frame.name) el.append(Object.assign(frame, { name })); // which loads the frame again
  };
  show();
  addEventListener('message', hear);
  model.on('change:regions', show);
  return () => [removeEventListener('message', hear), model.off('change:regions', show)];
} };
"""


def draw_widget(image: ImageSource) -> Any:
    """A picture -> a widget for notebooks, on which marks are drawn; its `marks` are those of `vj.answer`."""
    try:
        import anywidget
        from traitlets import List, Unicode
    except ModuleNotFoundError:
        raise ModuleNotFoundError("widgets need anywidget: pip install 'vipllava-jax[notebook]'") from None

    class DrawWidget(anywidget.AnyWidget):
        _esm = WIDGET
        page, regions = Unicode().tag(sync=True), List().tag(sync=True)

        @property
        def marks(self) -> list[Mark]:
            return [Mark(**{**region, 'units': 'pixel'}) for region in self.regions]

    return DrawWidget(page=page_of(image))


def page_of(image: ImageSource) -> str:
    """The page with a picture, as one document that requests nothing."""
    file = io.BytesIO()
    open_image(image).save(file, 'JPEG', quality=90)
    picture = f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'
    given = {'prepositions': PREPOSITIONS, 'colors': COLORS, 'picture': picture}
    given |= {'model': '', 'templates': [], 'fits': [], 'limits': {'marks': 64, 'regions': 64}}
    folder = files('vipllava_jax.serving').joinpath('page')
    texts = {entry.name: entry.read_text('utf-8') for entry in folder.iterdir()}
    texts |= {'api.js': API, 'frame.js': FRAME}
    modules = {name: text.replace("'./", "'") for name, text in texts.items() if name.endswith('.js')}
    data = json.dumps({'given': given, 'modules': modules}).replace('<', r'\u003c')
    script = f'const {{ given, modules }} = {data};{START}'
    head = f'<script>{script}</script><style>{texts["style.css"]}{STYLE}</style></head>'
    return re.sub('<(link|script) .*', '', texts['index.html']).replace('</head>', head)

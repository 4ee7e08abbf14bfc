// A request as text, to be sent by other programs.

import { byId } from './elements.js';
import { state } from './state.js';

const SHOWN = 48; // characters of a picture's data that are shown
const FILE = 'picture';

/** Shows the request { path, body } in a dialog, from which it is copied. */
export function showSnippet({ path, body }) {
  const dialog = byId('code');
  const texts = { curl: curl(path, body), python: python(path, body), json: JSON.stringify(body, null, 2) };
  const choose = () => {
    const kind = dialog.querySelector('input:checked').value;
    byId('code-text').textContent = shortened(texts[kind]);
    byId('copied').textContent = '';
    byId('copy').onclick = () => copy(texts[kind]);
    const name = fileName();
    byId('code-note').textContent = kind === 'json' ? 'The whole request, with the picture in it.' : `Expects the picture as ${name} in the current folder.`;
  };
  dialog.onchange = choose;
  choose();
  dialog.showModal();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    byId('copied').textContent = 'Copied.';
  } catch {
    getSelection().selectAllChildren(byId('code-text'));
    byId('copied').textContent = 'The browser does not allow it: copy the selected text.';
  }
}

const shortened = (text) => text.replaceAll(state.picture.data, `${state.picture.data.slice(0, SHOWN)}…`);
const typeOf = () => state.picture.data.slice(5, state.picture.data.indexOf(';'));
const fileName = () => `${FILE}.${typeOf().split('/')[1]}`;

/** A command that puts the file in the place of the picture. */
function curl(path, body) {
  const json = JSON.stringify(body).replaceAll('%', '%%').replaceAll('\\', '\\\\').replaceAll("'", "'\\''");
  const [head] = state.picture.data.split(',');
  const key = state.about.needs_key ? ` -H "Authorization: Bearer $VIPLLAVA_API_KEY"` : '';
  return (
    `printf '${json.replace(state.picture.data, `${head},%s`)}' "$(base64 < ${fileName()} | tr -d '\\n')" |\n` +
    `  curl ${location.origin}${path}${key} -H 'Content-Type: application/json' -d @-\n`
  );
}

/** A program for the client of OpenAI, or for regions one for urllib. */
function python(path, body) {
  const key = state.about.needs_key ? `os.environ['VIPLLAVA_API_KEY']` : `'none'`;
  const call =
    path === '/v1/regions'
      ? `answer = client.post('/regions', body=request, cast_to=object)\nfor region in answer['data']:\n    print(region['answer'])\n`
      : `answer = client.post('/chat/completions', body=request, cast_to=object)\nprint(answer['choices'][0]['message']['content'])\n`;
  return (
    `import base64\nimport os\n\nfrom openai import OpenAI\n\n` +
    `with open('${fileName()}', 'rb') as file:\n` +
    `    picture = 'data:${typeOf()};base64,' + base64.b64encode(file.read()).decode()\n` +
    `request = ${literal(body, '')}\n` +
    `client = OpenAI(base_url='${location.origin}/v1', api_key=${key})\n${call}`
  );
}

/** A value of JSON as Python writes it, with the name of the picture in the place of its data. */
function literal(value, indent) {
  if (value === state.picture.data) return 'picture';
  if (value === null || typeof value === 'boolean') return { null: 'None', true: 'True', false: 'False' }[value];
  if (typeof value !== 'object') return JSON.stringify(value);
  const inner = `${indent}    `;
  if (Array.isArray(value)) {
    if (value.every((item) => typeof item === 'number')) return `[${value.join(', ')}]`;
    return `[\n${value.map((item) => `${inner}${literal(item, inner)},\n`).join('')}${indent}]`;
  }
  const fields = Object.entries(value).map(([key, item]) => `${inner}${JSON.stringify(key)}: ${literal(item, inner)},\n`);
  return `{\n${fields.join('')}${indent}}`;
}

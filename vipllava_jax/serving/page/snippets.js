import { onClick, page } from './elements.js';
import { state } from './state.js';

const { code, 'code-text': text, copied } = page;
let whole = ''; // the text, of which a part is shown

export function showSnippet([path, body]) {
  const [head, data] = state.picture.data.split(',');
  const file = `picture.${head.match(/\/(\w+)/)[1]}`;
  const json = JSON.stringify(body, null, 2).replace(/\n\s+(?=-?\d)|(?<=\d)\n\s+(?=])/g, '');
  code.onchange = () => {
    const kind = code.querySelector('input:checked').value;
    whole = { curl, python, json: () => json }[kind](path, json, head, data, file);
    text.textContent = whole.replace(data, `${data.slice(0, 48)}…`);
    copied.textContent = '';
    page['code-note'].textContent = kind === 'json' ? '' : `Expects the picture as ${file} in the current folder.`;
  };
  code.onchange();
  code.showModal();
}

/** A command whose shell puts the file in the place of the picture. */
function curl(path, json, head, data, file) {
  const key = state.about.needs_key ? ' -H "Authorization: Bearer $VIPLLAVA_API_KEY"' : '';
  const escaped = json.replace(/[\\$`]/g, '\\$&').replace(data, () => `$(base64 < ${file} | tr -d '\\n')`);
  return `curl ${location.origin}${path}${key} -H 'Content-Type: application/json' -d @- <<END\n${escaped}\nEND\n`;
}

/** A program for the client of OpenAI; JSON without true, false and null is Python as well. */
function python(path, json, head, data, file) {
  const answer = state.mode === 'ask' ? "['choices'][0]['message']['content']" : "['data']";
  return `\
import base64
import os

from openai import OpenAI

with open('${file}', 'rb') as file:
    picture = '${head},' + base64.b64encode(file.read()).decode()
request = ${json.replace(`"${head},${data}"`, 'picture')}
client = OpenAI(base_url='${location.origin}/v1', api_key=os.environ.get('VIPLLAVA_API_KEY', 'none'))
answer = client.post('${path.slice(3)}', body=request, cast_to=object)
print(answer${answer})
`;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(whole);
    copied.textContent = 'Copied.';
  } catch {
    getSelection().selectAllChildren(text);
    copied.textContent = 'The browser does not allow it: copy the selected text.';
  }
}

onClick({ copy });

// One question about each mark, and the answers beside them.

import { events } from './api.js';
import { annotations, cocoOf, jsonOf } from './annotations.js';
import { run } from './asking.js';
import { announce, byId, create, download, notify } from './elements.js';
import { regionsRequest } from './requests.js';
import { change, edit, listen, state } from './state.js';

const list = byId('answers');

export const nextRegions = (question) => regionsRequest(question, byId('together').checked);

/** Asks about all marks; the answers arrive in any order. */
export async function askAll(question) {
  if (!state.marks.length) {
    notify('There are no marks to ask about: draw some, or import them.');
    return;
  }
  byId('regions-status').scrollIntoView({ block: 'nearest' });
  const answers = state.marks.map(() => '');
  let complete = 0;
  const error = await run(async (signal, began) => {
    for await (const event of events('/v1/regions', { ...nextRegions(question), stream: true }, signal)) {
      if (event.index === undefined) continue;
      began();
      answers[event.index] += event.delta ?? '';
      complete += Boolean(event.finish_reason);
      tell(`${complete} of ${answers.length} answered`);
      change({ answers });
    }
  }, tell);
  if (error) tell(error.message, true);
  else announce(`All ${answers.length} marks are answered.`);
}

function tell(text, isError = false) {
  byId('regions-status').textContent = text;
  byId('regions-status').classList.toggle('error', isError);
}

function show() {
  while (list.children.length > state.marks.length) list.lastChild.remove();
  state.marks.forEach((mark, n) => {
    const item = list.children[n] ?? list.appendChild(create('li', {}, create('span', { class: 'dot' }), create('span')));
    item.firstChild.className = `dot ${mark.color}`;
    item.lastChild.textContent = state.answers[n] || '–';
  });
}

async function importFile(file) {
  if (!file) return;
  try {
    const { marks, left } = annotations(JSON.parse(await file.text()), state);
    const room = state.about.limits.regions - state.marks.length;
    edit([...state.marks, ...marks.slice(0, room)], -1);
    const without = left + Math.max(marks.length - room, 0);
    notify(without ? `Left out: ${without} of the regions in ${file.name}, which are not on the picture, or too many.` : '');
    announce(`${Math.min(marks.length, room)} regions were imported.`);
  } catch (error) {
    notify(`${file.name} cannot be imported: ${error instanceof SyntaxError ? 'it is not JSON' : error.message}.`);
  }
}

const save = (name, data) => download(name, `${JSON.stringify(data, null, 1)}\n`);
byId('import').addEventListener('click', () => byId('import-file').click());
byId('import-file').addEventListener('change', async ({ target }) => {
  await importFile(target.files[0]);
  target.value = '';
});
byId('export-json').addEventListener('click', () => save('regions.json', jsonOf(state, byId('question').value)));
byId('export-coco').addEventListener('click', () => save('coco.json', cocoOf(state)));
listen((changed) => {
  if (changed.has('marks') || changed.has('answers')) show();
});

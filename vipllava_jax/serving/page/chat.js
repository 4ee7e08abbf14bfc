// A conversation about the picture: its turns, and the answer as it arrives.

import { events } from './api.js';
import { run } from './asking.js';
import { announce, byId, create } from './elements.js';
import { whatTheModelSees } from './preview.js';
import { chatRequest } from './requests.js';
import { listen, state, withPhrases } from './state.js';

const log = byId('conversation');
let turns = []; // { role, content }, with phrases in place of {mark}
let shown = ''; // the picture beside the last question

/** The request for the question that is written, as it would be sent. */
export const nextRequest = (text) => chatRequest([...turns, { role: 'user', content: text }]);

/** Asks a question; the turns are kept once there is an answer. */
export async function ask(text) {
  const asked = { role: 'user', content: withPhrases(text) };
  const body = { ...nextRequest(text), stream: true };
  const bubble = create('p', { class: 'question' }, asked.content);
  const answer = create('p', { class: 'answer' });
  const entry = create('article', {}, bubble, answer);
  log.append(entry);
  addPicture(bubble);
  answer.scrollIntoView({ block: 'nearest' });
  let content = '';
  const error = await run(async (signal, began) => {
    for await (const event of events('/v1/chat/completions', body, signal)) {
      const choice = event.choices?.[0];
      if (choice?.delta.content) began();
      content += choice?.delta.content ?? '';
      if (content) write(answer, content);
      if (choice?.finish_reason === 'length') answer.after(create('p', { class: 'note' }, 'The answer has reached its greatest length, which the settings say.'));
    }
  }, (said) => {
    if (!content) answer.replaceChildren(create('span', { class: 'waiting' }, said));
  });
  if (error) fail(entry, answer, content, error, text);
  else if (!content) answer.replaceChildren(create('span', { class: 'waiting' }, 'There is no answer.'));
  if (!error && content) {
    turns.push(asked, { role: 'assistant', content });
    announce(`Answer: ${content}`);
  }
  return !error;
}

function write(answer, content) {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  answer.textContent = content;
  if (isAtEnd) log.scrollTop = log.scrollHeight; // unless the reader has scrolled up
}

function fail(entry, answer, content, error, text) {
  if (!content) answer.remove();
  const again = create('button', { onclick: () => (entry.remove(), ask(text)) }, 'Try again');
  entry.append(create('p', { class: 'error' }, error.message), again);
  log.scrollTop = log.scrollHeight;
}

/** Shows beside a question what the model saw, unless it is as before. */
function addPicture(bubble) {
  whatTheModelSees().then((image) => {
    if (!image || image === shown) return;
    shown = image;
    bubble.prepend(create('img', { src: image, alt: 'What the model saw', width: 64, height: 64 }));
  });
}

export function startAnew() {
  [turns, shown] = [[], ''];
  log.replaceChildren();
}

listen((changed) => {
  if (changed.has('picture')) startAnew();
});

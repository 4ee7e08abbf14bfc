// Questions and their answers: one in a conversation, or one about each mark.

import { events } from './api.js';
import { announce, create, dot, notify, onClick, page } from './elements.js';
import { chatRequest, regionsRequest } from './requests.js';
import { showSettings } from './settings.js';
import { change, listen, state, withPhrases } from './state.js';

const LONG = 6; // seconds after which the queue must be long
const { conversation: log, question } = page;
let turns = []; // { role, content }, with phrases in place of {mark}
let sending = null; // the AbortController of the request on its way

export function requestFor(text) {
  return state.mode === 'ask' ? chatRequest([...turns, { role: 'user', content: text }]) : regionsRequest(text);
}

async function ask(text) {
  const isChat = state.mode === 'ask';
  const asked = isChat ? withPhrases(text) : text;
  const request = requestFor(text);
  const waiting = create('p', { class: 'note' });
  const entry = create('article', {}, create('p', { class: 'question' }, asked), waiting);
  const take = isChat ? oneAnswer(entry) : eachAnswer(entry);
  let answer = '';
  log.append(entry);
  entry.scrollIntoView({ block: 'nearest' });
  sending = new AbortController();
  const timer = showWaiting(waiting);
  showButtons();
  try {
    for await (const event of events(request, sending.signal)) {
      const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      answer = take(event);
      waiting.hidden = Boolean(answer);
      if (isAtEnd) log.scrollTop = log.scrollHeight; // unless the reader has scrolled up
    }
    announce(`Answer: ${answer}`);
  } catch (error) {
    if (error.name !== 'AbortError') {
      waiting.remove();
      return fail(error, entry, text);
    }
  } finally {
    clearInterval(timer);
    sending = null;
    showButtons();
  }
  if (!answer) waiting.textContent = 'There is no answer.';
  else if (isChat) turns.push({ role: 'user', content: asked }, { role: 'assistant', content: answer });
}

/** Adds the place of an answer; returns what takes an event and returns the answer as far as it goes. */
function oneAnswer(entry) {
  const place = create('p', { class: 'answer' });
  entry.append(place);
  return ({ choices: [choice] = [] }) => {
    place.textContent += choice?.delta.content ?? '';
    const isCut = choice?.finish_reason === 'length';
    if (isCut) entry.append(create('p', { class: 'note' }, 'This is the longest answer that the settings allow.'));
    return place.textContent;
  };
}

function eachAnswer(entry) {
  const answers = state.marks.map(() => '');
  const items = state.marks.map(({ color }) => create('li', {}, dot(color), create('span', {}, '…')));
  entry.append(create('ol', {}, ...items));
  return ({ index, delta }) => {
    if (index !== undefined) {
      answers[index] += delta ?? '';
      items[index].lastChild.textContent = answers[index];
      change({ answers });
    }
    return answers.join('\n').trim();
  };
}

/** Says how long an answer is waited for; returns the timer. */
function showWaiting(place) {
  const begin = Date.now();
  const show = () => {
    const seconds = Math.round((Date.now() - begin) / 1000);
    const why = seconds < LONG ? 'Waiting for the answer' : 'Others are asking too: waiting for a place in the queue';
    place.textContent = `${why} … ${seconds ? `${seconds} s` : ''}`;
  };
  show();
  return setInterval(show, 1000);
}

function fail(error, entry, text) {
  const again = () => {
    entry.remove();
    ask(text);
  };
  entry.append(create('p', { class: 'error' }, error.message), create('button', { onclick: again }, 'Try again'));
  log.scrollTop = log.scrollHeight;
  announce(error.message);
  if (error.status === 401) showSettings();
  if (!question.value) write(text);
}

function write(text) {
  question.value = text;
  showButtons();
}

function showButtons() {
  page.stop.hidden = !sending;
  page.ask.hidden = Boolean(sending);
  const { phase, picture, marks, mode } = state;
  const isMissing = !picture || !question.value.trim() || (mode === 'regions' && !marks.length);
  page.ask.disabled = sending || phase !== 'ready' || isMissing;
  page.ask.textContent = mode === 'ask' ? 'Ask' : `Ask about ${marks.length} marks`;
}

function send(event) {
  event.preventDefault();
  if (page.ask.disabled) return;
  notify();
  ask(question.value.trim());
  if (state.mode === 'ask') write('');
}

function startAnew() {
  turns = [];
  log.replaceChildren();
}

page.composer.addEventListener('submit', send);
question.addEventListener('input', showButtons);
question.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) send(event);
});
onClick({ anew: startAnew, stop: () => sending.abort() });
listen(['picture'], startAnew);
listen(['phase', 'picture', 'marks', 'mode'], showButtons);
listen(['about'], () => write(state.about.example.question));

import { events } from './api.js';
import { announce, create, dot, notify, onClick, page } from './elements.js';
import { chatRequest, regionsRequest } from './requests.js';
import { showSettings } from './settings.js';
import { answered, change, listen, phraseOf, state, withPhrases } from './state.js';

const { conversation: log, question } = page;
let turns = []; // { role, content }, with phrases in place of {mark}
let sending = null; // the AbortController of the request on its way

export function requestFor(text, isChat = state.mode === 'ask') {
  return isChat ? chatRequest([...turns, { role: 'user', content: text }]) : regionsRequest(text);
}

async function ask(text, isChat = state.mode === 'ask') {
  const conversation = turns;
  const asked = isChat ? withPhrases(text) : text;
  const request = requestFor(text, isChat);
  const waiting = create('p', { class: 'note' });
  const entry = create('article', { class: 'going' }, create('p', { class: 'question' }, asked), waiting);
  const take = isChat ? oneAnswer(entry) : eachAnswer(entry, text);
  let [answer, isCut] = ['', false];
  log.append(entry);
  entry.scrollIntoView({ block: 'nearest' });
  sending = new AbortController();
  const timer = showWaiting(waiting);
  refresh();
  try {
    for await (const event of events(request, sending.signal)) {
      const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      answer = take(event);
      isCut ||= (event.choices?.[0] ?? event).finish_reason === 'length';
      waiting.hidden = Boolean(answer);
      if (isAtEnd) log.scrollTop = log.scrollHeight; // unless the reader has scrolled up
    }
    announce(`Answer: ${answer}`);
  } catch (error) {
    if (error.name !== 'AbortError') {
      waiting.remove();
      if (!question.value) write(text);
      return fail(error, entry, () => ask(text, isChat));
    }
  } finally {
    clearInterval(timer);
    entry.className = '';
    sending = null;
    refresh();
  }
  if (isCut) entry.append(create('p', { class: 'note' }, 'Cut off: the longest answer that the settings allow.'));
  if (!answer) waiting.textContent = 'No answer.';
  else if (isChat) conversation.push({ role: 'user', content: asked }, { role: 'assistant', content: answer });
}

/** Adds the place of an answer; returns what takes an event and returns the answer so far. */
function oneAnswer(entry) {
  const place = create('p', { class: 'answer' });
  entry.append(place);
  return ({ choices: [choice] = [] }) => (place.textContent += choice?.delta.content ?? '');
}

function eachAnswer(entry, question) {
  const { marks } = state;
  const answers = [];
  const items = marks.map(({ color }) => create('li', {}, dot(color), create('span')));
  entry.append(Object.assign(create('ol', {}, ...items), { marks }));
  return ({ index, delta, finish_reason: isComplete }) => {
    if (index !== undefined) {
      const place = items[index].lastChild;
      place.textContent += delta ?? '';
      if (isComplete) answers[index] = place.textContent;
      answered.set(marks, { question, answers });
    }
    return items.map((item) => item.textContent).join('\n').trim();
  };
}

/** Says how long one waits; returns the timer. */
function showWaiting(place) {
  let seconds = 0;
  const show = () => (place.textContent = `Waiting for the answer … ${seconds++} s`);
  show();
  return setInterval(show, 1000);
}

function fail({ message, status }, entry, again) {
  const onclick = () => {
    entry.remove();
    again();
  };
  entry.append(create('p', { class: 'error' }, message), create('button', { onclick }, 'Try again'));
  log.scrollTop = log.scrollHeight;
  announce(message);
  if (status === 401) showSettings();
}

function write(text) {
  question.value = text;
  refresh();
}

/** Inserts {mark} or {mark2} where the cursor is, and selects the mark. */
function insert(index) {
  const before = question.value.slice(0, question.selectionStart);
  const text = `${/\S$/.test(before) ? ' ' : ''}{mark${index ? index + 1 : ''}}`;
  question.setRangeText(text, question.selectionStart, question.selectionEnd, 'end');
  question.focus();
  refresh();
  change({ selected: index });
}

function showPhrases() {
  const isChat = state.mode === 'ask';
  const chip = (mark, index) => {
    const label = isChat ? [dot(mark.color), phraseOf(mark)] : ['Insert {mark}'];
    return create('button', { type: 'button', class: 'chip', onclick: () => insert(index) }, ...label);
  };
  page.phrases.replaceChildren(...state.marks.slice(0, isChat ? state.about?.limits.marks : 1).map(chip));
}

function refresh() {
  const { activeElement } = document;
  page.stop.hidden = !sending;
  page.ask.hidden = Boolean(sending);
  if (sending && activeElement === page.ask) page.stop.focus();
  if (!sending && activeElement === page.stop) log.focus();
  const { phase, picture, marks, mode } = state;
  for (const again of log.querySelectorAll('button')) again.disabled = sending;
  for (const list of log.querySelectorAll('ol')) list.classList.toggle('old', list.marks !== marks);
  const isMarked = mode === 'ask' ? !/\{mark\d*\}/.test(withPhrases(question.value)) : marks.length;
  page.ask.disabled = sending || phase !== 'ready' || !picture || !question.value.trim() || !isMarked;
  page.tip.textContent = isMarked ? '{mark} stands for the phrase of a mark.' : 'Draw a mark on the picture first.';
  page.ask.textContent = mode === 'ask' ? 'Ask' : `Ask about ${marks.length} mark${marks.length === 1 ? '' : 's'}`;
}

function send(event) {
  event.preventDefault();
  if (page.ask.disabled) return;
  notify();
  ask(question.value.trim());
  if (state.mode === 'ask') write('');
}

function startAnew() {
  sending?.abort();
  turns = [];
  log.replaceChildren();
}

page.composer.onsubmit = send;
question.oninput = refresh;
question.onkeydown = (event) => {
  // 229 is the Enter that ends the input of Chinese or Japanese
  if (event.key === 'Enter' && !event.shiftKey && event.keyCode !== 229) send(event);
};
onClick({ anew: startAnew, stop: () => sending.abort() });
listen(['picture'], startAnew);
listen(['phase', 'picture', 'marks', 'mode'], refresh);
listen(['marks', 'mode'], showPhrases);
listen(['about'], () => write(question.value || state.about.example.question));

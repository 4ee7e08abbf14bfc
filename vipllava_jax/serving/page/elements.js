// Short names for what the page does with its elements; text only ever becomes text.

export const byId = (id) => document.getElementById(id);

/** A new element with attributes, listeners whose names begin with "on", and children. */
export function create(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  if (name === 'button') element.type = 'button'; // a form is sent by its own buttons alone
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children);
  return element;
}

/** Says something to those who cannot see the page. */
export function announce(text) {
  byId('announcement').textContent = text;
}

/** Shows a message at the top of the page; none hides it. */
export function notify(text = '') {
  byId('notice-text').textContent = text;
  byId('notice').hidden = !text;
}

/** Saves a text as a file. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  create('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// The elements of the page by their ids, and new ones, in which text remains text.

export const page = Object.fromEntries([...document.querySelectorAll('[id]')].map((element) => [element.id, element]));

/** A new element with attributes, what a click on it does, and children. */
export const create = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

export const createSvg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value.call) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A dot in a colour that CSS knows by the same name. */
export function dot(color) {
  const element = create('span', { class: 'dot' });
  element.style.background = color;
  return element;
}

export function onClick(actions) {
  for (const [id, action] of Object.entries(actions)) page[id].onclick = () => action();
}

export function onFile(id, work) {
  page[id].onchange = () => {
    const [file] = page[id].files;
    page[id].value = ''; // so that the same file can be chosen again
    if (file) work(file);
  };
}

/** Says something to those who cannot see the page. */
export const announce = (text) => (page.announcement.textContent = text);

/** Shows a message at the top of the page; none hides it. */
export function notify(text = '') {
  page['notice-text'].textContent = text;
  page.notice.hidden = !text;
}

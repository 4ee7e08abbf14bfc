import { createSvg, onClick, page } from './elements.js';
import { clamp, corners, minus, span } from './geometry.js';
import { drawn } from './shapes.js';
import { listen, state } from './state.js';

const LARGEST = 40; // pixels of the screen per pixel of the picture
const { stage, sheet, canvas, picture } = page;
let isFitted = true;

export function pictureAt({ clientX, clientY }) {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  const [w, h] = state.picture.size;
  return [((clientX - left) / width) * w, ((clientY - top) / height) * h];
}

/** Magnifies the picture around a place [x, y] of the screen; the factor 0 shows all of it. */
export function zoom(factor, at) {
  if (!state.picture) return;
  const { size } = state.picture;
  const whole = Math.min(stage.clientWidth / size[0], stage.clientHeight / size[1]);
  const before = sheet.getBoundingClientRect();
  const scale = clamp((before.width / size[0]) * factor, whole, Math.max(LARGEST, whole));
  isFitted = scale === whole;
  sheet.style.width = `${scale * size[0]}px`;
  sheet.style.aspectRatio = size.join('/');
  sheet.style.setProperty('--scale', scale);
  const after = sheet.getBoundingClientRect();
  const area = stage.getBoundingClientRect();
  const [x, y] = at ?? [area.left + area.width / 2, area.top + area.height / 2];
  const grown = after.width / before.width;
  stage.scrollBy(after.left - x + (x - before.left) * grown, after.top - y + (y - before.top) * grown);
}

function paint() {
  const { marks, selected, draft, mode } = state;
  const size = state.picture?.size;
  const shown = draft ? marks.toSpliced(draft.index, 1, draft.mark) : marks;
  const number = ({ points: [[x, y]] }, n) => createSvg('text', { x, y }, n + 1);
  page.drawn.replaceChildren(...shown.map((mark) => drawn(mark, size)));
  page.numbers.replaceChildren(...(mode === 'regions' ? shown.map(number) : []));
  page.selection.replaceChildren(...(draft || !marks[selected] ? [] : handles(marks[selected], size)));
}

/** The corners of a mark, by which it is stretched unless it is a point. */
function handles(mark, size) {
  const isPoint = mark.points.length === 1;
  const margin = isPoint ? Math.max(...size) / 28 : 0;
  const [start, end] = span(mark.points);
  page.selection.style.setProperty('--side', Math.max(...minus(end, start)));
  const places = corners([start.map((value) => value - margin), end.map((value) => value + margin)]);
  const dots = places.map((place) => `M${place}h0`);
  const grips = dots.map((d, n) => createSvg('path', { class: 'grip', d, 'data-corner': n }));
  const shown = ['handles edge', 'handles'].map((name) => createSvg('path', { class: name, d: dots.join('') }));
  return isPoint ? shown : [...shown, ...grips];
}

onClick({ 'zoom-in': () => zoom(1.5), 'zoom-out': () => zoom(1 / 1.5) });
listen(['picture'], () => {
  picture.src = state.picture.data;
  picture.alt = state.picture.name;
  canvas.setAttribute('viewBox', `0 0 ${state.picture.size.join(' ')}`);
  zoom(0);
});
listen(['picture', 'marks', 'selected', 'draft', 'mode'], paint);
new ResizeObserver(() => isFitted && zoom(0)).observe(stage);

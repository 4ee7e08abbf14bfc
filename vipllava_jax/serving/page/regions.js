// Marks from regions of the server and of files, and back: COCO's annotations, or our JSON.

import { announce, create, notify, onClick, onFile, page } from './elements.js';
import { inside, isLargeEnough, span } from './geometry.js';
import { GESTURES } from './shapes.js';
import { edit, state } from './state.js';

/** Numbers, or pairs of them -> pairs; [] if it is anything else. */
function pairs(list) {
  const flat = Array.isArray(list) ? list.flat() : [];
  const isWhole = flat.every(Number.isFinite) && flat.length % 2 === 0;
  return isWhole ? Array.from({ length: flat.length / 2 }, (_, n) => flat.slice(2 * n, 2 * n + 2)) : [];
}

/** The mark of a region: a box, or { shape, color } with a box, a polygon or a point; null without a place. */
export function markOf(region) {
  const { color, box, polygon, point, ...rest } = Array.isArray(region) ? { box: region } : (region ?? {});
  const shape = rest.shape in GESTURES ? rest.shape : 'rectangle';
  const points = pairs(box ?? polygon ?? point);
  if (box) return points.length === 2 ? { shape, color, points: span(points) } : null;
  const isPlace = polygon ? points.length > 2 : points.length === 1 && GESTURES[shape] === 'point';
  return isPlace ? { shape, color, points } : null;
}

/** A mark as the server takes it; coordinates of a small one could be read as fractions. */
export function regionOf({ shape, color, points }) {
  const place = [{ point: points[0] }, { box: points.flat() }][points.length - 1] ?? { polygon: points };
  return { shape, color, ...place, units: 'pixels' };
}

async function importFile(file) {
  try {
    const data = JSON.parse(await file.text());
    const regions = data?.annotations ? fromCoco(data) : (data?.regions ?? data);
    const colors = Object.keys(state.about.colors);
    const found = regions.map(markOf).filter(Boolean).map(({ shape, color, points }, n) => ({
      shape,
      color: colors.includes(color) ? color : colors[n % colors.length],
      points: points.map((point) => inside(point, state.picture.size)),
    }));
    const room = state.about.limits.regions - state.marks.length;
    const added = found.filter(isLargeEnough).slice(0, room);
    const left = regions.length - added.length;
    edit([...state.marks, ...added]);
    announce(`${added.length} regions were imported.`);
    notify(left ? `Left out: ${left} of the regions in ${file.name}, which are not on the picture, or too many.` : '');
  } catch {
    notify(`${file.name} cannot be imported. Choose a JSON file with "annotations", as COCO has, or "regions".`);
  }
}

/** The boxes of the picture of this name, or else of the first one, in pixels of this picture. */
function fromCoco({ images = [], annotations }) {
  const { name, size } = state.picture;
  const image = images.find((one) => one.file_name === name) ?? images[0];
  const factors = [size[0] / (image?.width || size[0]), size[1] / (image?.height || size[1])];
  return annotations
    .filter(({ image_id: id }) => !image || id === undefined || id === image.id)
    .map(({ bbox: [x, y, width, height] = [] }) => [x, y, x + width, y + height])
    .map((box) => box.map((value, n) => value * factors[n % 2]));
}

function saveJson() {
  const { picture, marks, answers } = state;
  const [width, height] = picture.size;
  const regions = marks.map((mark, n) => ({ ...regionOf(mark), answer: answers[n] }));
  save('regions.json', { picture: { name: picture.name, width, height }, question: page.question.value, regions });
}

function saveCoco() {
  const { picture, marks, answers } = state;
  const [width, height] = picture.size;
  const annotations = marks.map((mark, n) => {
    const [[x, y], [right, bottom]] = span(mark.points);
    return {
      id: n + 1,
      image_id: 1,
      category_id: 1,
      iscrowd: 0,
      bbox: [x, y, right - x, bottom - y],
      area: (right - x) * (bottom - y),
      segmentation: mark.points.length > 2 ? [mark.points.flat()] : undefined,
      caption: answers[n],
    };
  });
  const images = [{ id: 1, file_name: picture.name, width, height }];
  save('coco.json', { images, categories: [{ id: 1, name: 'region' }], annotations });
}

function save(name, data) {
  const href = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: 'application/json' }));
  create('a', { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

onFile('import-file', importFile);
onClick({ 'export-json': saveJson, 'export-coco': saveCoco });

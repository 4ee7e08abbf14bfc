import { announce, create, notify, onClick, onFile, page } from './elements.js';
import { inside, isDrawable, minus, span } from './geometry.js';
import { GESTURES } from './shapes.js';
import { answered, edit, state } from './state.js';

/** Numbers, or pairs of them -> pairs; [] if it is anything else. */
function pairs(list) {
  const flat = [list].flat(2);
  return flat.every(Number.isFinite) ? flat.flatMap((y, n) => (n % 2 ? [[flat[n - 1], y]] : [])) : [];
}

/** The mark of a region: a box, or { shape, color } with a place; null without one. */
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
  const { picture } = state;
  try {
    const data = JSON.parse(await file.text());
    if (picture !== state.picture) return;
    const regions = data?.annotations ? fromCoco(data) : (data?.regions ?? data);
    const colors = Object.keys(state.about.colors);
    const found = regions.map(markOf).filter(Boolean).map(({ shape, color, points }, n) => ({
      shape,
      color: colors.includes(color) ? color : colors[n % colors.length],
      points: points.map((point) => inside(point, state.picture.size)),
    }));
    const room = state.about.limits.regions - state.marks.length;
    const added = found.filter(isDrawable).slice(0, room);
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
  const [across, down] = [size[0] / (image?.width || size[0]), size[1] / (image?.height || size[1])];
  return annotations
    .filter(({ image_id: id }) => !image || id === undefined || id === image.id)
    .map(({ bbox: [x, y, w, h] = [] }) => [x * across, y * down, (x + w) * across, (y + h) * down]);
}

const SAVED = {
  'regions.json': ({ picture, question, marks, answers }) => ({
    picture,
    question,
    regions: marks.map((mark, n) => ({ ...regionOf(mark), answer: answers[n] })),
  }),
  'coco.json': ({ picture: { name, ...size }, marks, answers }) => {
    const annotations = marks.map(({ points }, n) => {
      const [start, end] = span(points);
      const sides = minus(end, start);
      return {
        id: n + 1,
        image_id: 1,
        category_id: 1,
        iscrowd: 0,
        bbox: [...start, ...sides],
        area: sides[0] * sides[1],
        segmentation: points.length > 2 ? [points.flat()] : undefined,
        caption: answers[n],
      };
    });
    return { images: [{ id: 1, file_name: name, ...size }], categories: [{ id: 1, name: 'region' }], annotations };
  },
};

function save(file) {
  const { marks, picture } = state;
  const { name, size: [width, height] } = picture;
  const { question, answers } = answered.get(marks) ?? { question: page.question.value, answers: [] };
  const data = SAVED[file]({ picture: { name, width, height }, question, marks, answers });
  const href = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: 'application/json' }));
  create('a', { href, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

onFile('import-file', importFile);
onClick({ 'export-json': () => save('regions.json'), 'export-coco': () => save('coco.json') });

// Marks from files and to files: COCO's annotations, or our JSON.

import { boundsOf, boxAround, inside, isLargeEnough, mapped, pointsOf } from './geometry.js';
import { GESTURES } from './shapes.js';

const isNumbers = (value, count) => Array.isArray(value) && value.length >= count && value.every(Number.isFinite);

/** Data of a file -> the marks in it, and how many are left out because they cannot be drawn. */
export function annotations(data, { picture, tool, about, color }) {
  const found = Array.isArray(data?.annotations) ? fromCoco(data, picture, tool) : fromJson(data);
  const names = Object.keys(about.colors);
  const first = names.indexOf(color);
  const marks = found
    .filter(Boolean)
    .map((mark, n) => ({ ...mark, color: known(mark.color, names) ?? names[(first + n) % names.length] }))
    .map((mark) => mapped(mark, (point) => inside(point, picture.size)))
    .filter(isLargeEnough);
  return { marks, left: found.length - marks.length };
}

const known = (color, names) => (names.includes(color) ? color : null);

function fromCoco({ images = [], annotations: all }, { name, size }, tool) {
  const same = (image) => image.width === size[0] && image.height === size[1];
  const image = images.find((one) => one.file_name === name) ?? images.find(same) ?? images[0];
  const factor = [0, 1].map((k) => size[k] / ([image?.width, image?.height][k] || size[k]));
  const scaled = ([x, y]) => [x * factor[0], y * factor[1]];
  const shape = tool === 'select' ? 'rectangle' : tool;
  return all
    .filter((annotation) => !image || annotation.image_id === image.id || annotation.image_id === undefined)
    .map(({ bbox, segmentation }) => {
      const polygon = isNumbers(segmentation?.[0], 6) && pairs(segmentation[0]).map(scaled);
      if (polygon && GESTURES[shape] === 'path' && shape !== 'scribble') return { shape, polygon };
      if (isNumbers(bbox, 4)) {
        const [x, y, width, height] = bbox;
        return ofBox(shape, [...scaled([x, y]), ...scaled([x + width, y + height])]);
      }
      return polygon ? ofBox(shape, boxAround(polygon)) : null;
    });
}

/** A list of boxes or marks, or an object whose `regions` it is. */
function fromJson(data) {
  const list = Array.isArray(data) ? data : data?.regions;
  if (!Array.isArray(list)) throw new Error('it has neither "annotations", as COCO has, nor "regions"');
  return list.map((region) => {
    if (isNumbers(region, 4)) return ofBox('rectangle', region);
    const shape = region?.shape in GESTURES ? region.shape : 'rectangle';
    if (isNumbers(region?.point, 2) && GESTURES[shape] === 'point') return { shape, point: region.point, color: region.color };
    if (isNumbers(region?.box, 4)) return { ...ofBox(shape, region.box), color: region.color };
    const polygon = isNumbers(region?.polygon, 6) ? pairs(region.polygon) : region?.polygon;
    const isPolygon = Array.isArray(polygon) && polygon.length > 2 && polygon.every((point) => isNumbers(point, 2));
    return isPolygon ? { shape, polygon, color: region.color } : null;
  });
}

const ofBox = (shape, box) => ({ shape, box: box.slice(0, 4) });
const pairs = (flat) => Array.from({ length: Math.floor(flat.length / 2) }, (_, n) => flat.slice(2 * n, 2 * n + 2));

export function jsonOf({ picture, marks, answers }, question) {
  const [width, height] = picture.size;
  const regions = marks.map((mark, n) => ({ ...mark, ...(answers[n] && { answer: answers[n] }) }));
  return { picture: { name: picture.name, width, height }, question, regions };
}

/** COCO's format, with the answers as captions. */
export function cocoOf({ picture, marks, answers }) {
  const [width, height] = picture.size;
  return {
    images: [{ id: 1, file_name: picture.name, width, height }],
    categories: [{ id: 1, name: 'region' }],
    annotations: marks.map((mark, n) => {
      const [x1, y1, x2, y2] = boundsOf(mark);
      return {
        id: n + 1,
        image_id: 1,
        category_id: 1,
        iscrowd: 0,
        bbox: [x1, y1, x2 - x1, y2 - y1],
        area: (x2 - x1) * (y2 - y1),
        ...(mark.polygon && { segmentation: [pointsOf(mark).flat()] }),
        ...(answers[n] && { caption: answers[n] }),
      };
    }),
  };
}

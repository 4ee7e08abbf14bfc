import { markOf } from './regions.js';
import { get } from './api.js';
import { notify, onClick, onFile, page } from './elements.js';
import { change, listen, state } from './state.js';

const { camera, video } = page;
const READABLE = /^image\/(png|jpeg|webp|gif|bmp)$/; // by any server

const started = new Promise((resolve) => listen(['about'], resolve));
let latest = null; // the last choice, which may still arrive

/** Shows a picture, unless another is chosen meanwhile; one that is not READABLE is written anew. */
async function open(chosen, name = chosen.name || 'the pasted picture', isExample = false) {
  latest = chosen;
  try {
    await started;
    const blob = await chosen;
    const bitmap = await createImageBitmap(blob).catch(() => null);
    if (!bitmap) throw new Error(`${name} cannot be opened as a picture. Choose a JPEG, PNG or WebP file.`);
    const size = [bitmap.width, bitmap.height];
    const data = await dataUri(READABLE.test(blob.type) ? blob : await written(bitmap, size));
    bitmap.close();
    if (chosen !== latest) return;
    notify();
    const marks = isExample ? state.about.example.marks.map(markOf) : [];
    change({ picture: { name, data, size }, marks, past: [], future: [], selected: -1 });
  } catch (error) {
    if (chosen === latest) notify(error.message);
  }
}

const openExample = () =>
  open(get('/page/example.png').then((response) => response.blob()), 'the example picture', true);

function written(image, size) {
  const canvas = new OffscreenCanvas(...size);
  canvas.getContext('2d').drawImage(image, 0, 0, ...size);
  return canvas.convertToBlob({ type: 'image/webp', quality: 0.95 });
}

function dataUri(blob) {
  return new Promise((onload, onerror) => {
    const reader = Object.assign(new FileReader(), { onerror, onload: () => onload(reader.result) });
    reader.readAsDataURL(blob);
  });
}

async function openCamera() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    stopCamera();
    video.srcObject = stream;
    camera.showModal();
  } catch {
    notify('The camera cannot be used. Allow it in the browser, which wants HTTPS, or open a file.');
  }
}

function stopCamera() {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
}

async function take() {
  const picture = await written(video, [video.videoWidth, video.videoHeight]);
  camera.close();
  open(picture, 'a picture of the camera');
}

function openFrom(event, { files, types }) {
  const isText = event.target === page.question && types.includes('text/plain');
  if (isText || !(files.length || event.type === 'drop')) return;
  event.preventDefault();
  if (files.length) open(files[0]);
}

onFile('file', open);
onClick({ example: openExample, 'camera-open': openCamera, take });
listen(['about'], () => latest || openExample());
document.onpaste = (event) => openFrom(event, event.clipboardData);
window.ondragover = (event) => event.preventDefault();
window.ondrop = (event) => openFrom(event, event.dataTransfer);
camera.onclose = stopCamera;

// Undo and redo of a value that is replaced as a whole.

const JOINED = 1000; // milliseconds within which changes of the same key are one

export function createHistory(value, most = 200) {
  let [past, future] = [[], []];
  let last = { key: '', time: 0 };
  const history = {
    present: value,
    get canUndo() {
      return past.length > 0;
    },
    get canRedo() {
      return future.length > 0;
    },
    add(next, key = '') {
      const now = Date.now();
      const joins = key && key === last.key && now - last.time < JOINED;
      if (!joins) past = [...past, history.present].slice(-most);
      [history.present, future, last] = [next, [], { key, time: now }];
    },
    undo() {
      if (!past.length) return false;
      future.push(history.present);
      history.present = past.pop();
      last = { key: '', time: 0 };
      return true;
    },
    redo() {
      if (!future.length) return false;
      past.push(history.present);
      history.present = future.pop();
      return true;
    },
    reset(next) {
      [history.present, past, future] = [next, [], []];
    },
  };
  return history;
}

// Makes elements, and puts things in words. Text only ever becomes text: nothing here reads markup.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; `null` and `false` are left out, everything else becomes text. */
export function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    made.append(child instanceof Node ? child : shown(String(child)));
  }
  return made;
}

// Signs that are not seen, or that turn the direction of what stands beside them: a name must not look like another.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** A text without signs that lie about what it says. */
export const shown = (text) => text.replace(HIDDEN, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** Gives a list the rows that are wanted, and touches only those that changed: `make(item)` says what a row is made of. */
export function fill(list, items, keyOf, stampOf, make) {
  const there = new Map();
  for (const row of list.children) there.set(row.dataset.key, row);
  let before = null;
  for (const item of items) {
    const key = keyOf(item), stamp = stampOf(item);
    let row = there.get(key);
    if (row?.dataset.stamp !== stamp) {
      const fresh = make(item);
      fresh.dataset.key = key;
      fresh.dataset.stamp = stamp;
      if (row) {
        const held = row.contains(document.activeElement);
        row.replaceWith(fresh);
        if (held) fresh.querySelector("button")?.focus();
      }
      row = fresh;
    }
    there.delete(key);
    const place = before ? before.nextSibling : list.firstChild;
    if (place !== row) list.insertBefore(row, place);
    before = row;
  }
  for (const row of there.values()) row.remove();
}

let ahead = 0;
/** The server's clock counts: a browser's may be wrong. */
export const setClock = (now) => { ahead = now - Date.now() / 1000; };
export const now = () => Date.now() / 1000 + ahead;

/** A span of seconds in the largest unit of which there are two or more. */
export function span(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(Math.floor(seconds), 0)} s`;
}
export const ago = (since) => `${span(now() - since)} ago`;
export const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hourCycle: "h23" });
export const many = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

const order = new Intl.Collator("en", { numeric: true });
/** Puts names in the order in which people count: 2 comes before 10. */
export const natural = (a, b) => order.compare(a, b);

/** A reason on one line. */
export function brief(text, most = 300) {
  const line = text.split(/\s+/).join(" ").trim();
  return line.length <= most ? line : `${line.slice(0, most)}…`;
}

// Draws the map on a canvas: ten thousand cells in some milliseconds, each state with a colour and a shape of its own.

import { $, ago, brief, h, many, natural, shown } from "./dom.js";
import { hit, laidOut, place, step } from "./layout.js";
import { KINDS, inWords } from "./model.js";

const FLASH = 1600; // ms for which a cell shows that its state is new
const MOST_FLASHES = 300;
const MOST_PIXELS = 14e6; // browsers of phones draw no larger canvas
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class FleetMap {
  /** @param pick - called with a node, and a slice or null, when one is chosen */
  constructor(pick) {
    this.canvas = $("canvas");
    this.holder = $("map");
    this.context = this.canvas.getContext("2d", { alpha: true });
    this.pick = pick;
    this.model = null;
    this.laid = null;
    this.matches = null;
    this.cursor = null; // what the keyboard is at: { node, key }
    this.chosen = null;
    this.flashes = new Map();
    this.due = false;
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => this.#tip(null));
    this.canvas.addEventListener("click", (event) => this.#click(event));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    for (const kind of ["focus", "blur"]) this.canvas.addEventListener(kind, () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.holder);
    this.recolour();
  }

  show(model, changed) {
    this.model = model;
    if (changed.size <= MOST_FLASHES && !still.matches) {
      const end = performance.now() + FLASH;
      for (const cell of changed) this.flashes.set(cell, end);
    }
    this.draw();
  }

  /** Only what matches is shown fully; null: everything. */
  filter(matches) {
    this.matches = matches;
    this.draw();
  }

  choose(node, key) {
    this.chosen = node ? { node, key } : null;
    if (this.chosen) this.cursor = { ...this.chosen };
    this.draw();
  }

  recolour() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    this.colours = {};
    for (const name of ["text", "dim", "line", "accent", "ground", "surface", "warn"]) this.colours[name] = read(name);
    this.fills = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, read(kind)]));
    this.calm = read("active-calm");
    this.tints = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, read(`${kind}-tint`)]));
    this.draw();
  }

  draw() {
    if (this.due || !this.model) return;
    this.due = true;
    requestAnimationFrame(() => { this.due = false; this.#paint(); });
  }

  #paint() {
    const { canvas, holder, context, model } = this;
    const began = performance.now();
    const zones = model.zones();
    const wide = Math.max(holder.clientWidth - 2 * 14, 120);
    const room = Math.max(innerHeight - holder.getBoundingClientRect().top - scrollY, 320);
    const laid = this.laid = laidOut(zones, wide, room, this.laid?.level);
    const ratio = Math.min(devicePixelRatio || 1, Math.sqrt(MOST_PIXELS / (wide * laid.height)));
    const [width, height] = [Math.round(wide * ratio), Math.round(laid.height * ratio)];
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${laid.height}px`;
    }
    $("nothing").hidden = laid.columns.length > 0;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, wide, laid.height);
    context.textBaseline = "middle";
    for (const heading of laid.headings) this.#heading(heading);
    context.font = `11px ${FONT}`;
    const ids = laid.columns.map((column) => column.node.id);
    const long = (name) => context.measureText(name).width;
    const whole = laid.rows || ids.every((id) => long(`★${shown(id)}`) <= laid.column);
    const names = whole ? new Map(ids.map((id) => [id, shown(id)])) : shortNames(ids);
    const longest = whole ? 0 : Math.max(...[...names.values()].map(long), 0);
    const every = laid.rows ? 1 : Math.max(1, Math.ceil((longest + 6) / laid.slot));
    for (const column of laid.columns) {
      this.#head(column, names.get(column.node.id), column.band.columns.indexOf(column) % every === 0);
      column.node.sorted.forEach((cell, index) => this.#cell(column, cell, index));
    }
    this.#marks();
    this.#flash(began);
    performance.measure("paint", { start: began, end: performance.now() });
  }

  #heading({ zone, nodes, x, y, width }) {
    const { context, colours } = this;
    const slices = nodes.reduce((sum, node) => sum + node.sorted.length, 0);
    const lost = nodes.filter((node) => node.lost).length;
    context.font = `600 12px ${FONT}`;
    context.fillStyle = colours.text;
    const name = zone ? `zone ${shown(zone)}` : "no zone";
    context.fillText(name, x, y + 13);
    const told = `${many(nodes.length, "node")}, ${many(slices, "slice")}${lost ? `, ${lost} lost` : ""}`;
    const at = x + context.measureText(name).width + 10;
    context.font = `12px ${FONT}`;
    context.fillStyle = colours.dim;
    context.fillText(told, at, y + 13);
    context.fillStyle = colours.line;
    const from = at + context.measureText(told).width + 12;
    context.fillRect(from, y + 13, Math.max(x + width - from, 0), 1);
  }

  #head(column, name, named) {
    const { context, colours, laid } = this;
    const { node, x, y } = column;
    const bottom = y + laid.head - (laid.rows ? 6 : 4);
    const faint = this.matches && !this.matches.nodes.has(node);
    context.globalAlpha = faint ? 0.3 : 1;
    const colour = node.lost ? this.fills.failed : node.schedule !== "normal" ? colours.warn : colours.dim;
    // Below the head: how full it is, where it says how much it takes.
    if (node.lost || laid.column >= 24) {
      context.fillStyle = node.lost ? this.fills.failed : colours.line;
      context.fillRect(x, bottom, laid.column, 2);
    }
    if (node.about?.capacity && !node.lost && laid.column >= 24) {
      context.fillStyle = colours.dim;
      context.fillRect(x, bottom, laid.column * Math.min(node.sorted.length / node.about.capacity, 1), 2);
    }
    const sign = nodeSign(node);
    if (laid.rows) {
      context.font = `600 13px ${FONT}`;
      context.fillStyle = node.lost ? this.fills.failed : colours.text;
      context.fillText(cut(context, `${sign ? `${sign} ` : ""}${shown(node.id)}`, laid.column), x, y + 9);
      context.font = `11px ${FONT}`;
      context.fillStyle = colour;
      context.fillText(cut(context, nodeInWords(node), laid.column), x, y + 25);
    } else {
      // Where not every name has room, some have one, as on an axis; a sign says more than a name.
      const both = `${sign}${name}`;
      context.font = `${node.leads ? 700 : 400} 11px ${FONT}`;
      context.fillStyle = sign ? (node.leads && !node.lost ? colours.text : colour) : colours.dim;
      const text = !sign ? (named ? name : "") : context.measureText(both).width <= laid.slot - 1 ? both : sign;
      const end = x + context.measureText(text).width;
      if (end <= this.canvas.offsetWidth) context.fillText(text, x, bottom - 8);
    }
    context.globalAlpha = 1;
  }

  #cell(column, cell, index) {
    const { context, laid, colours } = this;
    const [x, y] = place(laid, column, index);
    const faint = this.matches && !this.matches.cells.has(cell);
    context.globalAlpha = faint ? 0.15 : 1;
    if (laid.rows) {
      context.fillStyle = this.tints[cell.kind];
      rounded(context, x, y, laid.w, laid.h, 4);
      glyph(context, cell.kind, x + 6, y + 6, 12, this.fills[cell.kind], colours.surface);
      context.font = `12px ${FONT}`;
      context.fillStyle = colours.dim;
      const told = cell.kind === "active" ? (cell.restarts ? `↻${cell.restarts}` : "") : cell.state.toLowerCase();
      const end = told ? context.measureText(told).width + 8 : 0;
      if (told) context.fillText(told, x + laid.w - end, y + 12.5);
      context.fillStyle = colours.text;
      const name = `${shown(cell.short)} ${shown(cell.version)}${cell.ordinal ? ` #${cell.ordinal}` : ""}`;
      context.fillText(cut(context, name, laid.w - 30 - end), x + 24, y + 12.5);
    } else {
      const fill = cell.kind === "active" ? this.calm : this.fills[cell.kind];
      glyph(context, cell.kind, x, y, laid.h, fill, colours.surface, laid.w);
    }
    if (cell.reason && cell.kind === "active") {
      context.fillStyle = colours.warn;
      const size = Math.max(3, laid.h / 4);
      context.fillRect(x + laid.w - size, y, size, size);
    }
    context.globalAlpha = 1;
  }

  /** What is chosen, and, while the keyboard is here, where it is. */
  #marks() {
    const { context, colours } = this;
    const focused = document.activeElement === this.canvas;
    for (const [mark, width] of [[this.chosen, 2], [focused ? this.cursor : null, 3]]) {
      const box = mark && this.#box(mark);
      if (!box) continue;
      context.strokeStyle = mark === this.chosen ? colours.text : colours.accent;
      context.lineWidth = width;
      context.strokeRect(box[0] - 1.5, box[1] - 1.5, box[2] + 3, box[3] + 3);
    }
  }

  #find(mark) {
    const column = this.laid?.columns.find((each) => each.node.id === mark.node);
    if (!column) return null;
    const index = mark.key === null ? -1 : column.node.sorted.findIndex((cell) => cell.key === mark.key);
    return { column, index };
  }

  #box(mark) {
    const found = this.#find(mark);
    if (!found || (found.index < 0 && mark.key !== null)) return null;
    const { laid } = this, { column, index } = found;
    if (index < 0) return [column.x, column.y, laid.column, laid.head - 4];
    return [...place(laid, column, index), laid.w, laid.h];
  }

  /** Cells that have just changed have a ring that fades. */
  #flash(at) {
    if (!this.flashes.size) return;
    const { context, laid, colours } = this;
    for (const column of laid.columns) {
      column.node.sorted.forEach((cell, index) => {
        const left = (this.flashes.get(cell) ?? 0) - at;
        if (left <= 0) return;
        const [x, y] = place(laid, column, index);
        context.globalAlpha = Math.min(1, left / FLASH);
        context.strokeStyle = colours.text;
        context.lineWidth = 1;
        context.strokeRect(x - 0.5, y - 0.5, laid.w + 1, laid.h + 1);
        context.globalAlpha = 1;
      });
    }
    for (const [cell, end] of this.flashes) if (end <= at) this.flashes.delete(cell);
    if (this.flashes.size) setTimeout(() => this.draw(), 120);
    else this.draw();
  }

  // Pointer and keyboard

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.laid && hit(this.laid, event.clientX - box.left, event.clientY - box.top);
  }

  #point(event) {
    const at = this.#at(event);
    this.canvas.classList.toggle("over", Boolean(at));
    this.#tip(at, event);
  }

  #tip(at, event) {
    const tip = $("tip");
    tip.hidden = !at || event?.pointerType === "touch";
    if (tip.hidden) return;
    const { node } = at.column, cell = node.sorted[at.index];
    tip.replaceChildren(...(cell ? cellTip(cell) : nodeTip(node)));
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18}px`;
  }

  #click(event) {
    const at = this.#at(event);
    if (at) this.pick(at.column.node, at.column.node.sorted[at.index] ?? null);
  }

  #key(event) {
    if (!this.laid?.columns.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const from = (this.cursor && this.#find(this.cursor)) ?? { column: this.laid.columns[0], index: -1 };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.pick(from.column.node, from.column.node.sorted[from.index] ?? null);
      return;
    }
    if (!/^(Arrow|Home|End)/.test(event.key)) return;
    event.preventDefault();
    const to = this.cursor ? step(this.laid, from.column, from.index, event.key) : from;
    const cell = to.column.node.sorted[to.index];
    this.cursor = { node: to.column.node.id, key: cell?.key ?? null };
    $("spoken").textContent = shown(cell ? `${cell.label}, ${inWords(cell)}` : `node ${to.column.node.id}, ${nodeInWords(to.column.node)}`);
    this.#reveal();
    this.draw();
  }

  #reveal() {
    const [, y, , tall] = this.#box(this.cursor) ?? [0, 0, 0, 0];
    const box = this.canvas.getBoundingClientRect();
    const scroller = this.holder.scrollHeight > this.holder.clientHeight + 4 ? this.holder : document.scrollingElement;
    const frame = scroller === this.holder ? scroller.getBoundingClientRect() : { top: 0, bottom: innerHeight };
    const [top, bottom] = [box.top + y, box.top + y + tall];
    if (top < frame.top + 30) scroller.scrollTop -= frame.top + 30 - top;
    else if (bottom > frame.bottom - 10) scroller.scrollTop += bottom - frame.bottom + 10;
  }
}

const FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";

/** The shape of a state: full, half full, hollow, crossed, or hollow with a point. */
function glyph(context, kind, x, y, size, colour, ground, width = size) {
  context.fillStyle = context.strokeStyle = colour;
  const line = size >= 12 ? 1.5 : 1;
  context.lineWidth = line;
  if (kind === "active") context.fillRect(x, y, width, size);
  else if (kind === "failed") {
    context.fillRect(x, y, width, size);
    context.strokeStyle = ground;
    const margin = size * 0.22, left = x + (width - size) / 2;
    context.beginPath();
    context.moveTo(left + margin, y + margin);
    context.lineTo(left + size - margin, y + size - margin);
    context.moveTo(left + size - margin, y + margin);
    context.lineTo(left + margin, y + size - margin);
    context.stroke();
  } else {
    context.strokeRect(x + line / 2, y + line / 2, width - line, size - line);
    if (kind === "coming") context.fillRect(x, y + size / 2, width, size / 2);
    else if (kind === "lost") context.fillRect(x + width / 2 - size / 6, y + size / 2 - size / 6, size / 3, size / 3);
  }
}

function rounded(context, x, y, w, height, radius) {
  context.beginPath();
  context.roundRect(x, y, w, height, radius);
  context.fill();
}

const widths = new Map();
/** As much of a text as fits. */
function cut(context, text, most) {
  const key = `${context.font}|${Math.floor(most)}|${text}`;
  let found = widths.get(key);
  if (found === undefined) {
    found = text;
    while (found && context.measureText(found === text ? found : `${found}…`).width > most) found = found.slice(0, -1);
    found = found === text ? text : found ? `${found}…` : "";
    if (widths.size > 5000) widths.clear();
    widths.set(key, found);
  }
  return found;
}

/** Names without what they all begin with. */
function shortNames(ids) {
  let common = ids[0] ?? "";
  for (const id of ids) while (!id.startsWith(common)) common = common.slice(0, -1);
  const end = ids.length > 1 ? common.search(/[^-_.]*$/) : 0;
  return new Map(ids.map((id) => [id, shown(id.slice(end).replace(/^[A-Za-z]+(?=\d)/, ids.length > 1 ? "" : "$&"))]));
}

function nodeSign(node) {
  if (node.lost) return "✕";
  if (node.schedule === "drain" || node.schedule === "leaving") return "↓";
  if (node.schedule === "cordon") return "‖";
  return node.leads ? "★" : "";
}

export function nodeInWords(node) {
  const { about } = node, parts = [];
  if (node.lost) parts.push(node.gone ? `${node.gone.gone} ${ago(node.gone.at)}` : "not heard");
  if (node.leads) parts.push("leads");
  if (node.schedule !== "normal") parts.push({ drain: "drains", cordon: "cordoned", leaving: "leaves" }[node.schedule]);
  if (about?.role === "manager") parts.push("manager only");
  else parts.push(about?.capacity ? `${node.sorted.length} of ${many(about.capacity, "slice")}` : many(node.sorted.length, "slice"));
  if (about?.load !== null && about?.load !== undefined) parts.push(`load ${about.load}`);
  return parts.join(", ");
}

function nodeTip(node) {
  const kinds = Object.entries(KINDS)
    .map(([kind, { name }]) => [node.sorted.filter((cell) => cell.kind === kind).length, name])
    .filter(([found]) => found).map(([found, name]) => `${found} ${name}`);
  const labels = Object.entries(node.labels).sort(([a], [b]) => natural(a, b)).map(([name, value]) => `${name}=${value}`);
  return [h("b", null, node.id), h("p", null, nodeInWords(node)), kinds.length > 0 && h("p", null, kinds.join(", ")),
    labels.length > 0 && h("p", null, brief(labels.join("  "), 160))].filter(Boolean);
}

function cellTip(cell) {
  return [h("b", null, cell.label), h("p", null, `${inWords(cell)} for ${ago(cell.at).replace(" ago", "")}`,
    cell.restarts > 0 && `, ${many(cell.restarts, "restart")}`), cell.reason && h("p", null, brief(cell.reason))].filter(Boolean);
}

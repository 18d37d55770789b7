// The page: what is heard goes into the model, and what is new is drawn, once for each picture that the screen shows.

import { $, h, setClock } from "./dom.js";
import { Details, aboutOf } from "./details.js";
import { showBanner, showEvents, showLegend, showServices, showTop, sign } from "./lists.js";
import { FleetMap } from "./map.js";
import { KINDS, Model } from "./model.js";
import { Stream } from "./stream.js";

const MOST_EVENTS = 200;
const MEANS = {
  active: "serves", coming: "LOAD to ACTIVATING: it is on its way", going: "DEACTIVATE to UNLOADING: it is on its way out",
  failed: "it did not start, or ended; the reason is in its explanation", lost: "its node is not heard of",
};
const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };

const model = new Model();
const map = new FleetMap((node, cell) => open(cell ? { kind: "slice", name: cell.key } : { kind: "node", name: node.id }));
const details = new Details(open);
details.again = () => details.show(model);
let words = [], only = null, due = false, ready = false;
const changed = new Set();

const stream = new Stream((kind, told) => {
  setClock(told.now);
  if (kind === "tick") return;
  if (kind === "events") {
    const kept = told.whole ? [] : model.events;
    model.events = [...told.events.reverse(), ...kept].slice(0, MOST_EVENTS);
    model.eventsWhy = told.why ?? "";
  } else {
    model.take(told);
    if (ready) for (const cell of model.changed) changed.add(cell);
    ready = true;
  }
  refresh();
});

/** Shows everything anew, before the next picture. */
function refresh() {
  if (due) return;
  due = true;
  // Also where no picture is shown, as in a window in the background: there once in a while.
  const soon = document.hidden ? (draw) => setTimeout(draw, 1000) : requestAnimationFrame;
  soon(() => { due = false; show(); });
}

function show() {
  if (!ready) {
    showBanner(model, stream.lost);
    return;
  }
  const began = performance.now();
  const matches = matching();
  showTop(model);
  showBanner(model, stream.lost);
  showLegend(model, only, (kind) => { only = only === kind ? null : kind; refresh(); });
  showServices(model, matches, (artifact) => open({ kind: "version", name: artifact }));
  showEvents(model, matches, (event) => open(aboutOf(event)));
  map.matches = matches;
  map.show(model, changed);
  changed.clear();
  details.show(model);
  performance.measure("show", { start: began, end: performance.now() });
}

/** What the filter leaves: every word must be somewhere in it; null: everything. */
function matching() {
  if (!words.length && !only) return null;
  const text = (told) => words.every((word) => told.toLowerCase().includes(word));
  const nodes = new Set(), cells = new Set(), services = new Set();
  for (const node of model.nodes.values()) {
    const about = `${node.id} ${node.zone} ${node.schedule} ${node.lost ? "lost" : ""} ${Object.entries(node.labels).flat().join(" ")}`;
    if (words.length && !only && text(about)) nodes.add(node);
    for (const cell of node.sorted) {
      if ((only && cell.kind !== only) || !text(`${about} ${cell.artifact} ${cell.state} ${cell.kind} ${cell.reason}`)) continue;
      cells.add(cell);
      nodes.add(node);
      services.add(cell.service);
    }
  }
  for (const { service, shown } of model.services) {
    if (!only && text(`${service} ${shown.map((one) => `${one.version} ${one.condition} ${one.reason}`).join(" ")}`)) services.add(service);
  }
  return { nodes, cells, services, text };
}

// What is explained is in the address: it can be sent to somebody, and the browser's way back leads back.

function open(what) {
  const hash = what ? `#${what.kind}/${encodeURIComponent(what.name)}` : " ";
  if (what) location.hash = hash;
  else if (location.hash) history.pushState(null, "", location.pathname + location.search), explain();
}

function asked() {
  const [, kind, name] = /^#(slice|version|node)\/(.+)$/.exec(location.hash) ?? [];
  if (!kind) return null;
  try {
    return { kind, name: decodeURIComponent(name) };
  } catch {
    return null;
  }
}

function explain() {
  const what = asked();
  if (!ready) {
    setTimeout(explain, 50);
    return;
  }
  const before = details.what;
  details.explain(what, model);
  const cell = what?.kind === "slice" ? model.cells.get(`s/${what.name}`) : null;
  map.choose(cell?.node ?? (what?.kind === "node" ? what.name : null), cell?.key ?? null);
  if (before && !what) (before.kind === "version" ? $("service-list").querySelector("button") : $("canvas"))?.focus({ preventScroll: true });
}

addEventListener("hashchange", explain);
addEventListener("popstate", () => { if (!location.hash) explain(); });

// Keys

$("filter").addEventListener("input", (event) => {
  words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  refresh();
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const typing = event.target === $("filter");
  if (event.key === "Escape") {
    if (typing || words.length || only) {
      $("filter").value = "";
      words = [];
      only = null;
      if (typing) $("canvas").focus();
      refresh();
    } else if (details.what) open(null);
    return;
  }
  if (typing) return;
  const does = {
    "/": () => $("filter").focus(), "?": () => $("help").showModal(), t: turn,
    m: () => $("canvas").focus(), s: () => $("service-list").querySelector("button")?.focus(),
    e: () => $("event-list").querySelector("button")?.focus(),
  }[event.key];
  if (!does) return;
  event.preventDefault();
  does();
});

$("keys").addEventListener("click", () => $("help").showModal());
for (const [kind, { name }] of Object.entries(KINDS)) $("signs").append(h("dt", null, sign(kind), name), h("dd", null, MEANS[kind]));
$("signs").append(h("dt", null, "★ ‖ ↓ ✕"), h("dd", null, "a node that leads, is cordoned, drains, is lost"));

// Light and dark

function turn() {
  const names = Object.keys(THEMES);
  dress(names[(names.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % names.length]);
}

function dress(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = THEMES[name];
  try {
    localStorage.setItem("cdm-theme", name);
  } catch { /* it may not be kept: then it is as the system has it next time */ }
  map.recolour();
}

let kept = "auto";
try {
  kept = localStorage.getItem("cdm-theme") ?? "auto";
} catch { /* as above */ }
dress(kept in THEMES ? kept : "auto");
$("theme").addEventListener("click", turn);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => map.recolour());

setInterval(refresh, 5000); // ages go on
addEventListener("visibilitychange", refresh);
explain();

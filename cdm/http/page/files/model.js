// What the facts come to: nodes with their slices, services with their versions, and what is not well.

import { brief, natural } from "./dom.js";

/** Groups of states, as they are shown, each with a colour and a shape of its own. */
export const KINDS = {
  active: { name: "active" },
  failed: { name: "failed" },
  coming: { name: "coming" },
  going: { name: "going" },
  lost: { name: "unheard" },
};
const KIND_OF = {
  LOAD: "coming", LOADING: "coming", LOADED: "coming", ACTIVATE: "coming", ACTIVATING: "coming",
  ACTIVE: "active", FAILED: "failed",
  DEACTIVATE: "going", DEACTIVATING: "going", UNLOAD: "going", UNLOADING: "going",
};
const WORST = ["Invalid", "Unschedulable", "Degraded", "Reverted", "Unknown", "Progressing", "Ready", "Superseded"];
const OVER = new Set(["complete", "reverted"]);

export class Model {
  constructor() {
    this.facts = new Map();
    this.cells = new Map();
    this.nodes = new Map();
    this.events = [];
    this.eventsWhy = "";
    this.changed = new Set();
  }

  /** Takes in changes: `whole` says that nothing else is true any more. */
  take({ whole, facts }) {
    this.changed.clear();
    if (whole) {
      for (const name of [...this.facts.keys()]) if (!(name in facts)) this.#set(name, null);
    }
    for (const [name, value] of Object.entries(facts)) this.#set(name, value);
    this.#derive();
  }

  #set(name, value) {
    if (value === null) this.facts.delete(name);
    else this.facts.set(name, value);
    if (!name.startsWith("s/")) return;
    const before = this.cells.get(name);
    if (value === null) {
      if (before) this.#node(before.node).slices.delete(before), this.cells.delete(name);
      return;
    }
    const [node, artifact, ordinal, state, at, restarts = 0, failures = 0, port = 0, reason = ""] = value;
    const cell = before ?? { key: name.slice(2), node, artifact, ordinal };
    if (before?.state !== state) this.changed.add(cell);
    Object.assign(cell, { state, at, restarts, failures, port, reason });
    if (!before) {
      [cell.service, cell.version] = parted(artifact);
      cell.short = cell.service.slice(cell.service.indexOf(":") + 1);
      cell.label = `${node}/${artifact}${ordinal ? `#${ordinal}` : ""}`;
      this.cells.set(name, cell);
      const holder = this.#node(node);
      holder.slices.add(cell);
      holder.sorted = null;
    }
  }

  #node(id) {
    if (!this.nodes.has(id)) this.nodes.set(id, { id, slices: new Set(), sorted: null });
    return this.nodes.get(id);
  }

  #derive() {
    this.leader = this.facts.get("leader") ?? null;
    this.term = this.facts.get("term") ?? 0;
    this.away = this.facts.get("away") ?? null;
    this.unreadable = [];
    const versions = new Map();
    const version = (artifact) => {
      if (!versions.has(artifact)) versions.set(artifact, { artifact, counts: count() });
      return versions.get(artifact);
    };
    for (const node of this.nodes.values()) node.about = node.gone = node.intent = null;
    for (const [name, value] of this.facts) {
      const rest = name.slice(2);
      switch (name.slice(0, 2)) {
        case "b/": version(rest).blueprint = value; break;
        case "t/": version(rest).status = value; break;
        case "n/": this.#node(rest).about = value; break;
        case "i/": this.#node(rest).intent = value; break;
        case "g/": this.#node(rest).gone = value; break;
        case "x/": this.unreadable.push([rest, value]); break;
      }
    }
    this.counts = count();
    for (const node of this.nodes.values()) this.#settle(node);
    for (const cell of this.cells.values()) {
      cell.kind = this.nodes.get(cell.node).lost ? "lost" : KIND_OF[cell.state] ?? "coming";
      this.counts[cell.kind] += 1;
      version(cell.artifact).counts[cell.kind] += 1;
    }
    this.#gather(versions);
    this.troubles = [...this.#troubles()];
  }

  #settle(node) {
    const { about, gone } = node;
    if (!about && !node.slices.size && gone?.gone !== "lost") {
      this.nodes.delete(node.id);
      return;
    }
    node.lost = !about;
    node.labels = (about ?? gone)?.labels ?? {};
    node.zone = node.labels.zone ?? "";
    node.leads = node.id === this.leader;
    node.schedule = about?.leaving ? "leaving" : node.intent?.schedule ?? "normal";
    node.sorted ??= [...node.slices].sort(
      (a, b) => natural(a.artifact, b.artifact) || a.ordinal - b.ordinal);
  }

  #gather(versions) {
    const services = new Map();
    for (const each of versions.values()) {
      const [service, version] = parted(each.artifact);
      judge(Object.assign(each, { service, version }));
      if (!services.has(service)) services.set(service, { service, versions: [] });
      services.get(service).versions.push(each);
    }
    this.versions = versions;
    for (const each of services.values()) {
      each.versions.sort((a, b) => natural(b.version, a.version));
      each.shown = each.versions.filter((one) => !one.past);
      if (!each.shown.length) each.shown = each.versions.slice(0, 1);
      each.rollout = each.shown.find((one) => one.rollout)?.rollout ?? null;
      each.badness = Math.min(...each.shown.map((one) => one.badness));
      each.well = each.shown.every((one) => one.well);
      if (each.rollout && each.badness > WORST.indexOf("Progressing")) each.badness = WORST.indexOf("Progressing");
    }
    this.services = [...services.values()].sort((a, b) => a.badness - b.badness || natural(a.service, b.service));
  }

  *#troubles() {
    if (this.leader === null) yield { kind: "leader", text: "nobody leads: nothing is placed until a node does" };
    for (const each of this.versions.values()) {
      if (!each.well) yield { kind: each.condition === "Progressing" ? "change" : "service", text: `${each.artifact}: ${each.condition}` };
    }
    for (const node of this.nodes.values()) if (node.lost) yield { kind: "node", text: `${node.id}: lost` };
    for (const [name, why] of this.unreadable) yield { kind: "key", text: `${name}: ${why}` };
  }

  /** Nodes by zone, in the order of their names; lost ones stay where they were. */
  zones() {
    const zones = new Map();
    for (const node of [...this.nodes.values()].sort((a, b) => natural(a.id, b.id))) {
      if (!zones.has(node.zone)) zones.set(node.zone, []);
      zones.get(node.zone).push(node);
    }
    return [...zones].sort(([a], [b]) => (a === "") - (b === "") || natural(a, b));
  }
}

function count() {
  return Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, 0]));
}

function parted(artifact) {
  const at = artifact.lastIndexOf(":");
  return [artifact.slice(0, at), artifact.slice(at + 1)];
}

/** Whether as much of a version serves as is wanted, in the same words as `cdm status`. */
function judge(each) {
  const { blueprint, status, counts } = each;
  const read = Boolean(status && blueprint && status.observed >= blueprint.revision);
  each.condition = status?.condition ?? (blueprint ? "Unknown" : counts.failed ? "Failed" : "");
  each.reason = status?.reason ?? "";
  if (blueprint && !read) {
    each.condition = "Unknown";
    each.reason = `the leader has not read revision ${blueprint.revision} so far`;
  }
  each.desired = (read ? status.desired : blueprint?.instances) ?? 0;
  each.replaced = each.condition === "Superseded" || (each.condition === "Reverted" && !each.desired);
  const rollout = status?.rollout ?? null;
  each.rollout = rollout && rollout.to === each.version && !OVER.has(rollout.phase) ? rollout : null;
  const there = Object.values(counts).some(Boolean);
  each.past = (each.replaced || !blueprint) && !there && !each.rollout && each.condition !== "Reverted";
  if (!blueprint) each.well = !counts.failed;
  else if (each.condition === "Reverted") each.well = counts.active === each.desired;
  else each.well = each.replaced || each.condition === "Ready";
  const place = WORST.indexOf(each.condition);
  each.badness = place < 0 ? WORST.length : place;
}

/** A rollout in a line, as `cdm status` has it. */
export function rolloutInWords(rollout) {
  const way = rollout.from === rollout.to ? "" : ` ${rollout.from} → ${rollout.to}`;
  const step = (rollout.steps ?? 0) > 1 ? `, step ${rollout.step} of ${rollout.steps}` : "";
  return `${rollout.phase}${way}${step}${rollout.why ? `: ${brief(rollout.why)}` : ""}`;
}

/** What a slice is, in a line. */
export const inWords = (cell) => `${cell.state}${cell.kind === "lost" ? ", its node is not heard" : ""}`;

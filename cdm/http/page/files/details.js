// Explains one thing: a slice, a version or a node, and shows what it wrote. The explanations are those of `cdm explain`.

import { $, ago, brief, clock, h, many, natural } from "./dom.js";
import { bar, condition, eventRow, sign } from "./lists.js";
import { nodeInWords } from "./map.js";
import { inWords, rolloutInWords } from "./model.js";

const MOST_ROWS = 60;
const MOST_EVENTS = 15;
const LINES = 200;
const BETWEEN = 2000; // ms between two questions about the same thing

export class Details {
  /** @param open - called with what is to be explained instead; null closes */
  constructor(open) {
    this.open = open;
    this.what = null;
    this.asked = 0;
    this.found = null;
    $("close").addEventListener("click", () => open(null));
  }

  /** Explains `{ kind, name }`, kind being slice, version or node; null: nothing. */
  async explain(what, model) {
    this.what = what;
    this.found = null;
    this.error = "";
    this.logs = null;
    const number = (this.asked += 1);
    const panel = $("details");
    panel.hidden = !what;
    document.body.classList.toggle("explaining", Boolean(what));
    if (!what) return;
    this.basis = basisOf(what, model);
    this.show(model);
    panel.scrollTop = 0;
    panel.focus({ preventScroll: true });
    await this.#ask(number, model);
  }

  async #ask(number, model) {
    const { what } = this;
    let found = null, problem = "";
    try {
      found = await ask(`page/explain?kind=${what.kind}&name=${encodeURIComponent(what.name)}`);
    } catch (error) {
      problem = error.message;
    }
    if (number !== this.asked) return;
    [this.found, this.error] = [found, problem];
    this.show(model);
  }

  /** Asks again, once in a while, where what was explained is another by now. */
  #renew(model) {
    const basis = basisOf(this.what, model);
    if (basis === this.basis || this.renewing) return;
    this.renewing = true;
    setTimeout(() => {
      this.renewing = false;
      if (!this.what) return;
      this.basis = basisOf(this.what, model);
      this.#ask(this.asked, model);
    }, BETWEEN);
  }

  /** Shows what is known now. */
  show(model) {
    const { what } = this;
    if (!what) return;
    this.#renew(model);
    const body = { slice: () => this.#slice(model), version: () => this.#version(model), node: () => this.#node(model) }[what.kind]();
    const stamp = [...body].map((each) => each?.outerHTML ?? "").join();
    const old = $("details-body"), chosen = getSelection();
    // What somebody is about to copy stays as it is, and what was scrolled to.
    if (stamp === this.stamp || (chosen.type === "Range" && old.contains(chosen.anchorNode) && what === this.showing)) return;
    this.stamp = stamp;
    const held = document.activeElement?.dataset?.again;
    const scrolled = what === this.showing ? [...old.querySelectorAll("pre, .reason")].map((each) => each.scrollTop) : [];
    this.showing = what;
    old.replaceChildren(...body.filter(Boolean));
    old.querySelectorAll("pre, .reason").forEach((each, number) => { each.scrollTop = scrolled[number] ?? 0; });
    if (held) old.querySelector(`[data-again="${held}"]`)?.focus();
  }

  #title(kind, text) {
    $("details-title").replaceChildren(h("span", { class: "dim" }, `${kind} `), text);
  }

  #link(kind, name, ...children) {
    return h("a", { href: `#${kind}/${encodeURIComponent(name)}` }, ...children);
  }

  #slice(model) {
    const cell = model.cells.get(`s/${this.what.name}`), found = this.found;
    const artifact = cell?.artifact ?? found?.artifact, node = cell?.node ?? found?.node;
    this.#title("slice", cell?.label ?? this.what.name);
    if (!cell) return [h("p", { class: "note" }, "It is there no more."), this.#events(model, (each) => each.key === this.what.name), this.#logs()];
    return [
      cell && h("p", { class: "state" }, sign(cell.kind), h("b", null, inWords(cell)), ` for ${ago(cell.at).replace(" ago", "")}`,
        cell.port > 0 && `, port ${cell.port}`, cell.restarts > 0 && `, ${many(cell.restarts, "restart")}`),
      (cell?.reason || found?.reason) && h("p", { class: "reason" }, cell?.reason || found.reason),
      artifact && h("p", null, "of ", this.#link("version", artifact, artifact), " on ", this.#link("node", node, `node ${node}`)),
      ...this.#told(found && [
        found.standing_told && h("p", { class: "note" }, found.standing_told),
        h("p", null, `${found.said_by === "leader" ? "Commanded by the leader" : `Told by node ${found.node}`}, term ${found.term}, revision ${found.revision}.`),
        h("p", null, serves(found)),
        found.failures > 0 && h("p", null, `Failures before: ${found.failures}.`),
        found.better && h("p", { class: "note" }, `Better placed on ${found.better}.`),
        found.rules.length > 0 && section("Rules", h("ul", null, found.rules.map((rule) =>
          h("li", { class: rule.holds ? "" : "bad" }, `${rule.holds ? "✓ holds: " : "× broken: "}${rule.rule}${rule.why ? ` (${rule.why})` : ""}`)))),
        (found.domains.length > 0 || found.score > 0) && section("Where it is", h("ul", null,
          found.domains.map((each) => h("li", null, `spread: ${each}`)),
          found.score > 0 && h("li", null, `score ${found.score}${found.preferred.length ? ` (${found.preferred.join(", ")})` : ""}`))),
        happened(found.history),
        found.output.length > 0 && section("Its last output", h("pre", null, found.output.map((line) => line.text).join("\n"))),
      ]),
      this.#logs(),
    ];
  }

  #version(model) {
    const name = this.what.name, one = model.versions.get(name), found = this.found;
    this.#title("version", name);
    const cells = [...model.cells.values()].filter((cell) => cell.artifact === name);
    return [
      !one && h("p", { class: "note" }, "There is neither a blueprint nor a slice of it any more."),
      one && h("p", { class: "state" }, condition(one.condition || "no blueprint"), ` ${one.counts.active} of ${one.desired} active`,
        one.status?.healthy !== undefined && `, ${one.status.healthy} healthy`),
      one && bar(one),
      one?.blueprint?.refused && h("p", { class: "note" }, `Revision ${one.blueprint.revision} is refused: ${one.blueprint.refused}`),
      one?.reason && h("p", { class: "reason" }, one.reason),
      one?.rollout && section("Rollout", h("p", null, rolloutInWords(one.rollout)),
        one.rollout.share > 0 && h("p", null, `${Math.round(one.rollout.share)} % of all instances are healthy new ones.`)),
      ...this.#told(found && [
        found.leader === null && h("p", { class: "note" }, "Nobody leads: nothing is placed until somebody does."),
        found.rules.length > 0 && section("Rules", h("ul", null, found.rules.map((rule) => h("li", null, rule)))),
        section("One more", h("p", null, found.summary), [...found.awaited, ...found.nearest].map((each) => h("p", null, each))),
        happened(found.history),
      ]),
      cells.length > 0 && section(many(cells.length, "slice"), h("ul", { class: "cells" }, cells
        .sort((a, b) => (a.kind === "active") - (b.kind === "active") || natural(a.label, b.label)).slice(0, MOST_ROWS)
        .map((cell) => h("li", null, this.#link("slice", cell.key, sign(cell.kind), `${cell.node}${cell.ordinal ? ` #${cell.ordinal}` : ""}`),
          cell.kind !== "active" && ` ${inWords(cell)}`))), rest(cells.length)),
      found?.nodes?.length > 0 && section("Nodes", this.#nodeTable(found.nodes)),
      this.#logs(),
    ];
  }

  #nodeTable(nodes) {
    const some = [...nodes].sort((a, b) => b.instances - a.instances || a.obstacles.length - b.obstacles.length || natural(a.node, b.node));
    return h("div", null, h("table", null,
      h("thead", null, h("tr", null, ["node", "has", "one more"].map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", null, some.slice(0, MOST_ROWS).map((each) => h("tr", null,
        h("td", null, this.#link("node", each.node, each.node)), h("td", null, each.instances),
        h("td", null, each.fits ? "✓ fits" : each.obstacles.map(obstacle).join("; ") || "no", each.failed && `; failed there: ${brief(each.failed, 160)}`))))),
      rest(some.length));
  }

  #node(model) {
    const name = this.what.name, node = model.nodes.get(name), found = this.found;
    this.#title("node", name);
    if (!node) return [h("p", { class: "note" }, "There is no such node.")];
    const about = node.about ?? {}, labels = Object.entries(node.labels).sort(([a], [b]) => natural(a, b));
    const facts = [
      ["role", about.role], ["runtime", about.runtime], ["cdm", about.version], ["address", about.address],
      ["started", about.started && `${about.started.slice(0, 19).replace("T", " ")} UTC`],
      ["cpu", about.cpu && `${found?.reserved_cpu ?? 0} of ${about.cpu} cores reserved`],
      ["memory", about.memory && `${bytes(found?.reserved_memory ?? 0)} of ${bytes(about.memory)} reserved`],
      ...labels,
    ].filter(([, value]) => value !== null && value !== undefined && value !== "");
    return [
      h("p", { class: "state" }, h("b", null, nodeInWords(node))),
      node.lost && h("p", { class: "note" }, "It is not registered any more. What it ran is replaced where there is room."),
      node.intent?.reason && h("p", { class: "reason" }, node.intent.reason),
      ...this.#told(found && [
        found.left?.length > 0 && section("Left to be moved", h("ul", null, found.left.map((each) =>
          h("li", null, `${each.slice}${each.why ? `: ${each.why}` : ""}`)))),
      ]),
      h("dl", { class: "facts" }, facts.map(([key, value]) => [h("dt", null, key), h("dd", null, value)])),
      node.sorted.length > 0 && section(many(node.sorted.length, "slice"), h("ul", { class: "cells whole" }, node.sorted.slice(0, MOST_ROWS).map((cell) =>
        h("li", null, this.#link("slice", cell.key, sign(cell.kind), `${cell.artifact}${cell.ordinal ? ` #${cell.ordinal}` : ""}`),
          cell.kind !== "active" && ` ${inWords(cell)}`))), rest(node.sorted.length)),
      this.#events(model, (each) => each.node === name),
    ];
  }

  #events(model, which) {
    const found = model.events.filter(which).slice(0, MOST_EVENTS);
    return found.length > 0 && section("Events", h("ol", { class: "events" }, found.map((each) => eventRow(each, (it) => this.open(aboutOf(it))))));
  }

  #told(parts) {
    if (this.error) return [h("p", { class: "note" }, this.error)];
    return parts || [h("p", { class: "dim" }, "Asking …")];
  }

  #logs() {
    const { what, logs } = this;
    const button = h("button", { type: "button", "data-again": "logs", onclick: () => this.#read() }, logs ? "Read again" : "Show the logs");
    if (!logs) return section("Output", button);
    return section("Output", button, logs.why && h("p", { class: "note" }, logs.why),
      logs.lines?.length > 0 && h("pre", { class: "logs", tabindex: "0" }, logs.lines.map((line) =>
        h("span", { class: line.stream }, h("time", null, line.time.slice(11, 23)), what.kind === "version" && h("i", null, ` ${line.node}${line.ordinal ? `#${line.ordinal}` : ""}`), ` ${line.text}\n`))));
  }

  async #read() {
    const { what } = this, number = this.asked;
    let logs;
    try {
      logs = await ask(`page/logs?kind=${what.kind}&name=${encodeURIComponent(what.name)}&lines=${LINES}`);
    } catch (error) {
      logs = { why: error.message };
    }
    if (number !== this.asked) return;
    this.logs = logs;
    this.again?.();
    const box = $("details-body").querySelector(".logs");
    if (box) box.scrollTop = box.scrollHeight;
  }
}

/** What an event is about, as what can be explained; null: nothing that can. */
export function aboutOf(event) {
  if (event.key) return { kind: "slice", name: event.key };
  if (event.artifact) return { kind: "version", name: event.artifact };
  return event.node ? { kind: "node", name: event.node } : null;
}

async function ask(path) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Accept: "application/json" } });
  } catch {
    throw new Error("The page's server does not answer.");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error ?? `The server answered ${answer.status}.`);
  return found;
}

/** What an explanation depends on, as far as the page knows it. */
function basisOf(what, model) {
  if (what.kind === "slice") return JSON.stringify(model.facts.get(`s/${what.name}`) ?? null);
  if (what.kind === "version") return JSON.stringify([model.facts.get(`b/${what.name}`), model.facts.get(`t/${what.name}`)]);
  return JSON.stringify([model.facts.get(`i/${what.name}`), model.nodes.get(what.name)?.slices.size]);
}

const section = (title, ...children) => h("section", null, h("h3", null, title), ...children);
const rest = (count) => count > MOST_ROWS && h("p", { class: "dim" }, `and ${(count - MOST_ROWS).toLocaleString("en")} more`);

function happened(history) {
  return history.length > 0 && section("What happened", h("ol", { class: "happened" }, [...history].reverse().map((each) =>
    h("li", null, h("time", { datetime: each.at, title: each.at }, clock(Date.parse(each.at) / 1000)), h("span", { class: "kind" }, each.kind), h("span", null, each.told)))));
}

function serves(found) {
  const force = found.in_force
    ? `${found.in_force === found.blueprint ? "it" : `revision ${found.in_force}`} is in force, ${found.desired ?? "an unknown number"} wanted`
    : "no blueprint is in force";
  if (found.blueprint === null) return `No blueprint is told; ${force}.`;
  const at = found.blueprint_at ? `, written ${ago(Date.parse(found.blueprint_at) / 1000)}` : "";
  return `Serves blueprint revision ${found.blueprint}${at}${found.blueprint_by ? ` by ${found.blueprint_by}` : ""}; ${force}.`;
}

function obstacle({ miss, why, numbers }) {
  if (miss.startsWith(why)) return miss;
  return `${why}${numbers ? ` (${numbers})` : ""}${miss && miss !== numbers ? `: ${miss}` : ""}`;
}

function bytes(count) {
  for (const [size, unit] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"]]) if (count >= size) return `${Math.round((count / size) * 10) / 10} ${unit}`;
  return `${count} B`;
}

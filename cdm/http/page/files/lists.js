// What stands beside the map: whether all is well, services and how far their rollouts are, and what happened.

import { $, ago, brief, clock, fill, h, many, shown } from "./dom.js";
import { KINDS, rolloutInWords } from "./model.js";

const MOST_SERVICES = 120;
const MOST_EVENTS = 100;

/** The line on top, and the title of the window. */
export function showTop(model) {
  const verdict = $("verdict"), { troubles, leader, term } = model;
  const count = (kind) => troubles.filter((each) => each.kind === kind).length;
  const wrong = ["service", "node", "key"].filter(count).map((kind) => many(count(kind), kind));
  const changing = count("change") ? `${many(count("change"), "service")} changing` : "";
  const well = troubles.length === 0;
  const [text, sort] = leader === null ? ["Nobody leads", "bad"]
    : wrong.length ? [`Not well: ${wrong.join(", ")}${changing ? `; ${changing}` : ""}`, "warn"]
      : changing ? [changing, "change"] : ["All is well", "well"];
  verdict.className = sort;
  say(verdict, text);
  verdict.title = troubles.slice(0, 12).map((each) => shown(each.text)).join("\n");
  document.title = `${well ? "" : "● "}cdm: ${text.toLowerCase()}`;
  $("sums").replaceChildren(
    h("span", null, leader === null ? "no leader" : "leader ", leader !== null && h("b", null, leader)),
    h("span", null, `term ${term}`),
    h("span", null, many([...model.nodes.values()].filter((node) => node.about).length, "node")),
    h("span", null, many(model.services.length, "service")),
    h("span", null, many(model.cells.size, "slice")),
  );
}

/** Says a text once: what reads it aloud is not to repeat it. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** How many slices there are of each group of states; each is a button that shows only these. */
export function showLegend(model, only, press) {
  fill($("legend"), Object.entries(KINDS).map(([kind, about]) => ({ kind, ...about, count: model.counts[kind] })),
    (each) => each.kind, (each) => `${each.count} ${only === each.kind}`,
    ({ kind, name, count }) => h("div", null, h("button", {
      type: "button", "aria-pressed": only === kind, class: count ? "" : "none", onclick: () => press(kind),
    }, sign(kind), `${count.toLocaleString("en")} ${name}`)));
}

/** The shape of a group of states; what it says is said beside it. */
export const sign = (kind) => h("span", { class: `sign ${kind}`, "aria-hidden": "true" });

export function showServices(model, matches, pick) {
  const all = matches ? model.services.filter((each) => matches.services.has(each.service)) : model.services;
  const shownOnes = all.slice(0, MOST_SERVICES);
  fill($("service-list"), shownOnes, (each) => each.service, stamp, (each) => serviceRow(each, pick));
  $("services-title").replaceChildren("Services", h("span", { class: "count" }, all.length.toLocaleString("en")));
  let rest = $("services").querySelector(".rest");
  const text = all.length > shownOnes.length ? `and ${all.length - shownOnes.length} more: filter to see them`
    : !all.length ? (matches ? "none matches" : "there is no blueprint yet: `cdm deploy`, or `nats kv put blueprints …`") : "";
  if (!rest) $("services").append(rest = h("p", { class: "rest" }));
  say(rest, text);
}

const stamp = (each) => JSON.stringify(each.shown.map(({ artifact, condition, reason, desired, counts, rollout, status, blueprint }) =>
  [artifact, condition, reason, desired, counts, rollout, status?.healthy, blueprint?.each]));

function serviceRow(each, pick) {
  const [group, name] = [each.service.slice(0, each.service.indexOf(":") + 1), each.service.slice(each.service.indexOf(":") + 1)];
  return h("li", { class: each.well ? "" : each.shown.every((one) => one.well || one.condition === "Progressing") ? "changing" : "troubled" },
    h("h3", null, h("span", { class: "dim" }, group), name),
    each.rollout && h("p", { class: "rollout" }, h("span", { "aria-hidden": "true" }, "⟳ "), rolloutInWords(each.rollout), share(each.rollout)),
    each.shown.map((one) => versionRow(one, pick)));
}

const share = ({ share: done }) => (done ? `, ${Math.round(done)} % new and healthy` : "");

function versionRow(one, pick) {
  const { counts } = one;
  const wanted = one.blueprint?.each && !one.status ? "each" : one.desired;
  return h("button", { type: "button", class: "version", title: "Explain", onclick: () => pick(one.artifact) },
    h("span", { class: "name" }, one.version),
    condition(one.condition),
    h("span", { class: "number" }, one.replaced ? `${counts.active} left` : `${counts.active} of ${wanted}`),
    bar(one),
    !one.well && one.reason && one.reason !== one.rollout?.why && h("span", { class: "why" }, brief(one.reason, 220)));
}

const SIGNS = { Ready: "✓", Progressing: "…", Superseded: "–", Reverted: "↩" };

export const condition = (name) => h("span", { class: `condition ${name.toLowerCase()}` },
  h("span", { "aria-hidden": "true" }, `${SIGNS[name] ?? "!"} `), name);

/** How many serve, come, go, failed, and are missing. */
export function bar(one) {
  const { counts, desired } = one;
  const missing = Math.max(desired - counts.active - counts.coming - counts.failed - counts.lost, 0);
  const parts = [...["active", "coming", "failed", "lost", "going"].map((kind) => [kind, counts[kind]]), ["missing", missing]];
  const told = parts.filter(([, count]) => count).map(([kind, count]) => `${count} ${kind}`).join(", ");
  return h("span", { class: "bar", role: "img", "aria-label": told, title: told },
    parts.filter(([, count]) => count).map(([kind, count]) => {
      const part = h("span", { class: kind });
      part.style.flexGrow = count;
      return part;
    }));
}

export function showEvents(model, matches, pick) {
  const query = matches ? (each) => matches.text(`${each.about} ${each.kind} ${each.told}`) : () => true;
  const found = model.events.filter(query).slice(0, MOST_EVENTS);
  fill($("event-list"), found, (each) => String(each.number), () => "", (each) => eventRow(each, pick));
  let rest = $("events").querySelector(".rest");
  if (!rest) $("events").append(rest = h("p", { class: "rest" }));
  say(rest, model.eventsWhy ? shown(model.eventsWhy) : found.length ? "" : "nothing of late");
}

export function eventRow(each, pick) {
  return h("li", { class: each.bad ? "bad" : "" },
    h("button", { type: "button", onclick: () => pick(each) },
      h("time", { datetime: new Date(each.at * 1000).toISOString(), title: new Date(each.at * 1000).toLocaleString() }, clock(each.at)),
      h("span", { class: "kind" }, each.bad && h("span", { "aria-hidden": "true" }, "! "), each.kind),
      h("span", { class: "about" }, each.about),
      each.told && h("span", { class: "told" }, brief(each.told, 240))));
}

/** Says that what is shown may be old, and since when. */
export function showBanner(model, lost) {
  const banner = $("banner");
  const text = lost ? `This page has not heard from its server since ${clock(lost)} (${ago(lost)}). What follows is as it was then.`
    : model.facts.get("problem") ? `The cluster cannot be read: ${shown(model.facts.get("problem"))}`
    : model.away ? `NATS is away since ${clock(model.away)} (${ago(model.away)}). What follows is as it was then; slices run on.` : "";
  banner.hidden = !text;
  say(banner, text);
  document.body.classList.toggle("old", Boolean(text));
}

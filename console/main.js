/** The console: creates its parts and connects them. */

import { Card } from "/console/card.js";
import { Compose } from "/console/compose.js";
import { refuseHandshakes, watch } from "/console/gateway.js";
import { Plots } from "/console/plots.js";
import { Presence } from "/console/presence.js";

const find = (selector) => document.querySelector(selector);
const cards = [];
const plots = new Plots();
const compose = new Compose(() => cards);
const presence = new Presence(() => cards);
const here = {
  websocket: `${location.origin.replace("http", "ws")}/ws`,
  rest: location.origin,
  local: true,
};

find("#signin").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  const error = form.querySelector(".error");
  error.textContent = "";
  try {
    add(new Card(asked(form), stage(form)));
  } catch (failure) {
    error.textContent = failure.message;
  }
});

find("#handshakes").addEventListener("change", ({ target }) => {
  const section = target.closest(".faults");
  const error = section.querySelector(".error");
  section.querySelector(".injecting").textContent = target.value ? "active" : "";
  error.textContent = "";
  refuseHandshakes(Number(target.value) || null).catch(({ message }) => {
    error.textContent = message;
  });
});

find("#search").addEventListener("input", ({ target }) => {
  cards.forEach((card) => card.search(target.value));
});

/** Returns the user, tenant and claims of the form, or its token and the user that it names. */
function asked(form) {
  const field = (name) => form.elements[name].value.trim();
  const token = field("token");
  if (token) return { token, ...named(token) };
  const scopes = [...form.querySelectorAll("[name=scope]:checked")].map(({ value }) => value);
  const groups = field("groups").split(",").map((one) => one.trim()).filter(Boolean);
  const [user, tenant] = [field("user"), field("tenant")];
  const claims = {
    user,
    scope: scopes.join(" "),
    seconds: Number(field("seconds")),
    ...(tenant && { tenant }),
    ...(groups.length && { groups }),
  };
  return { user, tenant, claims };
}

/** Returns the user and the tenant of a token. */
function named(token) {
  try {
    const payload = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    const { sub, tenant } = JSON.parse(payload);
    return { user: sub, tenant };
  } catch {
    throw new Error("The token is not a JWT.");
  }
}

function stage(form) {
  const [websocket, rest] = ["websocket", "rest"].map((name) => form.elements[name].value.trim());
  if (!websocket && !rest) return here;
  if (!form.elements.token.value.trim()) throw new Error("A deployed stage needs your own token.");
  return { websocket: websocket || here.websocket, rest: (rest || here.rest).replace(/\/$/, "") };
}

function add(card) {
  cards.push(card);
  find("#cards").append(card.element);
  card.search(find("#search").value);
  card.addEventListener("changed", changed);
  card.addEventListener("received", ({ detail }) => {
    plots.latency(Math.max(0, detail.after));
    if (!card.stage.local) plots.delivered();
    compose.arrived(card, detail);
  });
  card.addEventListener("removed", () => {
    cards.splice(cards.indexOf(card), 1);
    changed();
  });
  changed();
}

function changed() {
  find("#none").hidden = cards.length > 0;
  compose.offer();
  presence.refresh();
  const away = cards.find(({ stage: { local } }) => !local);
  if (away) {
    find("#stage").textContent = new URL(away.stage.websocket).host;
    plots.connections(cards.filter(({ connected }) => connected).length);
  }
}

watch((event) => {
  if (event.connections !== undefined) plots.connections(event.connections);
  if (event.kind === "delivery" && event.status === 200) plots.delivered();
  if (event.kind === "connect" && event.status === 101) {
    cards.find(({ key }) => key === event.card)?.identify(event.connectionId);
  }
  if (event.kind === "connect" || event.kind === "disconnect") presence.refresh();
});

const theme = find("#theme");
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (systemIsDark.matches ? "dark" : "light")) === "dark";
const showTheme = () => theme.setAttribute("aria-pressed", isDark());
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
systemIsDark.addEventListener("change", showTheme);
showTheme();

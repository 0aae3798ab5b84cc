/**
 * Tests of the console in Chromium. The gateway at HERALD_REST queues messages with more than two
 * recipients and can encrypt. Screenshots go to SCREENSHOTS.
 */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, afterEach, before, beforeEach, test } from "node:test";

import { SignJWT } from "jose";
import { chromium } from "playwright-core";

const { HERALD_REST: REST, HERALD_URL: URL, HERALD_SECRET: SECRET, SCREENSHOTS } = process.env;
const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core"), "utf8");
const DESK = { width: 1440, height: 1000 };
const PHONE = { width: 390, height: 844 };

let browser, page, errors;

before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
});

after(() => browser.close());

beforeEach(async () => {
  errors = [];
  page = await browser.newPage({ viewport: DESK });
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (line) => line.type() === "error" && errors.push(line.text()));
  await page.goto(`${REST}/console`);
});

afterEach(async () => {
  await page.close();
  assert.deepEqual(errors, []);
});

const screenshot = (name) => page.screenshot({ path: `${SCREENSHOTS}/${name}.png`, fullPage: true });

const card = (number) => page.locator("article.card").nth(number);

const status = (number, text) => card(number).locator(".status", { hasText: text }).waitFor();

const frame = (number, text) => card(number).locator(".frames li", { hasText: text }).first().waitFor();

async function signIn(user, { tenant = "", groups = "" } = {}) {
  const number = await page.locator("article.card").count();
  await page.fill("[name=user]", user);
  await page.fill("[name=tenant]", tenant);
  await page.fill("[name=groups]", groups);
  await page.click("#signin button[type=submit]");
  await status(number, "connected");
  await page.waitForFunction(
    (index) => document.querySelectorAll("article.card .id code")[index].textContent,
    number,
  );
}

async function send(names, data, { kind = "users", via = "rest", encrypt = false } = {}) {
  await page.selectOption("[name=kind]", kind);
  if (kind !== "all") await page.fill("[name=names]", names);
  await page.fill("[name=data]", data);
  await page.selectOption("[name=via]", via);
  await page.setChecked("[name=encrypt]", encrypt);
  await page.click("#compose button[type=submit]");
}

const report = (text) => page.locator(".report").first().filter({ hasText: text }).waitFor();

/** Open the fault injection of a card. */
const openFaults = (number) => card(number).locator(".faults summary").click();

/** Returns the violations that axe finds on the page. */
async function complaints() {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" | ")}`);
}

test("two users write to each other", async () => {
  await page.setViewportSize({ width: 1200, height: 900 });
  await signIn("alice");
  await signIn("bob");
  await send("bob", '{"text": "Hi Bob"}');
  await frame(1, "Hi Bob");
  await report("1 recipient: 1 delivered");
  await report(/bob received it after \d+ ms/);
  await page.selectOption("[name=from]", { index: 1 });
  await send("alice", "just text", { via: "websocket" });
  await frame(0, "chat from bob: just text");
  await frame(1, "ack");
  await page.locator("#presence td.online").nth(1).waitFor();
  await page.waitForTimeout(1200);
  assert.match(await page.textContent("#active"), /^\d+ \(peak \d+\)$/);
  assert.match(await page.textContent("#latency"), /^\d+ \(peak \d+\)$/);
  await screenshot("console"); // docs/images/console.png is a copy
});

test("a queued broadcast shows its progress", async () => {
  for (const user of ["c-a", "c-b", "c-c"]) await signIn(user, { tenant: "c-many" });
  await send("", "to all", { kind: "all" });
  for (const number of [0, 1, 2]) await frame(number, "to all");
  await report("Done. 3 recipients: 3 delivered");
  const [value, most] = await page.locator(".report progress").evaluate((bar) => [bar.value, bar.max]);
  assert.equal(value, most);
  await screenshot("broadcast");
});

test("a connection that the gateway closes reconnects and receives messages", async () => {
  await signIn("c-cut");
  const before = await card(0).locator(".id code").textContent();
  await openFaults(0);
  await card(0).locator("[data-do=cut]").click();
  await frame(0, "Closed with code 1001 (Going away). Reconnecting in");
  await page.waitForFunction(
    (old) => ![old, ""].includes(document.querySelector(".id code").textContent), before,
  );
  await send("c-cut", "after the cut");
  await frame(0, "after the cut");
  await report("1 delivered");
});

test("a delivery that is answered 410 is reported as gone", async () => {
  await signIn("c-gone");
  await openFaults(0);
  await card(0).locator("[data-fault=status]").selectOption("410");
  await page.waitForTimeout(300);
  await send("c-gone", "lost");
  await report("1 recipient: 1 gone");
  await card(0).locator(".injecting", { hasText: "active" }).waitFor();
  await screenshot("gone");
});

test("a delayed delivery arrives late", async () => {
  await signIn("c-slow");
  await openFaults(0);
  await card(0).locator("[data-fault=delayMs]").selectOption("300");
  await page.waitForTimeout(300);
  await send("c-slow", "late");
  await report(/c-slow received it after [3-9]\d\d ms/);
});

test("a client that was refused connects once it is accepted", async () => {
  await page.locator("section.faults summary").click();
  await page.selectOption("#handshakes", "503");
  await page.locator("section.faults .injecting", { hasText: "active" }).waitFor();
  await page.waitForTimeout(300);
  await page.fill("[name=user]", "c-refused");
  await page.click("#signin button[type=submit]");
  await frame(0, "Reconnecting in");
  await page.selectOption("#handshakes", "");
  await status(0, "connected");
  // The browser logs each refused handshake by itself.
  errors = errors.filter((text) => !text.includes("WebSocket connection"));
});

test("encrypted messages are decrypted", async () => {
  await signIn("c-sec");
  await send("c-sec", '{"text": "for your eyes"}', { encrypt: true });
  await frame(0, '🔓 chat from c-sec: {"text":"for your eyes"}');
});

test("frames can be filtered and expanded", async () => {
  await signIn("c-find");
  for (const text of ["needle", "hay"]) {
    await send("c-find", text);
    await frame(0, text);
  }
  await page.fill("#search", "needle");
  assert.equal(await card(0).locator(".frames li:visible").count(), 1);
  await card(0).locator(".frames summary:visible").click();
  await card(0).locator("pre", { hasText: '"data": "needle"' }).waitFor();
});

test("the keyboard is enough to connect, send and ping", async () => {
  await page.focus("[name=user]");
  await page.keyboard.press("ControlOrMeta+A");
  await page.keyboard.type("c-keys");
  await page.keyboard.press("Enter");
  await status(0, "connected");
  await page.focus("[name=names]");
  await page.keyboard.press("ControlOrMeta+A");
  await page.keyboard.type("c-keys");
  await page.keyboard.press("Enter");
  await report("1 delivered");
  for (let presses = 0; presses < 60; presses += 1) {
    await page.keyboard.press("Tab");
    if (await page.evaluate(() => document.activeElement.dataset.do === "ping")) break;
  }
  await page.keyboard.press("Space");
  await frame(0, "pong");
});

test("the page names what is wrong in a form", async () => {
  await page.click("#compose button[type=submit]");
  await page.locator("#compose .error", { hasText: "Connect a client first." }).waitFor();
  await signIn("c-wrong");
  await send("", "nobody");
  await page.locator("#compose .error", { hasText: "400 bad_request: " }).waitFor();
  errors = errors.filter((text) => !text.includes("status of 400"));
  await page.locator("summary", { hasText: "Use a deployed stage" }).click();
  await page.fill("[name=token]", "no token");
  await page.click("#signin button[type=submit]");
  await page.locator("#signin .error", { hasText: "The token is not a JWT." }).waitFor();
  await page.fill("[name=token]", "");
  await page.fill("[name=websocket]", URL.replace("127.0.0.1", "localhost"));
  await page.click("#signin button[type=submit]");
  await page.locator("#signin .error", { hasText: "A deployed stage needs your own token." }).waitFor();
});

test("the page connects to another stage with a given token", async () => {
  const token = await new SignJWT({ scope: "ws:connect messages:send", sub: "c-far", exp: 4e9 })
    .setProtectedHeader({ alg: "HS256" })
    .sign(new TextEncoder().encode(SECRET));
  await page.locator("summary", { hasText: "Use a deployed stage" }).click();
  await page.fill("[name=websocket]", URL.replace("127.0.0.1", "localhost"));
  await page.fill("[name=rest]", REST.replace("127.0.0.1", "localhost"));
  await page.fill("[name=token]", token);
  await page.click("#signin button[type=submit]");
  await status(0, "connected");
  await page.locator("#stage", { hasText: "localhost" }).waitFor();
  await send("c-far", "from afar", { via: "rest" });
  await frame(0, "chat from c-far: from afar");
  await report("1 recipient: 1 delivered");
  await page.locator("#presence td.online").waitFor();
});

for (const [scheme, viewport] of [["light", DESK], ["dark", DESK], ["light", PHONE], ["dark", PHONE]]) {
  const name = `${scheme}-${viewport === DESK ? "desk" : "phone"}`;
  test(`axe finds no violation: ${name}`, async () => {
    await page.setViewportSize(viewport);
    await page.emulateMedia({ colorScheme: scheme });
    assert.deepEqual(await complaints(), []);
    await signIn("c-axe");
    await send("c-axe", "look");
    await report("1 delivered");
    await card(0).locator(".frames summary").first().click();
    await openFaults(0);
    await card(0).locator("[data-fault=delayMs]").selectOption("300");
    await page.locator("section.faults summary").click();
    assert.deepEqual(await complaints(), []);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= viewport.width, `the page is ${wide} px wide`);
    await screenshot(name);
  });
}

test("the button switches between light and dark", async () => {
  await page.emulateMedia({ colorScheme: "light" });
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await ground();
  await page.click("#theme");
  assert.notEqual(await ground(), light);
  assert.equal(await page.getAttribute("#theme", "aria-pressed"), "true");
});

// AWS's SDK for JavaScript v3: Promise.all over 64 workers and as many sockets.
// The same protocol as rounds.py: node peer.mjs ENDPOINT PAYLOAD RECIPIENTS, a round for each line.
import { Agent } from "node:https";
import { createInterface } from "node:readline";
import {
  ApiGatewayManagementApiClient,
  PostToConnectionCommand,
} from "@aws-sdk/client-apigatewaymanagementapi";
import { NodeHttpHandler } from "@smithy/node-http-handler";

const SOCKETS = 64;
const ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";

const [endpoint, payload, recipients] = process.argv.slice(2);
const Data = Buffer.alloc(Number(payload), "x");
const ids = Array.from(
  { length: Number(recipients) },
  () =>
    Array.from({ length: 15 }, () => ID_CHARACTERS[Math.floor(Math.random() * 64)]).join("") + "=",
);
const client = new ApiGatewayManagementApiClient({
  endpoint,
  region: "us-east-1",
  requestHandler: new NodeHttpHandler({
    httpsAgent: new Agent({ keepAlive: true, maxSockets: SOCKETS }),
  }),
});

console.log("ready");
for await (const _ of createInterface({ input: process.stdin })) {
  const started = performance.now();
  const cpu = process.cpuUsage();
  let first = 0;
  const waiting = ids.values();
  const worker = async () => {
    for (const ConnectionId of waiting) {
      await client.send(new PostToConnectionCommand({ ConnectionId, Data }));
      first ||= performance.now();
    }
  };
  await Promise.all(Array.from({ length: SOCKETS }, worker));
  const last = performance.now();
  const used = process.cpuUsage(cpu);
  const figures = {
    seconds: (last - started) / 1000,
    first_ms: first - started,
    cpu_seconds: (used.user + used.system) / 1e6,
    rss_mb: process.resourceUsage().maxRSS / 1024,
  };
  console.log(JSON.stringify(figures));
}

// Opens a WebSocket for each line of standard input, a JSON object with `url` and `options` for
// the ws library. Prints its events, a JSON array for each line: its number, then `open` with
// the subprotocol, `refused` with the status, `message` with the text, or `close` with the code.
import { createInterface } from "node:readline";
import WebSocket from "ws";

const sockets = [];
const print = (...event) => console.log(JSON.stringify(event));

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const { url, subprotocols, headers } = JSON.parse(line);
    const number = sockets.length;
    const socket = new WebSocket(url, subprotocols ?? [], { headers });
    sockets.push(socket);
    socket.on("open", () => print(number, "open", socket.protocol));
    socket.on("unexpected-response", (_, response) => print(number, "refused", response.statusCode));
    socket.on("message", (data) => print(number, "message", data.toString()));
    socket.on("close", (code) => print(number, "close", code));
    socket.on("error", (error) => print(number, "error", error.message));
  })
  .on("close", () => sockets.forEach((socket) => socket.close(1000)));

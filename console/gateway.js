/** What the console asks of the local gateway that serves it. */

async function ask(method, path, body) {
  const answer = await fetch(`/console${path}`, {
    method,
    headers: { "Content-Type": "application/json" },
    body: body && JSON.stringify(body),
  });
  const content = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw new Error(content.message);
  return content;
}

const connection = (id) => `/connections/${encodeURIComponent(id)}`;

/** A token for `{ user, scope, tenant, groups, seconds }`. */
export const makeToken = async (claims) => (await ask("POST", "/token", claims)).token;

/** Answer every handshake with `status`; null: no more. */
export const refuseHandshakes = (status) => ask("PUT", "/handshakes", { status });

/** Deliver to a connection `{ delayMs }` later, or answer `{ status }` instead of delivering. */
export const setFault = (id, fault) => ask("PUT", connection(id), fault);

/** Close a connection, as API Gateway does in the end. */
export const cutOff = (id) => ask("DELETE", connection(id));

/** Calls `listener` with each thing that happens in the gateway. */
export function watch(listener) {
  new EventSource("/console/events").onmessage = ({ data }) => JSON.parse(data).forEach(listener);
}

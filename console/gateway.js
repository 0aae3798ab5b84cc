/** The endpoints of the local gateway that serves the console. */

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

/** Returns a token for `{ user, scope, tenant, groups, seconds }`. */
export const makeToken = async (claims) => (await ask("POST", "/token", claims)).token;

/** Refuse every handshake with `status`, or none with null. */
export const refuseHandshakes = (status) => ask("PUT", "/handshakes", { status });

/** Delay deliveries to a connection by `delayMs`, or answer them with `status` instead of delivering. */
export const setFault = (id, fault) => ask("PUT", connection(id), fault);

/** Close a connection with code 1001, as API Gateway does after two hours. */
export const closeFromGateway = (id) => ask("DELETE", connection(id));

/** Call `listener` with each event of the gateway. */
export function watch(listener) {
  new EventSource("/console/events").onmessage = ({ data }) => JSON.parse(data).forEach(listener);
}

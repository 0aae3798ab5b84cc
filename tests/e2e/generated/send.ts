/** A client in TypeScript, whose types openapi-typescript makes of `docs/openapi.yaml`. */

import createClient from "openapi-fetch";

import type { components, paths } from "./herald.js";

type Schemas = components["schemas"];

/** Send a message, and return its report. Throws the problem's code where Herald refuses. */
export async function send(
  url: string,
  token: string,
  body: Schemas["Message"],
): Promise<Schemas["Report"]> {
  const herald = createClient<paths>({
    baseUrl: url,
    headers: { Authorization: `Bearer ${token}` },
  });
  const { data, error } = await herald.POST("/messages", { body });
  if (error !== undefined) {
    throw new Error("code" in error ? error.code : (error.message ?? "refused"));
  }
  const [report] = data.messages;
  if (report === undefined || "queued" in report) {
    throw new Error("there is no report yet");
  }
  return report;
}

/** Bodies that Herald refuses don't compile. */
export const refused: Schemas["Message"][] = [
  // @ts-expect-error: it says to nobody.
  { data: 1 },
  // @ts-expect-error: users come as a list.
  { to: { users: "bob" }, data: 1 },
  // @ts-expect-error: there is no such audience.
  { to: { rooms: ["lobby"] }, data: 1 },
  // @ts-expect-error: all is true, or it is left out.
  { to: { all: false }, data: 1 },
  // @ts-expect-error: there is no such property.
  { to: { all: true }, data: 1, priority: 1 },
];

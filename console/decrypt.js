/** Decrypt the `data` of an encrypted message: a JWE (RFC 7516) with `dir` and A256GCM. */
export async function decrypt(jwe, keys) {
  const [header, , iv, ciphertext, tag] = jwe.split(".");
  const { kid } = JSON.parse(text(fromBase64url(header)));
  const jwk = keys.find((key) => key.kid === kid);
  if (jwk === undefined) throw new Error(`this user has no key ${kid}`);
  const key = await crypto.subtle.importKey("jwk", jwk, "AES-GCM", false, ["decrypt"]);
  const sealed = new Uint8Array([...fromBase64url(ciphertext), ...fromBase64url(tag)]);
  const additionalData = new TextEncoder().encode(header);
  const parameters = { name: "AES-GCM", iv: fromBase64url(iv), additionalData };
  return JSON.parse(text(await crypto.subtle.decrypt(parameters, key, sealed)));
}

const text = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);

const fromBase64url = (part) =>
  Uint8Array.from(atob(part.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));

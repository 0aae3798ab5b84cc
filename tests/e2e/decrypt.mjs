// Decrypts a message for each line of standard input, a JSON object with a JWE and a JWK Set, as an
// application would: with the jose library, and with only WebCrypto, which browsers have, too.
// Prints both plaintexts, a JSON array for each line.
import { createInterface } from "node:readline";
import { compactDecrypt, decodeProtectedHeader, importJWK } from "jose";

const text = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);
const fromBase64url = (part) =>
  Uint8Array.from(atob(part.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));

async function withJose(jwe, key) {
  const { plaintext } = await compactDecrypt(jwe, await importJWK(key, "dir"));
  return text(plaintext);
}

async function withWebCrypto(jwe, jwk) {
  const [header, , iv, ciphertext, tag] = jwe.split(".");
  const key = await crypto.subtle.importKey("jwk", jwk, "AES-GCM", false, ["decrypt"]);
  const additionalData = new TextEncoder().encode(header);
  const sealed = new Uint8Array([...fromBase64url(ciphertext), ...fromBase64url(tag)]);
  const parameters = { name: "AES-GCM", iv: fromBase64url(iv), additionalData };
  return text(await crypto.subtle.decrypt(parameters, key, sealed));
}

for await (const line of createInterface({ input: process.stdin })) {
  const { jwe, keys } = JSON.parse(line);
  const key = keys.find(({ kid }) => kid === decodeProtectedHeader(jwe).kid);
  console.log(JSON.stringify([await withJose(jwe, key), await withWebCrypto(jwe, key)]));
}

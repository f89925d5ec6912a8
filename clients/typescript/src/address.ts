/** Where gRPC is served unless told otherwise. */
export const DEFAULT_PORT = 50051;

const WANT = `want HOST:PORT, for example 127.0.0.1:${String(DEFAULT_PORT)}`;

/**
 * The address with its port, {@link DEFAULT_PORT} where it names none. Throws a TypeError for one
 * that can never be right.
 */
export function checkAddress(address: unknown): string {
  if (typeof address !== "string") {
    throw new TypeError(`the address is ${typeof address === "object" ? "an object" : String(address)}: ${WANT}; options are the second argument`);
  }
  const quoted = JSON.stringify(address.slice(0, 200));
  let text = address.startsWith("dns:///") ? address.slice("dns:///".length) : address;
  if (/^https?:\/\//.test(text)) {
    throw new TypeError(`the address ${quoted} is a URL, and gRPC takes none: ${WANT}; 8000 is the REST port, gRPC is ${String(DEFAULT_PORT)}`);
  }
  if (/^unix(-abstract)?:/.test(text)) {
    throw new TypeError(`the address ${quoted} is a socket file, which this client cannot dial: ${WANT}`);
  }
  if (text.includes("/")) {
    throw new TypeError(`the address ${quoted} is a URL: ${WANT}`);
  }
  if (text === "" || /\s/.test(text)) {
    throw new TypeError(`the address ${quoted} is empty or holds a space: ${WANT}`);
  }
  if (!text.startsWith("[") && text.split(":").length > 2) {
    text = `[${text}]`; // an IPv6 address
  }
  const parts = /^(\[[0-9A-Fa-f:.]+(?:%[^\]]+)?\]|[^:[\]@?#\\%]*)(?::(.*))?$/.exec(text);
  if (parts === null) {
    throw new TypeError(`the address ${quoted} is malformed: ${WANT}`);
  }
  const [, host, port = String(DEFAULT_PORT)] = parts;
  if (host === undefined || host === "") {
    throw new TypeError(`the address ${quoted} names no host: ${WANT}`);
  }
  if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535) {
    throw new TypeError(`the port ${JSON.stringify(port.slice(0, 20))} in the address ${quoted} is no number from 1 to 65535: ${WANT}`);
  }
  const checked = `${host}:${port}`;
  if (!URL.canParse(`http://${checked}`)) {
    throw new TypeError(`the address ${quoted} is malformed: ${WANT}`);
  }
  return checked;
}

/** Whether a checked address cannot leave this machine. */
export function isLoopback(address: string): boolean {
  const host = address.slice(0, address.lastIndexOf(":"));
  return host === "localhost" || host === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(host);
}

/** Refuses a token that no header can carry, and shows none of it. Throws a TypeError. */
export function checkToken(token: string): void {
  const at = Array.from(token).findIndex((character) => character < " " || character > "~");
  if (at >= 0) {
    throw new TypeError(
      `the token (token, TREADLE_TOKEN) has a character at index ${String(at)} that no token has: want it as 'treadle token create' printed it`,
    );
  }
}

/** How deep a value may be nested: well before the stack ends, here and at the worker. */
const MAX_DEPTH = 500;

/**
 * JSON text of a value, in UTF-8. `path` names the value in errors.
 *
 * JSON.stringify leaves out or changes what JSON cannot hold: undefined and functions vanish, NaN
 * becomes null, a Map `{}`. A function would run with other arguments than it was given, so this
 * throws a TypeError that names the place. What has a toJSON method, as a Date, is what that returns.
 */
export function toJson(value: unknown, path: string): Uint8Array {
  check(value, path, "", []);
  return new TextEncoder().encode(JSON.stringify(value));
}

function check(value: unknown, path: string, key: string, above: object[]): void {
  const refuse = (what: string): never => {
    throw new TypeError(`${path} is ${what}`);
  };
  switch (typeof value) {
    case "string":
    case "boolean":
      return;
    case "number":
      if (!Number.isFinite(value)) {
        refuse(`${String(value)}, which JSON cannot hold`);
      }
      return;
    case "undefined":
      return refuse("undefined, which JSON cannot hold: leave it out, or give null");
    case "bigint":
      return refuse("a BigInt, which JSON.stringify cannot write: give a number, or a string");
    case "function":
      return refuse("a function, which JSON cannot hold: a worker runs what was registered");
    case "symbol":
      return refuse("a symbol, which JSON cannot hold");
    case "object":
      if (value !== null) {
        checkObject(value, path, key, above, refuse);
      }
  }
}

function checkObject(value: object, path: string, key: string, above: object[], refuse: (what: string) => never): void {
  if ("toJSON" in value && typeof value.toJSON === "function" && !ArrayBuffer.isView(value)) {
    const plain = (value.toJSON as (key: string) => unknown).call(value, key);
    // As JSON.stringify does, which does not ask what came of it again.
    if (typeof plain === "object" && plain !== null) {
      checkMembers(plain, path, above, refuse);
    } else {
      check(plain, path, key, above);
    }
    return;
  }
  checkMembers(value, path, above, refuse);
}

function checkMembers(value: object, path: string, above: object[], refuse: (what: string) => never): void {
  if (above.includes(value)) {
    refuse("a part of itself: JSON cannot hold a cycle");
  }
  if (above.length >= MAX_DEPTH) {
    refuse(`nested more than ${String(MAX_DEPTH)} deep`);
  }
  const inner = [...above, value];
  if (Array.isArray(value)) {
    // Not forEach, which passes over holes.
    for (let i = 0; i < value.length; i++) {
      check(value[i], `${path}[${String(i)}]`, String(i), inner);
    }
    return;
  }
  const why = unwritable(value);
  if (why !== "") {
    refuse(why);
  }
  for (const [name, member] of Object.entries(value)) {
    check(member, /^[A-Za-z_$][\w$]*$/.test(name) ? `${path}.${name}` : `${path}[${JSON.stringify(name)}]`, name, inner);
  }
}

/** Why an object that JSON.stringify would write as {} or a list of bytes is refused; "" for others. */
function unwritable(value: object): string {
  if (value instanceof Promise) {
    return "a Promise: await it first";
  }
  if (value instanceof Map) {
    return "a Map, which JSON cannot hold: give Object.fromEntries(map), or [...map]";
  }
  if (value instanceof Set) {
    return "a Set, which JSON cannot hold: give [...set]";
  }
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer || value instanceof SharedArrayBuffer) {
    return "binary data, which JSON cannot hold: give base64 text, or an array of numbers";
  }
  if (value instanceof RegExp || value instanceof Error || value instanceof WeakMap || value instanceof WeakSet) {
    return `a ${value.constructor.name}, which JSON cannot hold`;
  }
  return "";
}

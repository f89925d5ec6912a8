import assert from "node:assert/strict";
import { test } from "node:test";
import { createClient } from "../src/index.js";
import { checkAddress, isLoopback } from "../src/address.js";

test("an address gets the port of gRPC where it names none", () => {
  for (const [address, want] of [
    ["localhost", "localhost:50051"],
    ["127.0.0.1:1", "127.0.0.1:1"],
    ["[::1]", "[::1]:50051"],
    ["::1", "[::1]:50051"],
    ["[::1]:7", "[::1]:7"],
    ["a.b-c_d", "a.b-c_d:50051"],
    ["h:65535", "h:65535"],
    ["dns:///h:5", "h:5"],
  ] as const) {
    assert.equal(checkAddress(address), want);
  }
});

test("an address that can never be right is refused at once, in words", () => {
  for (const [address, word] of [
    ["http://127.0.0.1:8000", /8000 is the REST port/],
    ["https://x", /URL/],
    ["grpc://x:1", /URL/],
    ["x/y", /URL/],
    ["unix:/run/x", /socket file/],
    ["", /empty/],
    ["a b:1", /space/],
    [":50051", /no host/],
    ["h:", /port ""/],
    ["h:0", /port "0"/],
    ["h:65536", /port "65536"/],
    ["h:x", /port "x"/],
    ["[::1", /malformed/],
    ["[::1]7", /malformed/],
    ["a:b:c", /malformed/],
    ["a@b", /malformed/],
    ["h?x", /malformed/],
  ] as const) {
    assert.throws(
      () => createClient(address),
      (error: unknown) => error instanceof TypeError && word.test(error.message) && error.message.includes("want HOST:PORT"),
      address,
    );
  }
  assert.throws(() => createClient({ token: "x" } as unknown as string), /options are the second argument/);
});

test("which addresses cannot leave this machine", () => {
  for (const address of ["localhost:1", "127.0.0.1:1", "127.8.8.8:1", "[::1]:1"]) assert.ok(isLoopback(address), address);
  for (const address of ["10.0.0.1:1", "localhost.example.org:1", "[::2]:1", "127.0.0.1.example.org:1"]) assert.ok(!isLoopback(address), address);
});

test("options that can never be right are refused at once, in words", () => {
  for (const [options, word] of [
    [{ tokn: "x" }, /options\.tokn is unknown: want token, ca/],
    [{ retryMs: -1 }, /options\.retryMs is -1/],
    [{ retryMs: "5s" }, /options\.retryMs is "5s"/],
    [{ attemptMs: 0 }, /options\.attemptMs is 0/],
    [{ token: "a\nb" }, /character at index 1/],
    [{ cert: "x" }, /options\.cert is there without the other one/],
    [{ cert: "x", key: "y" }, /without TLS/],
  ] as const) {
    assert.throws(
      () => createClient("localhost", options as object),
      (error: unknown) => error instanceof TypeError && word.test(error.message),
    );
  }
});

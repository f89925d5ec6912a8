// Registers a Python function, calls it, maps it over many values, and collects tasks as they finish.
//
// To run it, start a fabric in one terminal:
//
//     make run
//
// build the client once, and run the program in another terminal:
//
//     (cd clients/typescript && npm ci && npm run build)
//     cd examples/node
//     npm install --no-package-lock
//     node first.js

import { createClient } from "@treadle/client";

const client = createClient(); // the address is TREADLE_ADDRESS, else 127.0.0.1:50051
try {
  const square = await client.register({
    name: "square",
    source: "def square(x):\n    return x * x\n",
  });
  console.log("call", await client.call(square, [12]));

  let sum = 0;
  for await (const value of client.map(square, [1, 2, 3, 4])) sum += value;
  console.log("sum", sum);

  const tasks = await Promise.all([5, 6].map((x) => client.submit(square, [x])));
  const values = [];
  for await (const result of client.wait(tasks)) values.push(result.value());
  console.log("collected", values.sort((a, b) => a - b).join(" "));
} finally {
  client.close();
}

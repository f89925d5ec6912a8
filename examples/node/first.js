// Registers a Python function, calls it, and collects a batch of calls as they finish.
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

import { createClient, encodeJson, resultOf } from "@treadle/client";

const client = createClient(); // the address is TREADLE_ADDRESS, else 127.0.0.1:50051
try {
  const square = await client.registerFunction({
    name: "square",
    source: "def square(x):\n    return x * x\n",
  });
  const answer = await client.call({ function: square.functionId, input: { args: encodeJson([12]) } });
  console.log("call", resultOf(answer));

  const { items } = await client.executeBatch({
    requests: [1, 2, 3, 4].map((x) => ({ function: square.functionId, args: encodeJson([x]) })),
  });
  let sum = 0;
  for await (const { results } of client.awaitResults({ taskIds: items.map((item) => item.taskId) })) {
    for (const result of results) sum += resultOf(result);
  }
  console.log("sum", sum);
} finally {
  client.close();
}

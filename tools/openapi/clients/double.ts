// Calls double by a client that openapi-typescript made.
import createClient from "openapi-fetch";
import type { paths } from "./treadle.js";

const client = createClient<paths>({ baseUrl: process.argv[2]! });
const { data, error } = await client.POST("/v1/functions/{function}:call", {
  params: { path: { function: "double" } },
  body: { args: [21] },
});
if (!data) throw new Error(JSON.stringify(error));
console.log(data.status, data.result);
const wrong = await client.POST("/v1/functions/{function}:call", { params: { path: { function: "nobody" } }, body: { args: [21] } });
console.log(wrong.error?.error.reason);

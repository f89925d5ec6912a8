// Package treadle is the Go client of Treadle: register a function once, execute
// it by id any number of times, watch its tasks and fetch their results.
//
//	client, err := treadle.Dial("")
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	fn, err := client.RegisterSource(ctx, "double", "def double(x):\n    return 2 * x\n")
//	if err != nil {
//		return err
//	}
//	answer, err := treadle.Call[int](ctx, client, fn.ID, 21) // 42
//
// # Values
//
// Arguments and results of this client are JSON, through encoding/json. A result
// that JSON cannot hold is still a success: it comes as a Python pickle with a short
// text, see [Result]. The package never unpickles anything, as unpickling runs code.
// A client receives messages of any size that a server can be set to send, up to two
// times 900 MiB: it asked for them, and the limit is the server's (--max-payload).
//
// # Retries
//
// Every call that records something carries a request id (a UUID version 7, made
// by the client when the caller gives none), so that the client may repeat it:
// while a server cannot be reached, calls are retried with backoff under the same
// request id for 30 seconds ([WithRetry]), and what was recorded by a call whose
// answer was lost is found, not recorded twice.
//
// # Throughput
//
// A call of its own costs many times what a task inside a batch costs. Use
// [Client.ExecuteBatch] and [Client.Await] where many tasks are at hand. Where many
// goroutines execute one task each, the client does the same by itself: what has
// queued up while earlier requests are on their way travels in one. No timer is
// involved: a lone caller never waits for company.
//
// # Concurrency
//
// A [Client] may be used by any number of goroutines. Its values (Task, Result and
// so on) are plain data that belong to who received them.
package treadle

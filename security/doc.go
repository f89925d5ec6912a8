// Package security is a hostile peer of our own, and tests that let it loose on real
// treadle processes.
//
// Every test starts the binary as an operator would, with tokens, and attacks it over
// loopback for a few seconds: with right and without it, in bytes that no client library
// would send. An honest client and an honest worker run beside each attack in processes of
// their own. A test passes when the attack got nothing (its own case says what) and when
//
//   - no honest call failed, and their 99th percentile stayed near what it is without,
//   - the memory of the attacked process stayed below its bound, and came back,
//   - its log did not grow with the attack,
//   - a call succeeds at once afterwards, without a restart of anything.
//
// The bounds are in bounds_test.go, and in docs/security.md for operators. `make
// test-security` runs the package; `make test-long` runs it with more streams, more bytes
// and longer floods.
package security

// Package task is Treadle's domain: functions, tasks, attempts, outcomes, the
// states of a task and the table of its legal moves.
//
// The package is pure. It imports only the standard library, reads no clock,
// draws no random number and performs no I/O: time, identifiers and jitter are
// arguments. Every store applies a move through the methods of [Task], so what a
// move may do is written once, here.
package task

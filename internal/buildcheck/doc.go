// Package buildcheck holds no code, only tests: they check the house itself, such as
// which package may import which, how long a file may grow, and that what is committed
// speaks of the project alone.
package buildcheck

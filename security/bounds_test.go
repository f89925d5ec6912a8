//go:build linux

package security

import "time"

// What an attack may cost, for a process with default limits. docs/security.md promises
// these numbers to operators ("Memory under attack"); keep both equal.
const (
	// peakMiB bounds the resident memory of a server, a dispatcher or both in one, at any
	// moment of any attack.
	peakMiB = 1024
	// restMiB bounds it after an attack. It is not less, as what is garbage by then goes when
	// the collector next runs: within two minutes in a process that has little to do.
	restMiB = peakMiB
	// restWithin is how long what an attack left at work may take to end.
	restWithin = 20 * time.Second

	// An honest call under attack may take slowFactor times what it takes without, and
	// slowFloor more than that at any rate: the attacker takes his share of the same two cores,
	// and a window of 2 s has a hundred calls, so that their 99th percentile is the second worst.
	slowFactor = 3
	slowFloor  = 500 * time.Millisecond
	// rightfulWork is what honest calls may take while a client has the server do a lot of what
	// he may have it do: sixty requests of 60 MiB a second, for example.
	rightfulWork = 5 * time.Second
	// shortAttack is over before enough honest calls have begun to speak of a percentile.
	shortAttack = time.Second
	// honestTimeout fails a call of the honest client.
	honestTimeout = 10 * time.Second

	// logBytes bounds what one attack may add to the log of the process.
	logBytes = 256 << 10

	// goroutinesLeft bounds the goroutines that an attack leaves behind.
	goroutinesLeft = 200

	// drain is the --drain-timeout of all processes here; one that is told to stop ends
	// within stopSlack more, whatever goes on: 10 s for calls under way, 5 s for the rest.
	drain     = 2 * time.Second
	stopSlack = 15 * time.Second
)

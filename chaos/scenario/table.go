package scenario

import (
	"fmt"
	"slices"
	"time"
)

// Table lists every scenario, by row.
func Table() []Scenario {
	var list []Scenario
	for _, part := range [][]Scenario{killScenarios(), freezeScenarios(), storeScenarios(), diskScenarios(), zooScenarios(), raceScenarios(), soakScenarios()} {
		list = append(list, part...)
	}
	slices.SortStableFunc(list, func(a, b Scenario) int { return a.Row - b.Row })
	return list
}

// Find returns the scenario of that name.
func Find(name string) (*Scenario, error) {
	list := Table()
	for i := range list {
		if list[i].Name == name {
			return &list[i], nil
		}
	}
	return nil, fmt.Errorf("no scenario is called %q: chaos list names them", name)
}

// Short is one run of the short mix.
type Short struct {
	Name, Store, Mode string
	Dur, Lease        time.Duration
}

// Mix is the short mix that every change is tested with: each kind of process dies or
// falls silent once, on each kind of store, with a lease that is short where a run has to
// wait for it.
func Mix() []Short {
	const dur, short = 5 * time.Second, 4 * time.Second
	return []Short{
		{"worker-kill", "embedded", "mixed", dur, 0},
		{"worker-freeze", "redis", "push", dur, short},
		{"worker-blackhole", "embedded", "pull", dur, short},
		{"kill-after-report", "replicated", "mixed", dur, 0},
		{"lost-replies", "replicated", "pull", dur, 0},
		{"sentinel-failover", "sentinel", "mixed", dur, 0},
		{"anything", "redis", "mixed", dur, 0},
	}
}

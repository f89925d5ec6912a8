package scenario

import (
	"fmt"
	"slices"
	"time"
)

// Table lists every scenario, by row.
func Table() []Scenario {
	var list []Scenario
	for _, part := range [][]Scenario{killScenarios(), freezeScenarios(), storeScenarios(), diskScenarios(), zooScenarios(), raceScenarios()} {
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
	Dur               time.Duration
}

// Mix is the short mix that every change is tested with.
func Mix() []Short {
	return []Short{{"worker-kill", "embedded", "mixed", 5 * time.Second}}
}

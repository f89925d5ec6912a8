package check

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/treadle-dev/treadle/chaos/history"
)

// porcupineLimit bounds the search; tasks are small, so it is never near.
const porcupineLimit = 30 * time.Second

// States of the model. A finished task is its status, then what is known of its result or
// failure.
const (
	absent = "absent"
	live   = "live"
)

type input struct{ op, key string }

type output struct {
	status, detail string
	// unknown: nobody was told. missing: there is no such task.
	unknown, missing bool
}

// model is one task as clients see it. That workers finish it at any moment needs no
// operation of its own: a live task may be seen finished, and once it was seen so it
// never is anything else.
func model(expires bool) porcupine.Model {
	m := porcupine.NondeterministicModel{
		Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[string][]porcupine.Operation{}
			var keys []string
			for _, op := range ops {
				key := op.Input.(input).key
				if byKey[key] == nil {
					keys = append(keys, key)
				}
				byKey[key] = append(byKey[key], op)
			}
			slices.Sort(keys)
			var parts [][]porcupine.Operation
			for _, key := range keys {
				parts = append(parts, byKey[key])
			}
			return parts
		},
		Init: func() []any { return []any{absent} },
		Step: func(state, in, out any) []any {
			s, _ := state.(string)
			i, _ := in.(input)
			o, _ := out.(output)
			if o.missing {
				if s == absent || expires && s != live {
					return []any{s}
				}
				return nil
			}
			return step(s, i.op, o)
		},
		Equal: func(a, b any) bool { return a == b },
		DescribeOperation: func(in, out any) string {
			return fmt.Sprintf("%+v -> %+v", in, out)
		},
	}
	return m.ToModel()
}

func step(s, op string, o output) []any {
	switch {
	case op == history.Submit && o.unknown:
		if s == absent {
			return []any{absent, live}
		}
		return []any{s}
	case op == history.Submit:
		if s == absent {
			return []any{live}
		}
		return []any{s}
	case op == history.Cancel && o.unknown:
		if s == live {
			return []any{live, cancelled + ":"}
		}
		return []any{s}
	case o.unknown:
		return []any{s}
	case s == absent:
		return nil
	case op == history.Cancel && !terminal(o.status):
		return nil // a cancelled task is finished, one way or the other
	case !terminal(o.status):
		if s == live {
			return []any{live}
		}
		return nil
	case s == live:
		return []any{o.status + ":" + o.detail}
	}
	status, detail, _ := strings.Cut(s, ":")
	switch {
	case status != o.status, detail != "" && o.detail != "" && detail != o.detail:
		return nil
	case detail == "":
		return []any{o.status + ":" + o.detail}
	default:
		return []any{s}
	}
}

// linearizable checks with Porcupine that every task looks to its clients like one that
// changes in one place: I2, I12, I13, I15.
func linearizable(e *Evidence, f *Findings) {
	var ops []porcupine.Operation
	processes := map[string]int{}
	add := func(process string, call, ret int64, in input, out output) {
		if processes[process] == 0 {
			processes[process] = len(processes) + 1
		}
		ops = append(ops, porcupine.Operation{ClientId: processes[process], Input: in, Call: call, Output: out, Return: ret})
	}
	var last int64
	for i := range e.Operations {
		op := &e.Operations[i]
		last = max(last, op.Invoke.At, op.Return.At)
		in := input{op.Invoke.Op, op.Invoke.Key}
		writes := in.op == history.Submit || in.op == history.Cancel
		switch {
		case op.Return.Class == "NOT_FOUND":
			add(op.Invoke.Process, op.Invoke.At, op.Return.At, in, output{missing: true})
		case op.Unknown() && writes:
			add(op.Invoke.Process, op.Invoke.At, math.MaxInt64, in, output{unknown: true})
		case op.Return.Type == history.OK:
			detail := op.Return.Run
			if op.Return.Status != completed {
				detail = op.Return.Class
			}
			add(op.Invoke.Process, op.Invoke.At, op.Return.At, in, output{status: op.Return.Status, detail: detail})
		}
	}
	// What is there at the end is one more look at each task that was confirmed.
	keys := map[string]string{}
	for i := range e.Operations {
		if op := &e.Operations[i]; op.Invoke.Op == history.Submit && op.Return.Type == history.OK {
			keys[op.Return.Task] = op.Invoke.Key
		}
	}
	for _, r := range e.Final {
		if key := keys[r.ID]; key != "" {
			detail := r.Run
			if r.Status != completed {
				detail = r.Class
			}
			add("harness", last+1, last+2, input{history.Result, key}, output{status: r.Status, detail: detail})
		}
	}
	f.Checked = len(ops)
	m := model(e.Expires)
	switch porcupine.CheckOperationsTimeout(m, ops, porcupineLimit) {
	case porcupine.Ok:
	case porcupine.Unknown:
		f.failf("I15: Porcupine came to no answer within %s", porcupineLimit)
	case porcupine.Illegal:
		for _, part := range m.Partition(ops) {
			if porcupine.CheckOperationsTimeout(m, part, porcupineLimit) == porcupine.Illegal {
				slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
				var b strings.Builder
				for _, op := range part {
					fmt.Fprintf(&b, "\n    %d..%d %s", op.Call, op.Return, m.DescribeOperation(op.Input, op.Output))
				}
				f.failf("I2, I13, I15: what clients saw of one task cannot have happened:%s", b.String())
			}
		}
	}
}

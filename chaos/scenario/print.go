package scenario

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Print writes what came of a run: one line, and for a failure why, where it is kept and
// the line that makes it again.
func (r *Report) Print(w io.Writer) {
	verdict := "ok"
	if !r.OK() {
		verdict = "FAILED"
	}
	fmt.Fprintf(w, "%-6s row %-2d %-26s %-10s seed %d: %d acknowledged, %d lost, %d duplicated, %d extra runs (%d of struck workers, %d more allowed), %d stale refused (%d while another attempt ran), %d failed, %d cancelled, %d faults%s, %.0f s\n",
		verdict, r.Row, r.Name, r.Store, r.Seed, r.Acknowledged, r.Lost, r.Duplicated, r.Extra, r.Struck, r.Allowed, r.Stale, r.Overlaps, r.Findings.Failed, r.Cancelled, r.Faults, r.recoveryText(), r.Took)
	for _, n := range r.Notes {
		fmt.Fprintf(w, "       %s\n", n)
	}
	if r.OK() {
		return
	}
	for _, f := range r.Failures {
		fmt.Fprintf(w, "       - %s\n", f)
	}
	fmt.Fprintf(w, "       again: %s\n       kept in %s\n", r.Command, r.Dir)
}

func (r *Report) recoveryText() string {
	if r.Bound == 0 && r.Recovery == 0 {
		return ""
	}
	return fmt.Sprintf(", recovery %.2f s (bound %.0f s)", r.Recovery, r.Bound)
}

// PrintTable writes the fault table: one line for each scenario and store.
func PrintTable(w io.Writer, reports []*Report) {
	type key struct{ name, store string }
	type sum struct {
		first                 *Report
		runs, lost, dup, fail int
		recovery              float64
	}
	sums := map[key]*sum{}
	var order []key
	for _, r := range reports {
		k := key{r.Name, r.Store}
		s := sums[k]
		if s == nil {
			s = &sum{first: r}
			sums[k] = s
			order = append(order, k)
		}
		s.runs++
		s.lost += r.Lost
		s.dup += r.Duplicated
		s.recovery = max(s.recovery, r.Recovery)
		if !r.OK() {
			s.fail++
		}
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join([]string{"row", "fault", "store", "runs", "failed", "lost", "dup results", "recovery", "bound"}, "\t"))
	for _, k := range order {
		s := sums[k]
		recovery, bound := "-", "-"
		if s.first.Bound > 0 {
			recovery, bound = fmt.Sprintf("%.2f s", s.recovery), fmt.Sprintf("%.0f s", s.first.Bound)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", s.first.Row, s.first.Fault, k.store, s.runs, s.fail, s.lost, s.dup, recovery, bound)
	}
	_ = t.Flush() // to a terminal or a pipe
}

//go:build chaos

package failpoint

import "testing"

func TestParse(t *testing.T) {
	got, err := parse("after-claim=kill@3,worker-receive=hang@10")
	if err != nil {
		t.Fatal(err)
	}
	if a := got[AfterClaim]; len(got) != 2 || a == nil || a.action != "kill" || a.at != 3 {
		t.Errorf("parsed %v", got)
	}
	for _, text := range []string{"after-claim", "after-claim=kill", "after-claim=kill@0", "nowhere=kill@1", "after-claim=dance@1"} {
		if _, err := parse(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

// TestOnce checks that a point acts at its count alone.
func TestOnce(t *testing.T) {
	a := &armed{action: "hang", at: 2}
	points = map[Point]*armed{AfterClaim: a}
	defer func() { points = map[Point]*armed{} }()
	Hit(AfterClaim)
	Seen(AfterClaim, 0)
	Hit(AfterSend)
	if n := a.count.Load(); n != 1 {
		t.Errorf("counted %d hits, want 1", n)
	}
}

package worker

import (
	"testing"
	"time"
)

// Pauses after refusals grow to 30 s, those after links that fail to a second; the log tells
// of the first and then once a minute; progress begins anew.
func TestPauses(t *testing.T) {
	cfg := Config{ReconnectFirst: 20 * time.Millisecond, ReconnectLast: time.Second, RefusedLast: refusedLast}
	p := newPauses(cfg)
	now := time.Now()
	said, longest := 0, time.Duration(0)
	for range 40 {
		wait, say := p.next(sessionEnd{}, true, now)
		if say {
			said++
		}
		longest = max(longest, wait)
		now = now.Add(wait)
	}
	if longest < 15*time.Second || longest > 45*time.Second {
		t.Errorf("the longest pause is %s, want about 30 s", longest)
	}
	if minutes := int(now.Sub(p.said)/sayEvery) + said; said < 2 || minutes > 40 {
		t.Errorf("the log told %d times", said)
	}
	if _, say := p.next(sessionEnd{welcomed: true, progress: true}, false, now); !say {
		t.Error("a failure after progress is not told")
	}
	if wait, _ := p.next(sessionEnd{}, true, now); wait > 40*time.Millisecond {
		t.Errorf("the first pause after progress is %s", wait)
	}
	p = newPauses(cfg)
	for range 40 {
		if wait, _ := p.next(sessionEnd{}, false, now); wait > 1500*time.Millisecond {
			t.Fatalf("a link that fails is dialled again after %s", wait)
		}
	}
}

// TestPausesOfCutSessions: a line that breaks right after the welcome is dialled anew without
// growing pauses, but not for ever.
func TestPausesOfCutSessions(t *testing.T) {
	cfg := Config{ReconnectFirst: 20 * time.Millisecond, ReconnectLast: time.Second, RefusedLast: refusedLast}
	p, now := newPauses(cfg), time.Now()
	for i := range hastyCuts {
		if wait, _ := p.next(sessionEnd{welcomed: true}, false, now); wait > 2*cfg.ReconnectFirst {
			t.Fatalf("cut %d: a pause of %s", i+1, wait)
		}
	}
	var wait time.Duration
	for range 20 {
		wait, _ = p.next(sessionEnd{welcomed: true}, false, now)
	}
	if wait < cfg.ReconnectLast/2 {
		t.Errorf("after %d cuts a pause of %s: it does not grow", hastyCuts+20, wait)
	}
	if wait, _ = p.next(sessionEnd{welcomed: true, progress: true}, false, now); wait > 2*cfg.ReconnectFirst {
		t.Errorf("after progress a pause of %s", wait)
	}
}

// TestPausesOfDeniedWorkers: a worker that is not admitted says so at once, comes back ever more
// seldom, and is as quick as ever once it is let in.
func TestPausesOfDeniedWorkers(t *testing.T) {
	cfg := Config{ReconnectFirst: 20 * time.Millisecond, ReconnectLast: time.Second, RefusedLast: refusedLast}
	p, now := newPauses(cfg), time.Now()
	p.next(sessionEnd{}, false, now)
	if wait, say := p.next(sessionEnd{welcomed: true, progress: true, denied: true}, false, now); !say || wait > 40*time.Millisecond {
		t.Errorf("the first refusal: told %v, a pause of %s", say, wait)
	}
	var wait time.Duration
	for range 20 {
		var say bool
		if wait, say = p.next(sessionEnd{denied: true}, false, now); say {
			t.Error("the log repeats itself within a minute")
		}
	}
	if wait < refusedLast/2 {
		t.Errorf("after 20 refusals a pause of %s, want about %s", wait, refusedLast)
	}
	if wait, say := p.next(sessionEnd{}, false, now); !say || wait > 2*time.Second {
		t.Errorf("a link that fails after refusals: told %v, a pause of %s", say, wait)
	}
}

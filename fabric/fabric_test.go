package fabric

import (
	"log/slog"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/pebblestore"
)

func newStore(t testing.TB) store.Store {
	t.Helper()
	st, err := pebblestore.Open(t.Context(), pebblestore.Options{Durability: pebblestore.Memory, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	return st
}

// newFabric makes a fabric in memory that knows a function f and listens to the bell.
func newFabric(t testing.TB, change ...func(*Config)) *Fabric {
	t.Helper()
	cfg := Config{Store: newStore(t)}
	for _, do := range change {
		do(&cfg)
	}
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Listen())
	if _, err := f.Register(t.Context(), Caller{}, Registration{Name: "f", Source: "def f(*a): return a"}); err != nil {
		t.Fatal(err)
	}
	return f
}

// eventually returns when ok says yes, and fails the test when it does not within 20 s.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

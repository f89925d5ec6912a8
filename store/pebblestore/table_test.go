package pebblestore

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDamagedTableEndsTheStore: what finds a damaged table says which file it is and what
// helps, and does not end the process on its own.
func TestDamagedTableEndsTheStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := newFixture(t, func(o *Options) { o.Dir = dir })
	ids := inBatches(3, 100)(t, f)
	if err := f.s.db.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.s.Close(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal("no table was written", err)
	}
	for _, table := range tables {
		b, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/3] ^= 4
		if err = os.WriteFile(table, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(context.Background(), f.opts)
	if err == nil {
		for _, id := range ids {
			if _, err = s.Task(context.Background(), id); err != nil {
				break
			}
		}
		select {
		case <-s.Failed():
			err = s.Err()
		case <-time.After(30 * time.Second):
			t.Fatalf("the store goes on; a read says %v", err)
		}
	}
	if text := err.Error(); !strings.Contains(text, ".sst") || !strings.Contains(text, "restore a backup") || strings.Contains(text, "\n") {
		t.Fatalf("the error is %q", text)
	}
	if s != nil {
		_ = s.Close()
	}
}

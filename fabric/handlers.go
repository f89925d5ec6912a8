package fabric

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// RegisterHandler records a Go handler as a function of its name, once for ever: workers
// that come and go must not make new ids. It belongs to nobody, and its queue is
// [task.DefaultQueue]. An error of [task.CodeInvalid] is about the name.
func (f *Fabric) RegisterHandler(ctx context.Context, name string) error {
	if err := checkHandler(name); err != nil {
		return err
	}
	fn := task.Function{
		ID: f.cfg.NewID(), Name: name, Queue: task.DefaultQueue, Runtime: task.GoRuntime(name),
		Form: task.FormNone, Hash: sha256.Sum256(nil), CreatedAt: f.cfg.Now(),
	}
	digest := sha256.Sum256([]byte(fn.Runtime))
	key := store.Key{ID: store.InternalKey("handler", name), Digest: digest}
	// Stores of earlier builds know handlers by a key that clients could use too, so that one
	// is looked at, and no longer written.
	looks := []string{key.ID}
	if old := "handler/" + name; len(old) <= store.MaxKey {
		looks = append(looks, old)
	}
	for _, id := range looks {
		_, err := f.cfg.Store.PutFunction(ctx, fn, nil, store.Key{ID: id, Digest: digest, Refused: errNotRegistered})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errNotRegistered), id != key.ID && task.CodeOf(err) == task.CodeConflict:
		default:
			return fmt.Errorf("handler %q: %w", name, err)
		}
	}
	if _, err := f.cfg.Store.PutFunction(ctx, fn, nil, key); err != nil {
		return fmt.Errorf("handler %q: %w", name, err)
	}
	return nil
}

// checkHandler holds a handler's name to what worker.Handle takes: by another one no task could
// be submitted.
func checkHandler(name string) error {
	if n := utf8.RuneCountInString(name); n < 1 || n > task.MaxNameLength {
		return invalid("handlers", "handler %.64q: its name has %d characters, want 1 to %d", name, n, task.MaxNameLength)
	}
	if !utf8.ValidString(name) {
		return invalid("handlers", "handler %.64q: its name is not UTF-8", name)
	}
	return nil
}

// errNotRegistered is the store's answer to a look at a key that nobody has used.
var errNotRegistered = errors.New("not registered")

package pebblestore

import (
	"context"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// PutFunction implements [store.Functions].
func (s *Store) PutFunction(ctx context.Context, f task.Function, payload []byte, key store.Key) (task.Function, error) {
	const op = "put function"
	if err := s.enter(op); err != nil {
		return task.Function{}, err
	}
	defer s.leave()
	if err := store.CheckFunction(&f, payload, key); err != nil {
		return task.Function{}, err
	}
	written, err := s.space.admit(s, op, 512+len(payload))
	if err != nil {
		return task.Function{}, err
	}
	defer written()
	f.CreatedAt = plain(f.CreatedAt)
	out, refused := f, error(nil)
	err = s.commit(ctx, op, 512+len(payload), func(x *txn) {
		out, refused = x.putFunction(&f, payload, key)
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		return task.Function{}, err
	}
	return out, nil
}

func (x *txn) putFunction(f *task.Function, payload []byte, key store.Key) (task.Function, error) {
	s := x.s
	if key.ID != "" {
		used, err := x.funcKey(key.ID)
		if err != nil {
			return *f, s.fail(err)
		}
		if used != nil {
			// Builds before functions could be deleted did not note their keys.
			switch have, err := x.knownFunction(used.id); {
			case task.CodeOf(err) == task.CodeNotFound:
			case err != nil:
				return *f, err
			case used.digest != key.Digest:
				return *f, task.Errorf(task.CodeConflict, "put function",
					"the request id %q was used for another request (function %s)", key.ID, used.id)
			default:
				return have.Function, nil
			}
		}
	}
	row := functionRow{Function: *f, key: key.ID}
	now := s.now
	if f.CreatedAt.After(now) {
		now = f.CreatedAt
	}
	if f.Transient {
		if first, ok := s.ix.functions.twins[store.Twin(f)]; ok {
			x.use(first, now)
			have, err := x.knownFunction(first)
			return have.Function, err
		}
		row.used = now
	}
	if key.Refused != nil {
		return *f, key.Refused
	}
	if have, err := x.knownFunction(f.ID); err == nil {
		return have.Function, task.Errorf(task.CodeConflict, "put function", "the function id %s is in use", f.ID)
	}
	x.functions = append(x.functions, row)
	s.ix.owners.add(f.CreatedBy, f.Queue, owned{functions: 1, bytes: int64(f.Size)})
	s.ix.functions.add(&row)
	x.set(idKey(spaceFunction, f.ID), encodeFunction(&row))
	x.set(textKey(spaceName, f.Name), f.ID[:])
	if len(payload) > 0 {
		x.putBlob(f.Hash, payload)
	}
	if key.ID != "" {
		row := keyRow{id: f.ID, digest: key.Digest}
		x.set(textKey(spaceFuncKey, key.ID), row.encode())
		if x.funcKeys == nil {
			x.funcKeys = make(map[string]keyRow)
		}
		x.funcKeys[key.ID] = row
	}
	return *f, nil
}

// putBlob stores a payload unless its bytes are there already.
func (x *txn) putBlob(hash [32]byte, payload []byte) {
	key := hashKey(hash)
	if _, ok := x.blobsGone[hash]; ok {
		// They are removed earlier in this batch.
		delete(x.blobsGone, hash)
		x.setValue(key, payload)
		return
	}
	v, closer, err := x.s.db.Get(key)
	if err == nil {
		// What is there was written whole, in one key or in parts.
		same := len(v) == len(payload) || len(v) == partLen(len(payload), 0)
		err = closer.Close()
		if same && err == nil {
			return
		}
	}
	if err != nil && !errors.Is(err, pebble.ErrNotFound) {
		x.s.fail(err)
		return
	}
	x.setValue(key, payload)
}

func (x *txn) funcKey(key string) (*keyRow, error) {
	if row, ok := x.funcKeys[key]; ok {
		return &row, nil
	}
	return x.s.readKeyRow(spaceFuncKey, key)
}

// knownFunction finds a function in this group or on disk.
func (x *txn) knownFunction(id task.ID) (functionRow, error) {
	for i := len(x.functions) - 1; i >= 0; i-- {
		if x.functions[i].ID == id {
			return x.functions[i], nil
		}
	}
	if x.s.ix.functions.gone.has(id) {
		return functionRow{}, task.Errorf(task.CodeNotFound, "get function", "the function %s was deleted", id)
	}
	return x.s.readFunction(id)
}

func (s *Store) readFunction(id task.ID) (functionRow, error) {
	const op = "get function"
	v, err := s.read(idKey(spaceFunction, id))
	if err != nil {
		return functionRow{}, task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	if v == nil {
		return functionRow{}, task.Errorf(task.CodeNotFound, op, "there is no function %s", id)
	}
	f, err := decodeFunction(id, v)
	if err != nil {
		return functionRow{}, task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	return f, nil
}

// readFunctions runs read when no registration is being committed, so that it sees
// only what is durable: Pebble shows a batch before it is synced. A registration
// that begins meanwhile makes it run again.
func readFunctions[T any](ctx context.Context, s *Store, op string, read func() (T, error)) (T, error) {
	var zero T
	if err := s.enter(op); err != nil {
		return zero, err
	}
	defer s.leave()
	for {
		s.mu.Lock()
		flight, version, broken := s.flight, s.registrations, s.broken.Load()
		s.mu.Unlock()
		if broken != nil {
			return zero, broken
		}
		if flight != nil && flight.changesFunctions() {
			if err := await(ctx, flight.done); err != nil {
				return zero, err
			}
			continue
		}
		v, err := read()
		s.mu.Lock()
		same := s.registrations == version
		s.mu.Unlock()
		if same {
			return v, err
		}
	}
}

// Function implements [store.Functions].
func (s *Store) Function(ctx context.Context, id task.ID) (task.Function, error) {
	return readFunctions(ctx, s, "get function", func() (task.Function, error) {
		row, err := s.readFunction(id)
		return row.Function, err
	})
}

// FunctionNamed implements [store.Functions].
func (s *Store) FunctionNamed(ctx context.Context, name string) (task.Function, error) {
	const op = "get function"
	return readFunctions(ctx, s, op, func() (task.Function, error) {
		v, err := s.read(textKey(spaceName, name))
		if err != nil {
			return task.Function{}, task.Errorf(task.CodeUnavailable, op, "%w", err)
		}
		if v == nil {
			return task.Function{}, task.Errorf(task.CodeNotFound, op, "there is no function named %q", name)
		}
		id, err := task.IDFromBytes(v)
		if err != nil {
			return task.Function{}, task.Errorf(task.CodeUnavailable, op, "the row of the name %q is damaged: %w", name, err)
		}
		row, err := s.readFunction(id)
		return row.Function, err
	})
}

// FunctionPayload implements [store.Functions].
func (s *Store) FunctionPayload(ctx context.Context, hash [32]byte) ([]byte, error) {
	const op = "get function payload"
	return readFunctions(ctx, s, op, func() ([]byte, error) {
		size, err := s.sizeOf(hashKey(hash))
		if err != nil {
			return nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
		}
		v, err := s.readValue(hashKey(hash), size)
		if err != nil {
			return nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
		}
		if v == nil {
			return nil, task.Errorf(task.CodeNotFound, op, "there are no bytes with the hash %x", hash)
		}
		return v, nil
	})
}

// ListFunctions implements [store.Functions].
func (s *Store) ListFunctions(ctx context.Context, before task.ID, limit int) ([]task.Function, error) {
	const op = "list functions"
	if limit < 1 {
		return nil, task.Errorf(task.CodeInvalid, op, "limit %d: want 1 or more", limit)
	}
	return readFunctions(ctx, s, op, func() ([]task.Function, error) {
		out, err := s.listFunctions(ctx, before, limit)
		if err != nil {
			return nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
		}
		return out, nil
	})
}

func (s *Store) listFunctions(ctx context.Context, before task.ID, limit int) (out []task.Function, err error) {
	lower, upper := bounds(spaceFunction)
	if !before.IsZero() {
		upper = idKey(spaceFunction, before)
	}
	it, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Error(), it.Close()) }()
	for ok := it.Last(); ok && len(out) < limit; ok = it.Prev() {
		id, isID := idOfKey(it.Key())
		if !isID {
			return nil, errors.New("a function key is damaged")
		}
		f, err := decodeFunction(id, it.Value())
		if err != nil {
			return nil, err
		}
		out = append(out, f.Function)
	}
	return out, nil
}

package redisstore

import (
	"context"
	"crypto/sha256"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Answers of function.lua.
const (
	functionRecorded = iota
	functionKnown
	functionConflict
	functionInUse
	functionIncomplete
	functionRefused
	functionTwin
)

// PutFunction implements [store.Functions].
func (s *Store) PutFunction(ctx context.Context, f task.Function, payload []byte, key store.Key) (task.Function, error) {
	const op = "put function"
	if err := s.enter(ctx, op); err != nil {
		return f, err
	}
	defer s.leave()
	if err := store.CheckFunction(&f, payload, key); err != nil {
		return f, err
	}
	blob := s.blobOf(f.Hash, len(payload))
	c := s.scriptCall(common, scriptFunction, f.CreatedAt,
		f.ID[:], encodeFunction(&f, key.ID), f.Name, key.ID, key.Digest[:], f.Hash[:], blob.chunks,
		f.CreatedBy, f.Size, f.Queue, onlyLook(key), twinOf(&f))
	// The bytes are often there already, so the first try goes without them.
	for send := false; ; send = true {
		var calls []*call
		if send {
			calls = s.blobWrites(blob, payload)
		}
		if err := s.change(ctx, op, append(calls, c)...); err != nil {
			return f, err
		}
		values, err := c.values()
		if err == nil && len(values) != 2 {
			err = errDamaged
		}
		if err != nil {
			return f, s.failure(op, err)
		}
		code, _ := values[0].(int64)
		text, _ := values[1].(string)
		switch code {
		case functionRecorded:
			return f, nil
		case functionKnown:
			return s.knownFunction(ctx, op, key)
		case functionConflict:
			return f, task.Errorf(task.CodeConflict, op, "the request id %q was used for another request", key.ID)
		case functionInUse:
			return f, task.Errorf(task.CodeConflict, op, "the function id %s is in use", f.ID)
		case functionTwin:
			first, err := task.IDFromBytes([]byte(text))
			if err != nil {
				return f, task.Errorf(task.CodeUnavailable, op, "%w", err)
			}
			return s.function(ctx, op, first)
		case functionRefused:
			return f, key.Refused
		case functionIncomplete:
			if send {
				return f, task.Errorf(task.CodeUnavailable, op, "the bytes of function %s did not arrive", f.ID)
			}
		default:
			return f, task.Errorf(task.CodeUnavailable, op, "unknown answer %d (%q)", code, text)
		}
	}
}

// onlyLook tells a script whether to answer repeats alone.
func onlyLook(key store.Key) string {
	if key.Refused != nil {
		return "1"
	}
	return ""
}

// blobOf names the chunks of a function's bytes.
func (s *Store) blobOf(hash [32]byte, size int) large {
	return large{prefix: keyBlob + string(hash[:]), chunks: (size + chunkSize - 1) / chunkSize}
}

// blobWrites store bytes that are not there; what another function has is left alone.
func (s *Store) blobWrites(l large, payload []byte) []*call {
	calls := l.writes(s, common, payload)
	for _, c := range calls {
		c.args = append(c.args, "NX")
	}
	return calls
}

// knownFunction finds the function that a request id was used for.
func (s *Store) knownFunction(ctx context.Context, op string, key store.Key) (task.Function, error) {
	c := &call{shard: common, args: []any{"HGET", s.any.named(keyFunctionRequests), key.ID}}
	if err := s.read(ctx, op, c); err != nil {
		return task.Function{}, err
	}
	row, _ := c.cmd.Val().(string)
	if len(row) < 16 {
		return task.Function{}, task.Errorf(task.CodeUnavailable, op, "the row of the request id %q is damaged", key.ID)
	}
	id, err := task.IDFromBytes([]byte(row[:16]))
	if err != nil {
		return task.Function{}, task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	return s.function(ctx, op, id)
}

// Function implements [store.Functions].
func (s *Store) Function(ctx context.Context, id task.ID) (task.Function, error) {
	const op = "get function"
	if err := s.enter(ctx, op); err != nil {
		return task.Function{}, err
	}
	defer s.leave()
	return s.function(ctx, op, id)
}

func (s *Store) function(ctx context.Context, op string, id task.ID) (task.Function, error) {
	all, err := s.functions(ctx, op, []task.ID{id})
	if err != nil {
		return task.Function{}, err
	}
	if len(all) == 0 {
		return task.Function{}, task.Errorf(task.CodeNotFound, op, "there is no function %s", id)
	}
	return all[0], nil
}

// functions reads the registrations of those ids that have one.
func (s *Store) functions(ctx context.Context, op string, ids []task.ID) (out []task.Function, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	c := &call{shard: common, args: []any{"HMGET", s.any.named(keyFunctions)}}
	for _, id := range ids {
		c.args = append(c.args, id[:])
	}
	if err := s.read(ctx, op, c); err != nil {
		return nil, err
	}
	list, _ := c.cmd.Val().([]any)
	for i, v := range list {
		text, ok := v.(string)
		if !ok {
			continue
		}
		f, _, err := decodeFunction(ids[i], text)
		if err != nil {
			return nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
		}
		out = append(out, f)
	}
	return out, nil
}

// FunctionNamed implements [store.Functions].
func (s *Store) FunctionNamed(ctx context.Context, name string) (task.Function, error) {
	const op = "get function"
	if err := s.enter(ctx, op); err != nil {
		return task.Function{}, err
	}
	defer s.leave()
	c := &call{shard: common, args: []any{"HGET", s.any.named(keyNames), name}}
	if err := s.read(ctx, op, c); err != nil {
		return task.Function{}, err
	}
	text, ok := c.cmd.Val().(string)
	if !ok {
		return task.Function{}, task.Errorf(task.CodeNotFound, op, "there is no function named %q", name)
	}
	id, err := task.IDFromBytes([]byte(text))
	if err != nil {
		return task.Function{}, task.Errorf(task.CodeUnavailable, op, "the row of the name %q is damaged: %w", name, err)
	}
	return s.function(ctx, op, id)
}

// FunctionPayload implements [store.Functions].
func (s *Store) FunctionPayload(ctx context.Context, hash [32]byte) ([]byte, error) {
	const op = "get function payload"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	blob := s.blobOf(hash, 0)
	var payload []byte
	for n := 0; ; n++ {
		c := &call{shard: common, args: []any{"GET", s.any.chunk(blob.prefix, n)}}
		if err := s.read(ctx, op, c); err != nil {
			return nil, err
		}
		part, ok := c.cmd.Val().(string)
		if payload = append(payload, part...); !ok || len(part) < chunkSize {
			break
		}
	}
	if payload == nil {
		return nil, task.Errorf(task.CodeNotFound, op, "there are no bytes with the hash %x", hash)
	}
	if sha256.Sum256(payload) != hash {
		return nil, task.Errorf(task.CodeUnavailable, op, "the bytes with the hash %x are damaged", hash)
	}
	return payload, nil
}

// ListFunctions implements [store.Functions].
func (s *Store) ListFunctions(ctx context.Context, before task.ID, limit int) ([]task.Function, error) {
	const op = "list functions"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	if limit < 1 {
		return nil, task.Errorf(task.CodeInvalid, op, "limit %d: want 1 or more", limit)
	}
	return s.functionPage(ctx, op, before, limit)
}

// functionPage reads registrations, newest first.
func (s *Store) functionPage(ctx context.Context, op string, before task.ID, limit int) ([]task.Function, error) {
	below := "+"
	if !before.IsZero() {
		below = "(" + string(before[:])
	}
	c := &call{shard: common, args: []any{"ZREVRANGEBYLEX", s.any.named(keyFunctionIDs), below, "-", "LIMIT", 0, limit}}
	if err := s.read(ctx, op, c); err != nil {
		return nil, err
	}
	var ids []task.ID
	for _, text := range textsOf(c.cmd.Val()) {
		id, err := task.IDFromBytes([]byte(text))
		if err != nil {
			return nil, task.Errorf(task.CodeUnavailable, op, "a member of %s is damaged: %w", keyFunctionIDs, err)
		}
		ids = append(ids, id)
	}
	return s.functions(ctx, op, ids)
}

package auth

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// add makes a token in a file and returns its id and secret.
func add(t *testing.T, path string, role Role, expires time.Time) (id, secret string) {
	t.Helper()
	rec, secret, err := New(role, "test", epoch, expires)
	if err != nil {
		t.Fatal(err)
	}
	if err := Add(path, rec); err != nil {
		t.Fatal(err)
	}
	return rec.ID, secret
}

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func open(t *testing.T, path string) (*File, *clock) {
	t.Helper()
	c := &clock{at: epoch}
	f, err := Open(path, slog.New(slog.DiscardHandler), c.now)
	if err != nil {
		t.Fatal(err)
	}
	return f, c
}

// refused fails the test unless the error is one of authentication that names want.
func refused(t *testing.T, err error, want string) {
	t.Helper()
	if task.CodeOf(err) != task.CodeUnauthenticated || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want unauthenticated: %s", err, want)
	}
}

func TestTokenLife(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.json")
	clientID, client := add(t, path, Client, time.Time{})
	workerID, worker := add(t, path, Worker, epoch.Add(time.Hour))
	f, clock := open(t, path)

	p, err := f.Verify(client)
	if err != nil || p.ID != clientID || p.Role != Client || !p.Expires.IsZero() {
		t.Errorf("%+v, %v", p, err)
	}
	w, err := f.Verify(worker)
	if err != nil || w.ID != workerID || w.Role != Worker || !w.Expires.Equal(epoch.Add(time.Hour)) {
		t.Errorf("%+v, %v", w, err)
	}
	for name, token := range map[string]string{
		"empty": "", "no prefix": client[len(Prefix):], "no secret": Prefix + clientID + "_", "short": client[:len(client)-1],
		"long": client + "a",
	} {
		_, err := f.Verify(token)
		refused(t, err, "malformed")
		if token != "" && err != nil && strings.Contains(err.Error(), token) {
			t.Errorf("%s: the error repeats the token: %v", name, err)
		}
	}
	// A secret of another token, one bit off, and an id that nobody has.
	_, workerKey, _ := split(worker)
	for _, token := range []string{Prefix + clientID + "_" + workerKey, flip(client), Prefix + "0000000000000000_" + workerKey} {
		_, err := f.Verify(token)
		refused(t, err, "not known here")
	}

	clock.pass(time.Hour - time.Nanosecond)
	if _, err := f.Verify(worker); err != nil {
		t.Errorf("just before the end: %v", err)
	}
	clock.pass(time.Nanosecond)
	_, err = f.Verify(worker)
	refused(t, err, "expired at 2026-01-02T04:04:05Z")
	refused(t, f.Check(w), "expired")
}

// flip changes the last letter of a token.
func flip(token string) string {
	last := byte('a')
	if token[len(token)-1] == last {
		last = 'b'
	}
	return token[:len(token)-1] + string(last)
}

// TestRotation replaces a token while the file is in use: both work for a while, then the
// old one is refused.
func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.json")
	oldID, old := add(t, path, Worker, time.Time{})
	f, clock := open(t, path)
	holder, err := f.Verify(old)
	if err != nil {
		t.Fatal(err)
	}
	_, next := add(t, path, Worker, time.Time{})
	if _, err := f.Verify(next); err == nil {
		t.Error("the file was looked at again at once; that would cost a system call for each call")
	}
	clock.pass(lookEvery)
	for _, token := range []string{old, next} {
		if _, err := f.Verify(token); err != nil {
			t.Errorf("while both are in the file: %v", err)
		}
	}
	if err := f.Check(holder); err != nil {
		t.Error(err)
	}
	if err := Remove(path, oldID); err != nil {
		t.Fatal(err)
	}
	if err := f.Reload(); err != nil {
		t.Fatal(err)
	}
	_, err = f.Verify(old)
	refused(t, err, "revoked")
	refused(t, f.Check(holder), "revoked")
	if _, err := f.Verify(next); err != nil {
		t.Error(err)
	}
	if err := Remove(path, oldID); err == nil || !strings.Contains(err.Error(), "no token "+oldID) {
		t.Errorf("removed twice: %v", err)
	}
}

// TestBrokenFileChangesNothing: whatever happens to the file, who was admitted stays so.
func TestBrokenFileChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.json")
	_, token := add(t, path, Client, time.Time{})
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, clock := open(t, path)
	for _, change := range []func() error{
		func() error { return os.WriteFile(path, good[:len(good)/2], 0o600) },
		func() error { return os.Remove(path) },
		func() error { return os.WriteFile(path, []byte(`{"version":1,"tokens":[]}`), 0o644) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		clock.pass(lookEvery)
		if _, err := f.Verify(token); err != nil {
			t.Errorf("a broken file: %v", err)
		}
		if err := f.Reload(); err == nil {
			t.Error("a broken file was read without an error")
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	clock.pass(lookEvery)
	_, err = f.Verify(token)
	refused(t, err, "revoked")
}

func TestFileMode(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes mean something else there")
	}
	path := filepath.Join(t.TempDir(), "tokens.json")
	add(t, path, Client, time.Time{})
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("made with mode %v, %v", info.Mode(), err)
	}
	for mode, ok := range map[fs.FileMode]bool{0o600: true, 0o400: true, 0o440: true, 0o640: true, 0o604: false, 0o644: false, 0o660: false, 0o601: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); (err == nil) != ok || !ok && !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %04o: %v, want accepted: %v", mode, err, ok)
		}
	}
}

func TestFileContents(t *testing.T) {
	rec, secret, err := New(Client, "ci", epoch, epoch.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tokens.json")
	if err := Add(path, rec); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := split(secret)
	if strings.Contains(string(data), key) || strings.Contains(string(data), secret) {
		t.Errorf("the file has the secret: %s", data)
	}
	for name, edit := range map[string][2]string{
		"another version": {`"version": 1`, `"version": 2`}, "a role that is none": {`"client"`, `"root"`},
		"an unknown field": {`"hash"`, `"hashes"`}, "a short hash": {rec.Hash, rec.Hash[:10]}, "a bad id": {rec.ID, "x"},
	} {
		text := strings.Replace(string(data), edit[0], edit[1], 1)
		if text == string(data) {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := parse([]byte(text)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if err := Add(path, rec); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the same token twice: %v", err)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, _, err := New(Client, strings.Repeat("ä", maxName+1), epoch, time.Time{}); err == nil {
		t.Error("a name without end was accepted")
	}
}

// TestManyWriters: programs that add tokens at once lose none.
func TestManyWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.json")
	var group sync.WaitGroup
	const writers = 8
	for range writers {
		group.Go(func() {
			rec, _, err := New(Client, "", epoch, time.Time{})
			if err == nil {
				err = Add(path, rec)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if records, err := Read(path); err != nil || len(records) != writers {
		t.Errorf("%d records, %v, want %d", len(records), err, writers)
	}
}

func TestBearer(t *testing.T) {
	for header, want := range map[string]string{"Bearer x": "x", "bearer  x ": "x", "": "", "x": "", "Basic eDp5": "", "Bearer ": ""} {
		token, err := Bearer(header)
		if token != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", header, token, err)
		}
		if err != nil {
			refused(t, err, "")
		}
	}
}

func TestRolesOfTheTable(t *testing.T) {
	for method, rule := range table {
		if !rule.Public && len(rule.Roles) == 0 {
			t.Errorf("%s admits nobody", method)
		}
		if rule.Public && len(rule.Roles) > 0 {
			t.Errorf("%s is public and has roles", method)
		}
		if rule.Cost == 0 {
			t.Errorf("%s has no cost: what does a call count against --rate-limit?", method)
		}
		if err := Authorize(method, Principal{ID: "x", Role: Admin}); err != nil {
			t.Errorf("an admin may do everything: %v", err)
		}
		if err := Authorize(method, Principal{ID: "x"}); (err == nil) != rule.Public {
			t.Errorf("%s without a role: %v", method, err)
		}
	}
	if err := Authorize("/treadle.v1.FabricService/Nothing", Principal{Role: Admin}); task.CodeOf(err) != task.CodeDenied {
		t.Errorf("a method without an entry: %v", err)
	}
	for role, ok := range map[Role]bool{Client: true, Admin: true, Worker: false, "": false} {
		if err := AuthorizeREST(Principal{Role: role}); (err == nil) != ok {
			t.Errorf("REST as %q: %v", role, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	rec, secret, err := New(Client, "", epoch, time.Time{})
	if err != nil {
		f.Fatal(err)
	}
	records := map[string]Record{rec.ID: rec}
	for _, seed := range []string{secret, "", Prefix, Prefix + rec.ID + "_", secret + "_", "tdl__"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := verify(records, token, epoch); (err == nil) != (token == secret) {
			t.Errorf("%q: %v", token, err)
		}
	})
}

func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"tokens":[{"id":"0011223344556677","role":"client","hash":"00"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, err := parse(data)
		if err != nil {
			return
		}
		for _, r := range records {
			if err := r.check(); err != nil {
				t.Errorf("accepted %+v: %v", r, err)
			}
		}
	})
}

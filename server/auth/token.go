package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/treadle-dev/treadle/task"
)

// Prefix starts every token, so that scanners for leaked secrets can know it.
const Prefix = "tdl_"

const (
	idBytes     = 8
	secretBytes = 32
	// maxName bounds the name of a token, in characters.
	maxName = 128
)

// Record is what is kept of a token. It is no secret: nobody can make the token of it.
type Record struct {
	// ID is in the token, in lists and in logs: 16 hexadecimal digits.
	ID   string `json:"id"`
	Role Role   `json:"role"`
	// Name tells people whose it is.
	Name string `json:"name,omitempty"`
	// Hash is SHA-256 over the id and the secret, in hexadecimal. A secret of 256 random
	// bits cannot be guessed, so a slow hash would gain nothing.
	Hash    string    `json:"hash"`
	Created time.Time `json:"created"`
	// Expires is when it is no longer accepted; nil means never.
	Expires *time.Time `json:"expires,omitempty"`
}

var secretEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// New makes a token that is accepted until expires (zero: for ever). secret is the whole
// token, to be shown once.
func New(role Role, name string, created, expires time.Time) (rec Record, secret string, err error) {
	if utf8.RuneCountInString(name) > maxName {
		return Record{}, "", fmt.Errorf("the name has %d characters: want at most %d", utf8.RuneCountInString(name), maxName)
	}
	var random [idBytes + secretBytes]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the program instead
	id := hex.EncodeToString(random[:idBytes])
	key := secretEncoding.EncodeToString(random[idBytes:])
	rec = Record{ID: id, Role: role, Name: name, Hash: hash(id, key), Created: created.UTC().Truncate(time.Second)}
	if !expires.IsZero() {
		t := expires.UTC().Truncate(time.Second)
		rec.Expires = &t
	}
	return rec, Prefix + id + "_" + key, nil
}

func hash(id, key string) string {
	sum := sha256.Sum256([]byte("treadle token 1\x00" + id + "\x00" + key))
	return hex.EncodeToString(sum[:])
}

// split takes a token apart.
func split(token string) (id, key string, ok bool) {
	rest, ok := strings.CutPrefix(token, Prefix)
	if !ok {
		return "", "", false
	}
	id, key, ok = strings.Cut(rest, "_")
	return id, key, ok && len(id) == 2*idBytes && len(key) == secretEncoding.EncodedLen(secretBytes)
}

// check says why a record cannot be one.
func (r Record) check() error {
	if b, err := hex.DecodeString(r.ID); err != nil || len(b) != idBytes {
		return fmt.Errorf("token id %q: want %d hexadecimal digits", task.ClipText(r.ID, 40), 2*idBytes)
	}
	if _, ok := ParseRole(string(r.Role)); !ok {
		return fmt.Errorf("token %s: role %q: want one of %v", r.ID, task.ClipText(string(r.Role), 40), Roles())
	}
	if b, err := hex.DecodeString(r.Hash); err != nil || len(b) != sha256.Size {
		return fmt.Errorf("token %s: its hash is not SHA-256 in hexadecimal", r.ID)
	}
	return nil
}

// principal is who holds the token of r.
func (r Record) principal() Principal {
	p := Principal{ID: r.ID, Role: r.Role}
	if r.Expires != nil {
		p.Expires = *r.Expires
	}
	return p
}

// errUnknown is the same for an unknown id and a wrong secret.
func errUnknown() error {
	return task.Errorf(task.CodeUnauthenticated, "", "the token is not accepted: it is not known here, or was revoked")
}

func errExpired(id string, at time.Time) error {
	return task.Errorf(task.CodeUnauthenticated, "", "the token %s expired at %s", id, at.UTC().Format(time.RFC3339))
}

// verify finds whose token it is. Errors are of [task.CodeUnauthenticated].
func verify(records map[string]Record, token string, now time.Time) (Principal, error) {
	id, key, ok := split(token)
	if !ok {
		return Principal{}, task.Errorf(task.CodeUnauthenticated, "", "the token is malformed: want tdl_ID_SECRET")
	}
	rec, known := records[id]
	if subtle.ConstantTimeCompare([]byte(hash(id, key)), []byte(rec.Hash)) != 1 || !known {
		return Principal{}, errUnknown()
	}
	p := rec.principal()
	if !p.Expires.IsZero() && !now.Before(p.Expires) {
		return Principal{}, errExpired(id, p.Expires)
	}
	return p, nil
}

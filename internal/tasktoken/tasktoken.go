// Package tasktoken makes and checks the tokens of running tasks: what an attempt shows to
// submit, read and cancel children of its task.
//
// A dispatcher's process has one random key. Each session gets a key that is made from it,
// so the worker makes the token of an attempt itself, when a function asks for one: tasks
// that submit nothing cost nothing, and nobody has to remember what was given out. A token
// says which claim it is for. That the claim still stands is the store's word, and is asked
// for with every call.
package tasktoken

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strings"
)

const (
	// Prefix is how every token of a task begins.
	Prefix = "tdt_"
	// KeySize is the length of a session's key, in bytes.
	KeySize = sha256.Size
	idSize  = 16
	// size is session, task, claim and the code over them.
	size = 3*idSize + sha256.Size
)

// Length is the length of every token, in bytes.
var Length = len(Prefix) + base64.RawURLEncoding.EncodedLen(size)

// Issuer checks the tokens of one process, and makes the keys that they are made with. Any
// number of goroutines may use it.
type Issuer struct{ key [KeySize]byte }

// New returns an issuer with a random key, which ends with the process.
func New() *Issuer {
	var i Issuer
	_, _ = rand.Read(i.key[:]) // it never fails: the runtime ends the process instead
	return &i
}

// SessionKey is the key with which the worker of a session makes tokens.
func (i *Issuer) SessionKey(session [16]byte) []byte { return code(i.key[:], session[:]) }

// Mint makes the token of a claim, with the key of the session that holds it.
func Mint(key []byte, session, task, claim [16]byte) string {
	b := make([]byte, 0, size)
	b = append(append(append(b, session[:]...), task[:]...), claim[:]...)
	b = append(b, code(key, b)...)
	return Prefix + base64.RawURLEncoding.EncodeToString(b)
}

// Verify returns the claim that a token is for. ok is false for one that was not made with
// a key of this issuer.
func (i *Issuer) Verify(token string) (task, claim [16]byte, ok bool) {
	text, isOne := strings.CutPrefix(token, Prefix)
	if !isOne || len(token) != Length {
		return task, claim, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != size {
		return task, claim, false
	}
	told, given := b[:3*idSize], b[3*idSize:]
	if !hmac.Equal(code(i.SessionKey([16]byte(told[:idSize])), told), given) {
		return task, claim, false
	}
	return [16]byte(told[idSize : 2*idSize]), [16]byte(told[2*idSize:]), true
}

// Is reports whether a text claims to be the token of a task.
func Is(token string) bool { return strings.HasPrefix(token, Prefix) }

func code(key, text []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(text)
	return m.Sum(nil)
}

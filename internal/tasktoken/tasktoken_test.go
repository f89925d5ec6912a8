package tasktoken

import (
	"strings"
	"testing"
)

func TestTokens(t *testing.T) {
	t.Parallel()
	one, other := New(), New()
	session, task, claim := [16]byte{1, 2}, [16]byte{3, 4}, [16]byte{5, 6}
	token := Mint(one.SessionKey(session), session, task, claim)
	if len(token) != Length || !Is(token) {
		t.Fatalf("a token of %d bytes, want %d: %s", len(token), Length, token)
	}
	if gotTask, gotClaim, ok := one.Verify(token); !ok || gotTask != task || gotClaim != claim {
		t.Fatalf("%x %x %v", gotTask, gotClaim, ok)
	}
	if _, _, ok := other.Verify(token); ok {
		t.Error("the token of another process is accepted")
	}
	// One session cannot make the tokens of another.
	if _, _, ok := one.Verify(Mint(one.SessionKey([16]byte{9}), session, task, claim)); ok {
		t.Error("a token made with the key of another session is accepted")
	}
	for i := range token {
		b := []byte(token)
		if b[i]++; b[i] == '{' || b[i] == '[' || b[i] == ':' {
			b[i] = 'a'
		}
		if _, _, ok := one.Verify(string(b)); ok {
			t.Errorf("changed at %d it is accepted: %s", i, b)
		}
	}
	for _, bad := range []string{"", Prefix, token[:len(token)-1], token + "A", strings.TrimPrefix(token, Prefix), token + "\n", " " + token} {
		if _, _, ok := one.Verify(bad); ok {
			t.Errorf("%q is accepted", bad)
		}
	}
}

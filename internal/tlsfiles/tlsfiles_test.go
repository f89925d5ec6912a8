package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

var quiet = slog.New(slog.DiscardHandler)

func makePairs(t *testing.T, dir string, hosts ...string) bool {
	t.Helper()
	made, err := Make(dir, hosts, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func leaf(t *testing.T, dir, name string) *x509.Certificate {
	t.Helper()
	cert, err := loadPair(filepath.Join(dir, certName(name)), filepath.Join(dir, keyName(name)))
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf
}

func TestMake(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "certs")
	if !makePairs(t, dir, "fabric.test", "10.1.2.3", "fd00::1") {
		t.Error("the first CA is not new")
	}
	pool, err := loadCA(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	server := leaf(t, dir, "server")
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "fabric.test", "10.1.2.3", "fd00::1"} {
		if _, err := server.Verify(x509.VerifyOptions{Roots: pool, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := server.Verify(x509.VerifyOptions{Roots: pool, DNSName: "other.test"}); err == nil {
		t.Error("the certificate is good for any name")
	}
	for _, p := range Purposes() {
		cert := leaf(t, dir, string(p))
		usage := x509.ExtKeyUsageClientAuth
		if p == ForServer {
			usage = x509.ExtKeyUsageServerAuth
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		if PurposeOf(cert) != p || time.Until(cert.NotAfter) > time.Hour || cert.IsCA {
			t.Errorf("%s: purpose %q, until %s", p, PurposeOf(cert), cert.NotAfter)
		}
		if runtime.GOOS != "windows" {
			if info, err := os.Stat(filepath.Join(dir, keyName(string(p)))); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: key %v, %v", p, info.Mode(), err)
			}
		}
	}
	if PurposeOf(leaf(t, dir, "ca")) != "" {
		t.Error("the CA has a purpose")
	}
}

// files reads a whole folder.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var b []byte
			b, err = os.ReadFile(filepath.Join(dir, path))
			all[path] = string(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestMakeNamesEachHostOnce(t *testing.T) {
	dir := t.TempDir()
	makePairs(t, dir, "localhost", "a.test", "127.0.0.1", "::1", "a.test", "::ffff:127.0.0.1", "0:0::1", "10.0.0.1", "10.0.0.1")
	server := leaf(t, dir, "server")
	if want := []string{"localhost", "a.test"}; !slices.Equal(server.DNSNames, want) {
		t.Errorf("names %q, want %q", server.DNSNames, want)
	}
	if got, want := fmt.Sprint(server.IPAddresses), "[127.0.0.1 ::1 10.0.0.1]"; got != want {
		t.Errorf("addresses %s, want %s", got, want)
	}
}

func TestMakeOverwritesNothing(t *testing.T) {
	dir := t.TempDir()
	makePairs(t, dir)
	before := files(t, dir)
	if len(before) != 8 {
		t.Fatalf("%d files", len(before))
	}
	if err := os.Remove(filepath.Join(dir, "server.pem")); err != nil {
		t.Fatal(err)
	}
	delete(before, "server.pem")
	if _, err := Make(dir, nil, time.Hour, time.Now()); err == nil || !strings.Contains(err.Error(), "server-key.pem is there already") {
		t.Errorf("%v", err)
	}
	after := files(t, dir)
	for name, text := range before {
		if after[name] != text {
			t.Errorf("%s was changed", name)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d files, want %d", len(after), len(before))
	}

	// Without the pairs, the CA signs new ones.
	for name := range before {
		if !strings.HasPrefix(name, "ca") {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if makePairs(t, dir) || files(t, dir)["ca.pem"] != before["ca.pem"] || files(t, dir)["worker.pem"] == before["worker.pem"] {
		t.Error("the CA was not used again for new pairs")
	}

	half := t.TempDir()
	if err := os.WriteFile(filepath.Join(half, "ca.pem"), []byte(before["ca.pem"]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Make(half, nil, time.Hour, time.Now()); err == nil || !strings.Contains(err.Error(), "go together") || len(files(t, half)) != 1 {
		t.Errorf("a CA without its key: %v, %d files", err, len(files(t, half)))
	}
}

// TestLifeEndsWithTheCA: no pair outlives what signed it.
func TestLifeEndsWithTheCA(t *testing.T) {
	dir := t.TempDir()
	if _, err := Make(dir, nil, 100*365*24*time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	if ca := leaf(t, dir, "ca"); leaf(t, dir, "server").NotAfter.After(ca.NotAfter) {
		t.Error("the server's certificate outlives the CA")
	}
}

func handshake(t *testing.T, server, client *tls.Config) (serverSaw tls.ConnectionState, err error) {
	t.Helper()
	a, b := net.Pipe()
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		a.Close()
		done <- err
	}()
	err = c.Handshake()
	if err == nil {
		_, err = c.Read(make([]byte, 1)) // in TLS 1.3 the server's refusal comes after the handshake
	}
	b.Close()
	if serr := <-done; err == nil {
		err = serr
	}
	return s.ConnectionState(), err
}

func TestConfigs(t *testing.T) {
	dir := t.TempDir()
	makePairs(t, dir)
	at := func(name string) string { return filepath.Join(dir, name) }
	s, err := OpenServer(at("server.pem"), at("server-key.pem"), at("ca.pem"), quiet)
	if err != nil {
		t.Fatal(err)
	}
	if names := s.Names(); len(names) != 1 || names[0] != "localhost" {
		t.Errorf("names %v", names)
	}
	bare, err := Client(at("ca.pem"), "", "")
	if err != nil {
		t.Fatal(err)
	}
	bare.ServerName = "localhost"
	shows, err := Client(at("ca.pem"), at("worker.pem"), at("worker-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	shows.ServerName = "localhost"
	for name, x := range map[string]struct {
		client *tls.Config
		asks   bool
		chains int
	}{"nothing to show": {bare, true, 0}, "a certificate": {shows, true, 1}, "not asked": {shows, false, 0}} {
		state, err := handshake(t, s.Config(x.asks, "h2"), x.client)
		if err != nil || len(state.VerifiedChains) != x.chains || state.Version != tls.VersionTLS13 {
			t.Errorf("%s: %v, %d chains, version %x", name, err, len(state.VerifiedChains), state.Version)
		}
	}
	old := bare.Clone()
	old.MinVersion, old.MaxVersion = 0, tls.VersionTLS12
	if _, err := handshake(t, s.Config(false, "h2"), old); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

// TestWarnings: what works but should not be so is said in the log.
func TestWarnings(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes mean something else there")
	}
	dir := t.TempDir()
	if _, err := Make(dir, nil, time.Hour, time.Now().Add(-2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server-key.pem")
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	if _, err := OpenServer(cert, key, "", slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"other users of this machine can read the key", "the certificate has expired"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
}

func TestMessages(t *testing.T) {
	dir := t.TempDir()
	makePairs(t, dir)
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("empty.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, open := range map[string]func() error{
		"nothing.pem":      func() error { _, err := OpenServer(at("nothing.pem"), at("server-key.pem"), "", quiet); return err },
		"private key does": func() error { _, err := OpenServer(at("server.pem"), at("worker-key.pem"), "", quiet); return err },
		"no certificate in": func() error {
			_, err := OpenServer(at("server.pem"), at("server-key.pem"), at("empty.pem"), quiet)
			return err
		},
		"empty.pem: there":   func() error { _, err := Client(at("empty.pem"), "", ""); return err },
		"both or neither":    func() error { _, err := Client(at("ca.pem"), at("worker.pem"), ""); return err },
		"worker-key.pem: tl": func() error { _, err := Client(at("ca.pem"), at("client.pem"), at("worker-key.pem")); return err },
	} {
		if err := open(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for _, ca := range []string{"", System} {
		if c, err := Client(ca, "", ""); err != nil || c.RootCAs != nil || c.MinVersion != tls.VersionTLS13 {
			t.Errorf("%q: %+v, %v", ca, c, err)
		}
	}
}

// Package tlsfiles makes TLS configurations of files in PEM. Certificates that are
// replaced on disk are taken over without a restart. Everything speaks TLS 1.3.
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"
)

// lookEvery is how often files in use are looked at for a change.
const lookEvery = time.Second

// System is the name that stands for the certificate authorities of the system where
// the file of a CA is asked for.
const System = "system"

// Server is the TLS identity of a server. Any number of goroutines may use it.
type Server struct {
	certFile, keyFile, clientCAFile string
	log                             *slog.Logger

	mu     sync.Mutex
	looked time.Time
	seen   [3]fs.FileInfo
	broken string
	loaded loaded
}

// loaded is one generation of the files.
type loaded struct {
	cert *tls.Certificate
	// clients verifies the certificates of clients; nil asks for none.
	clients *x509.CertPool
	// configs are made once for each list of protocols, so that session tickets hold.
	configs map[string]*tls.Config
}

// OpenServer reads a certificate (with its chain), its key and, unless clientCAFile is
// empty, the CA that signs clients' certificates.
func OpenServer(certFile, keyFile, clientCAFile string, log *slog.Logger) (*Server, error) {
	s := &Server{certFile: certFile, keyFile: keyFile, clientCAFile: clientCAFile, log: log}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload reads the files now. When that fails, what was known stays in force.
func (s *Server) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load()
}

func (s *Server) load() error {
	seen := s.stat()
	cert, err := loadPair(s.certFile, s.keyFile)
	if err != nil {
		return err
	}
	next := loaded{cert: cert, configs: make(map[string]*tls.Config)}
	if s.clientCAFile != "" {
		if next.clients, err = loadCA(s.clientCAFile); err != nil {
			return err
		}
	}
	if info := seen[1]; info != nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0 {
		s.log.Warn("other users of this machine can read the key: chmod 600 it", "file", s.keyFile, "mode", info.Mode().Perm())
	}
	if time.Now().After(cert.Leaf.NotAfter) {
		s.log.Warn("the certificate has expired: peers will reject it", "file", s.certFile, "expired", cert.Leaf.NotAfter)
	}
	s.loaded, s.seen, s.broken, s.looked = next, seen, "", time.Now()
	s.log.Info("certificate loaded", "file", s.certFile, "names", cert.Leaf.DNSNames, "expires", cert.Leaf.NotAfter)
	return nil
}

func (s *Server) stat() (seen [3]fs.FileInfo) {
	for i, name := range []string{s.certFile, s.keyFile, s.clientCAFile} {
		if name != "" {
			seen[i], _ = os.Stat(name) // reading it says what is wrong
		}
	}
	return seen
}

func changed(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return (a == nil) != (b == nil)
	}
	return !os.SameFile(a, b) || !a.ModTime().Equal(b.ModTime()) || a.Size() != b.Size()
}

// refresh looks once in a while whether a file was changed. Halfway through a
// replacement certificate and key do not fit: then the old ones stay in force.
func (s *Server) refresh() {
	if time.Since(s.looked) < lookEvery {
		return
	}
	s.looked = time.Now()
	same := true
	for i, info := range s.stat() {
		same = same && !changed(info, s.seen[i])
	}
	if same {
		return
	}
	if err := s.load(); err != nil && err.Error() != s.broken {
		s.broken = err.Error()
		s.log.Error("cannot read the certificate: the previous one stays in use", "error", err)
	}
}

// Config returns the configuration of a listener for these protocols (ALPN). withClients
// asks clients for a certificate and verifies one that is given; a client without one
// is let in, and what it may call is for others to say.
func (s *Server) Config(withClients bool, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.current(withClients, protocols), nil
		},
	}
}

func (s *Server) current(withClients bool, protocols []string) *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
	key := fmt.Sprint(withClients, protocols)
	if c := s.loaded.configs[key]; c != nil {
		return c
	}
	cert := s.loaded.cert
	c := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protocols,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil },
	}
	if withClients && s.loaded.clients != nil {
		c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, s.loaded.clients
	}
	s.loaded.configs[key] = c
	return c
}

// Names returns the host names that the certificate is made out to.
func (s *Server) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loaded.cert.Leaf.DNSNames
}

// Client returns the configuration of a client. caFile is the CA that it trusts, or
// [System], or empty for the latter as well. certFile and keyFile, both or neither, are
// what it shows when it is asked; they are read again for each connection.
func Client(caFile, certFile, keyFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS13}
	if caFile != "" && caFile != System {
		pool, err := loadCA(caFile)
		if err != nil {
			return nil, err
		}
		c.RootCAs = pool
	}
	if (certFile == "") != (keyFile == "") {
		return nil, errors.New("a certificate and its key go together: give both or neither")
	}
	if certFile != "" {
		if _, err := loadPair(certFile, keyFile); err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return loadPair(certFile, keyFile) }
	}
	return c, nil
}

func loadPair(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("certificate %s: %w", certFile, err)
		}
	}
	return &cert, nil
}

func loadCA(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certificate authority %s: there is no certificate in PEM in it", file)
	}
	return pool, nil
}

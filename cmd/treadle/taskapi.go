package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/treadle-dev/treadle/internal/tlsfiles"
	"github.com/treadle-dev/treadle/server"
	"github.com/treadle-dev/treadle/worker"
)

// workerAPI is how tasks of a worker speak to its dispatchers: they trust the CA that the
// worker trusts, and have neither its token nor its certificate.
func (n *node) workerAPI() (worker.API, error) {
	if n.TLSCA == "" {
		return worker.API{}, nil
	}
	cfg, err := tlsfiles.Client(n.TLSCA, "", "")
	if err != nil {
		return worker.API{}, fmt.Errorf("--tls-ca: %w", err)
	}
	api := worker.API{TLS: cfg}
	if n.TLSCA == tlsfiles.System {
		return api, nil
	}
	text, err := os.ReadFile(n.TLSCA)
	if err != nil {
		return worker.API{}, fmt.Errorf("--tls-ca: %w", err)
	}
	api.CA = worker.Certificates(text)
	return api, nil
}

// localAPI is how tasks of the local pool reach this very process. Over TLS they trust the
// certificate that it shows, whoever signed it.
func (n *node) localAPI(srv *server.Server, secure *tlsfiles.Server) (worker.API, error) {
	host, port, err := net.SplitHostPort(srv.GRPCAddr())
	if err != nil {
		return worker.API{}, err
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	api := worker.API{Address: net.JoinHostPort(host, port)}
	if secure == nil {
		return api, nil
	}
	text, err := os.ReadFile(n.TLSCert)
	if err != nil {
		return worker.API{}, fmt.Errorf("--tls-cert: %w", err)
	}
	names := secure.Names()
	api.CA = worker.Certificates(text)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(api.CA) || len(names) == 0 {
		return worker.API{}, errors.New("--tls-cert: tasks cannot check this process's certificate: it has no name")
	}
	api.Authority = net.JoinHostPort(names[0], port)
	api.TLS = &tls.Config{RootCAs: pool, ServerName: names[0], MinVersion: tls.VersionTLS12}
	return api, nil
}

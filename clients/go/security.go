package treadle

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/credentials"

	"github.com/treadle-dev/treadle/internal/dialaddr"
)

// systemCA is the word for the CAs of the system where a file is asked for.
const systemCA = "system"

// tlsWith trusts what the CA in a file signed.
func tlsWith(file string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if file == systemCA {
		return cfg, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, invalid("Dial", "the CA (%s, WithCA): %v", EnvCA, err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, invalid("Dial", "the CA (%s, WithCA): there is no certificate in PEM in %s", EnvCA, file)
	}
	return cfg, nil
}

// clearTLS are TLS credentials that say what it means when the other side speaks plain
// text: the words of crypto/tls do not.
type clearTLS struct {
	credentials.TransportCredentials
	// refused is set to why a handshake can never succeed, and nil by one that did.
	refused *atomic.Pointer[string]
}

func (c clearTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	var record tls.RecordHeaderError
	if errors.As(err, &record) {
		err = fmt.Errorf("the server speaks plain text and this client TLS: leave the CA (%s, --tls-ca) out, "+
			"or start the server with --tls-cert and --tls-key: %w", EnvCA, err)
	}
	if err == nil {
		c.refused.Store(nil)
	} else if why := dialaddr.Hopeless(err.Error()); why != "" {
		c.refused.Store(&why)
	}
	return conn, info, err
}

func (c clearTLS) Clone() credentials.TransportCredentials {
	return clearTLS{c.TransportCredentials.Clone(), c.refused}
}

// bearer sends the token as HTTP does.
type bearer struct {
	token string
	tls   bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token}, nil
}

// RequireTransportSecurity is checked by grpc; Dial decides about plain text itself.
func (b bearer) RequireTransportSecurity() bool { return b.tls }

// loopback reports whether an address cannot leave this machine.
func loopback(address string) bool {
	if strings.HasPrefix(address, "unix:") {
		return true
	}
	if i := strings.LastIndex(address, "/"); i >= 0 { // dns:///host:port
		address = address[i+1:]
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

package linkpb

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/treadle-dev/treadle/internal/dialaddr"
)

// Security returns the dial options of a worker that speaks TLS with cfg (nil: plain
// text) and shows the bearer token (empty: none) to dispatchers at the addresses. A token
// that would travel to another machine in plain text is refused, unless insecure.
func Security(cfg *tls.Config, token string, insecureToo bool, addresses []string) ([]grpc.DialOption, error) {
	if err := dialaddr.CheckToken(token); err != nil {
		return nil, fmt.Errorf("TREADLE_TOKEN: %w", err)
	}
	for _, a := range addresses {
		if token != "" && cfg == nil && !insecureToo && !loopback(a) {
			return nil, fmt.Errorf("the token would travel to %s without TLS, where others can read it: "+
				"name the dispatchers' CA (--tls-ca, TREADLE_TLS_CA), or set --insecure to allow it", a)
		}
	}
	creds := insecure.NewCredentials()
	if cfg != nil {
		creds = clearTLS{credentials.NewTLS(cfg)}
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(creds)}
	if token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{token, cfg != nil}))
	}
	return options, nil
}

// loopback reports whether "host:port" cannot leave this machine.
func loopback(address string) bool {
	if whole, err := dialaddr.Check(address); err == nil {
		address = whole
	}
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// bearer sends the token as HTTP does.
type bearer struct {
	token string
	tls   bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.tls }

// clearTLS are TLS credentials that say what it means when the other side speaks plain
// text.
type clearTLS struct {
	credentials.TransportCredentials
}

func (c clearTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	var record tls.RecordHeaderError
	if errors.As(err, &record) {
		err = fmt.Errorf("the dispatcher speaks plain text and this worker TLS: leave --tls-ca out, "+
			"or start the dispatcher with --tls-cert and --tls-key: %w", err)
	}
	return conn, info, err
}

func (c clearTLS) Clone() credentials.TransportCredentials {
	return clearTLS{c.TransportCredentials.Clone()}
}

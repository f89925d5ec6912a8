package treadle

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/dialaddr"
)

// Environment variables that [Dial] reads.
const (
	EnvAddress = "TREADLE_ADDRESS"
	EnvToken   = "TREADLE_TOKEN"
	// EnvCA is a file in PEM: the CA that signed the server's certificate. Where it is set
	// clients speak TLS. The word "system" stands for the CAs of the system.
	EnvCA = "TREADLE_TLS_CA"
)

// DefaultAddress is where `treadle up` listens.
const DefaultAddress = "127.0.0.1:50051"

const (
	// maxMessage is the largest message that a server can be set to (--max-payload 900MiB):
	// twice the payload, as some messages carry text forms of it, and room for the rest. The
	// client asked for what the server sends, so the limit is the server's alone.
	maxMessage = 2*(900<<20) + 1<<20

	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second

	defaultRetry = 30 * time.Second
	// maxServerWait is the longest wait that a server grants to one call.
	maxServerWait = 5 * time.Minute
)

// Client speaks to one Treadle server. Any number of goroutines may use it. Close
// it when it is no longer needed.
type Client struct {
	address string
	conn    *grpc.ClientConn
	rpc     treadlev1.FabricServiceClient
	config  config

	// life ends with Close and takes what runs for many callers at once with it.
	life    context.Context
	end     context.CancelFunc
	batcher *batcher
	results *resultStreams

	// met is set with the first answer of a server, see WithFailFast.
	met atomic.Bool
	// refused is why the latest TLS handshake can never succeed; nil where it may.
	refused *atomic.Pointer[string]
	// direct counts the calls that wait in a request of their own.
	direct atomic.Int64
}

type config struct {
	token    string
	tls      *tls.Config
	ca       string
	insecure bool
	failFast bool
	retry    time.Duration
	agent    string
	dial     []grpc.DialOption
}

// Option adjusts [Dial].
type Option func(*config)

// WithToken sends the token with every call. Default: TREADLE_TOKEN; "" sends none.
func WithToken(token string) Option { return func(c *config) { c.token = token } }

// WithTLS speaks TLS with that configuration. Default: TREADLE_TLS_CA decides, see
// [EnvCA]; without it plain text, as on loopback.
func WithTLS(t *tls.Config) Option { return func(c *config) { c.tls = t } }

// WithCA speaks TLS with a server whose certificate the CA in that file (PEM) signed;
// "system" trusts the CAs of the system, "" speaks plain text. [WithTLS] goes before it.
func WithCA(file string) Option { return func(c *config) { c.ca = file } }

// WithInsecure allows a token to travel without TLS to an address that is not loopback.
func WithInsecure() Option { return func(c *config) { c.insecure = true } }

// WithRetry sets how long a call is retried while no server can be reached: default
// 30 s, 0 never. A call's own context ends its retries earlier.
func WithRetry(total time.Duration) Option { return func(c *config) { c.retry = total } }

// WithFailFast makes a client that has never reached a server fail at once where it
// would retry, as a program for people does: a wrong address is not worth a wait.
func WithFailFast() Option { return func(c *config) { c.failFast = true } }

// WithUserAgent names the program to the server.
func WithUserAgent(agent string) Option { return func(c *config) { c.agent = agent } }

// WithDialOptions adds options of grpc.NewClient, for example a dialer or interceptors.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(c *config) { c.dial = append(c.dial, opts...) }
}

// Dial makes a client of the server at address: "host:port", a host alone for port 50051,
// or a name that gRPC resolves by itself, as in dns:///host:port and unix:/path. An empty
// address means TREADLE_ADDRESS, else [DefaultAddress]. Dial does not connect: the first
// call does. An address that can never be right is [ErrInvalid].
//
// Until a server has answered once, calls fail at once with [ErrUnavailable] and the cause
// where no waiting helps: a certificate that the CA did not sign, the port of REST, no such
// host. Later the same things are retried, as certificates and names are renewed.
func Dial(address string, opts ...Option) (*Client, error) {
	if address == "" {
		address = os.Getenv(EnvAddress)
	}
	if address == "" {
		address = DefaultAddress
	}
	cfg := config{token: strings.TrimSpace(os.Getenv(EnvToken)), ca: os.Getenv(EnvCA), retry: defaultRetry, agent: "treadle-go"}
	for _, o := range opts {
		o(&cfg)
	}
	if !dialaddr.Resolved(address) {
		var err error
		if address, err = dialaddr.Check(address); err != nil {
			return nil, invalid("Dial", "%v", err)
		}
	}
	if cfg.tls == nil && cfg.ca != "" {
		var err error
		if cfg.tls, err = tlsWith(cfg.ca); err != nil {
			return nil, err
		}
	}
	creds, refused := insecure.NewCredentials(), new(atomic.Pointer[string])
	if cfg.tls != nil {
		creds = clearTLS{credentials.NewTLS(cfg.tls), refused}
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithUserAgent(cfg.agent),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		// The default waits up to two minutes between dials; a server that restarts is
		// back in a moment.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: grpcbackoff.Config{
				BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second,
			},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
	if cfg.token != "" {
		if err := dialaddr.CheckToken(cfg.token); err != nil {
			return nil, invalid("Dial", "%s, WithToken: %v", EnvToken, err)
		}
		if cfg.tls == nil && !cfg.insecure && !loopback(address) {
			return nil, invalid("Dial", "a token would travel to %s without TLS, where others can read it: "+
				"name the server's CA (%s, WithCA), or allow it explicitly (WithInsecure, --insecure)", address, EnvCA)
		}
		dial = append(dial, grpc.WithPerRPCCredentials(bearer{cfg.token, cfg.tls != nil}))
	}
	conn, err := grpc.NewClient(address, append(dial, cfg.dial...)...)
	if err != nil {
		return nil, invalid("Dial", "address %q: %v", address, err)
	}
	c := &Client{address: address, conn: conn, rpc: treadlev1.NewFabricServiceClient(conn), config: cfg, refused: refused}
	c.life, c.end = context.WithCancel(context.Background())
	c.batcher = newBatcher(c.life, c.rpc, &c.met)
	c.results = newResultStreams(c)
	return c, nil
}

// Address returns the address that the client was made for.
func (c *Client) Address() string { return c.address }

// Conn returns the connection, for services beside Treadle's own such as health and
// reflection. It belongs to the client.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// Close ends the client and waits for what it runs in the background. Calls that are
// under way fail with [ErrClosed]; the tasks that they recorded go on.
func (c *Client) Close() error {
	c.end()
	err := c.conn.Close()
	c.batcher.close()
	c.results.close()
	if err != nil {
		return newError("Close", err)
	}
	return nil
}

// call makes one unary call, and again while no server can be reached. The request
// stays the same, its request id included.
func call[Req, Resp any](
	ctx context.Context, c *Client, op string,
	method func(context.Context, Req, ...grpc.CallOption) (Resp, error), req Req,
) (Resp, error) {
	return retry(ctx, c, op, func() (Resp, error) {
		resp, err := method(ctx, req)
		if err == nil {
			c.met.Store(true)
		}
		return resp, requestError(op, req, err)
	})
}

// retry runs try until it succeeds, fails for good, or the retry time is over.
func retry[T any](ctx context.Context, c *Client, op string, try func() (T, error)) (T, error) {
	var zero T
	var last error
	v, err := backoff.Retry(ctx, func() (T, error) {
		v, err := try()
		if err == nil {
			return v, nil
		}
		if last = c.hopeless(op, c.closedError(op, err)); !c.retryable(last) {
			return v, backoff.Permanent(last)
		}
		return v, last
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(c.config.retry))
	switch {
	case err == nil:
		return v, nil
	case ctx.Err() != nil && last != nil && !errors.Is(last, ctx.Err()):
		return zero, ctxError(ctx, op, last.Error())
	default:
		return zero, last
	}
}

// retryable reports whether a failed call may be made again. Whoever never met a
// server and wants to know at once, is told.
func (c *Client) retryable(err error) bool {
	if !errors.Is(err, ErrUnavailable) {
		// The server answered, if only to refuse.
		if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			c.met.Store(true)
		}
		return false
	}
	if c.config.retry <= 0 || c.life.Err() != nil || errors.As(err, new(*hopeless)) {
		return false
	}
	return !c.config.failFast || c.met.Load()
}

// hopeless is the cause of a call that no waiting helps.
type hopeless struct{ text string }

func (h *hopeless) Error() string { return h.text }

// hopeless says why, where a client that has never met a server will not meet it.
func (c *Client) hopeless(op string, err error) error {
	var e *Error
	// A code need not come from a Treadle: the answers of HTTP servers are translated.
	if c.met.Load() || !errors.As(err, &e) || e.Reason != "" {
		return err
	}
	var why string
	if p := c.refused.Load(); p != nil {
		// The transport names the address that it tried last, which need not be the one that answered.
		why = *p
	} else if why = dialaddr.Hopeless(e.Message); why == "" && dialaddr.NoHost(e.Message) {
		why = "there is no host of that name"
	}
	if why == "" {
		return err
	}
	return &Error{Op: op, Code: codes.Unavailable, Message: "at " + c.address + ": " + why, cause: errors.Join(&hopeless{why}, err)}
}

// closedError says "closed" where a call failed because of Close.
func (c *Client) closedError(op string, err error) error {
	if c.life.Err() == nil || errors.Is(err, ErrClosed) {
		return err
	}
	return fmt.Errorf("%s: %w", op, ErrClosed)
}

func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 50*time.Millisecond, 2*time.Second
	return b
}

package linkpb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/dialaddr"
	"github.com/treadle-dev/treadle/internal/wire"
	"github.com/treadle-dev/treadle/link"
)

// oneDial bounds the dialling of one endpoint while there are others to try: a machine
// that is gone answers nothing at all, and leases run meanwhile.
const oneDial = 3 * time.Second

// ErrNoOther says that no dispatcher but the one that is connected was found.
var ErrNoOther = errors.New("no other dispatcher is named, or none answers")

// Dialer opens sessions with dispatchers. It may be used by many goroutines.
//
// Each time it looks up what the addresses name by then, a DNS name may name several
// endpoints, and takes the endpoint that was tried longest ago, by chance among equals:
// so many workers with one list spread over it, and one that comes back after a loss
// tries the others first.
type Dialer struct {
	addresses []string
	mode      link.Mode
	options   []grpc.DialOption
	lookup    func(ctx context.Context, host string) ([]string, error)

	mu    sync.Mutex
	tried map[endpoint]uint64
	tries uint64
	// latest is the endpoint of the connection opened last.
	latest endpoint
}

// endpoint is where an address leads to: ip is "" for a name that was not resolved.
type endpoint struct {
	address string // "host:port" as it was given, which certificates are checked for
	ip      string // "ip:port"
}

// leading is a connection that knows where it leads.
type leading struct {
	link.Conn
	to endpoint
}

// Endpoint returns the "ip:port" that was dialled, and the "host:port" that was given for it,
// which certificates are checked for.
func (l leading) Endpoint() (address, authority string) { return l.to.ip, l.to.address }

// NewDialer returns a Dialer for dispatchers at the addresses ("host:port", or a host
// alone for port 50051). mode
// is [link.Push] or [link.Pull]; maxPayload is the limit on one value in bytes;
// options must hold the transport credentials.
func NewDialer(addresses []string, mode link.Mode, maxPayload int, options ...grpc.DialOption) (*Dialer, error) {
	if len(addresses) == 0 {
		return nil, errors.New("no dispatcher address: give at least one host:port")
	}
	if mode != link.Push && mode != link.Pull {
		return nil, fmt.Errorf("mode %q: want push or pull", mode)
	}
	checked := make([]string, len(addresses))
	for i, address := range addresses {
		var err error
		if checked[i], err = dialaddr.Check(address); err != nil {
			return nil, fmt.Errorf("dispatcher: %w", err)
		}
	}
	limit := MessageLimit(maxPayload)
	options = append([]grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(limit), grpc.MaxCallSendMsgSize(limit), grpc.ForceCodecV2(wire.Codec(maxPayload))),
		grpc.WithInitialWindowSize(1 << 20),
		grpc.WithInitialConnWindowSize(4 << 20),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	}, options...)
	return &Dialer{
		addresses: checked, mode: mode, options: options, lookup: net.DefaultResolver.LookupHost, tried: map[endpoint]uint64{},
	}, nil
}

// MessageLimit is the gRPC message limit that goes with a payload limit, on every
// server, client and connection inside a process.
func MessageLimit(maxPayload int) int { return wire.MessageLimit(maxPayload) }

// Dial opens a stream to a dispatcher, whichever answers. ctx bounds the dialling only;
// the connection lives until its Close.
func (d *Dialer) Dial(ctx context.Context) (link.Conn, error) { return d.Move(ctx, false) }

// Move opens a stream to a dispatcher beside the connection opened last; elsewhere: only
// at another endpoint, or it fails with [ErrNoOther].
func (d *Dialer) Move(ctx context.Context, elsewhere bool) (link.Conn, error) {
	endpoints, err := d.endpoints(ctx)
	if elsewhere {
		d.mu.Lock()
		latest := d.latest
		d.mu.Unlock()
		endpoints = slices.DeleteFunc(endpoints, func(e endpoint) bool { return e.ip == latest.ip })
		if len(endpoints) == 0 {
			return nil, errors.Join(ErrNoOther, err)
		}
	}
	errs := []error{err}
	// One name that may mean something in a moment, or one endpoint that may, is hope.
	hopeless := err == nil && len(endpoints) > 0
	for i, e := range d.order(endpoints) {
		conn, err := d.open(ctx, e, i < len(endpoints)-1)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		hopeless = hopeless && errors.Is(err, link.ErrHopeless)
		if ctx.Err() != nil {
			break
		}
	}
	if elsewhere {
		errs = append(errs, ErrNoOther)
	}
	err = errors.Join(errs...)
	if errors.Is(err, link.ErrHopeless) && !hopeless {
		err = fmt.Errorf("%v", err) //nolint:errorlint // the others may answer, so the mark is taken off
	}
	return nil, err
}

// endpoints are what the addresses name now, each once; the error is about names that
// name nothing.
func (d *Dialer) endpoints(ctx context.Context) (out []endpoint, err error) {
	var errs []error
	for _, address := range d.addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			errs = append(errs, fmt.Errorf("dispatcher %q: %w", address, err))
			continue
		}
		ips := []string{host}
		if net.ParseIP(host) == nil {
			if ips, err = d.lookup(ctx, host); err != nil {
				errs = append(errs, fmt.Errorf("look up dispatcher %s: %w", host, err))
				continue
			}
		}
		for _, ip := range ips {
			e := endpoint{address, net.JoinHostPort(ip, port)}
			if !slices.ContainsFunc(out, func(o endpoint) bool { return o.ip == e.ip }) {
				out = append(out, e)
			}
		}
	}
	return out, errors.Join(errs...)
}

// order puts what was tried longest ago first, and forgets what is named no more.
func (d *Dialer) order(endpoints []endpoint) []endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	rand.Shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
	slices.SortStableFunc(endpoints, func(a, b endpoint) int { return cmp.Compare(d.tried[a], d.tried[b]) })
	for e := range d.tried {
		if !slices.Contains(endpoints, e) && e != d.latest {
			delete(d.tried, e)
		}
	}
	return endpoints
}

// open opens a stream to one endpoint; more says that there are others to try.
func (d *Dialer) open(ctx context.Context, e endpoint, more bool) (link.Conn, error) {
	d.mu.Lock()
	d.tries++
	d.tried[e] = d.tries
	d.mu.Unlock()
	if more {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, oneDial)
		defer cancel()
	}
	name := e.address
	if e.ip != e.address {
		name += " (" + e.ip + ")"
	}
	// The channel goes by the address as it was given, so that certificates and headers
	// have its name, and is led to the one endpoint.
	leads := manual.NewBuilderWithScheme("treadle")
	leads.InitialState(resolver.State{Addresses: []resolver.Address{{Addr: e.ip}}})
	// A channel of its own for each session: a channel that failed keeps its own
	// backoff, and the agent has one already.
	channel, err := grpc.NewClient("treadle:///"+e.address, append(slices.Clone(d.options), grpc.WithResolvers(leads))...)
	if err != nil {
		return nil, fmt.Errorf("dial dispatcher %s: %w", name, err)
	}
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	end := func() {
		cancel()
		_ = channel.Close() // it can only say that it was closed before
	}
	stop := context.AfterFunc(ctx, end)
	client := treadlev1.NewWorkerServiceClient(channel)
	open := client.Push
	if d.mode == link.Pull {
		open = client.Pull
	}
	s, err := open(streamCtx)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		end()
		if why := dialaddr.Hopeless(err.Error()); why != "" {
			return nil, fmt.Errorf("dial dispatcher %s: %s (%w)", name, why, link.ErrHopeless)
		}
		return nil, fmt.Errorf("dial dispatcher %s: %w", name, err)
	}
	d.mu.Lock()
	d.latest = e
	d.mu.Unlock()
	return leading{NewWorkerConn(s, end), e}, nil
}

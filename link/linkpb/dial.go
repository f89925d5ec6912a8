package linkpb

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
)

// Dialer opens sessions with dispatchers. It may be used by many goroutines.
type Dialer struct {
	addresses []string
	mode      link.Mode
	options   []grpc.DialOption
	next      atomic.Uint64
}

// NewDialer returns a Dialer that takes the addresses ("host:port") in turn. mode
// is [link.Push] or [link.Pull]; maxPayload is the limit on one value in bytes;
// options must hold the transport credentials.
func NewDialer(addresses []string, mode link.Mode, maxPayload int, options ...grpc.DialOption) (*Dialer, error) {
	if len(addresses) == 0 {
		return nil, errors.New("no dispatcher address: give at least one host:port")
	}
	if mode != link.Push && mode != link.Pull {
		return nil, fmt.Errorf("mode %q: want push or pull", mode)
	}
	limit := MessageLimit(maxPayload)
	options = append([]grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(limit), grpc.MaxCallSendMsgSize(limit)),
		grpc.WithInitialWindowSize(1 << 20),
		grpc.WithInitialConnWindowSize(4 << 20),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	}, options...)
	return &Dialer{addresses: addresses, mode: mode, options: options}, nil
}

// MessageLimit is the gRPC message limit that goes with a payload limit, on every
// server, client and connection inside a process.
func MessageLimit(maxPayload int) int { return 2*maxPayload + 1<<20 }

// Dial opens a stream to the next address. ctx bounds the dialling only; the
// connection lives until its Close.
func (d *Dialer) Dial(ctx context.Context) (link.Conn, error) {
	address := d.addresses[int(d.next.Add(1)-1)%len(d.addresses)]
	// A channel of its own for each session: a channel that failed keeps its own
	// backoff, and the agent has one already.
	channel, err := grpc.NewClient("passthrough:///"+address, d.options...)
	if err != nil {
		return nil, fmt.Errorf("dial dispatcher %s: %w", address, err)
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
		return nil, fmt.Errorf("dial dispatcher %s: %w", address, err)
	}
	return NewWorkerConn(s, end), nil
}

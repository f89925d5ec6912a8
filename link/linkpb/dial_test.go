package linkpb

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
)

// fleet are dispatchers on loopback addresses of their own and one port.
type fleet struct {
	t       *testing.T
	port    string
	servers []*grpc.Server
	// arrived names the server that a stream came to.
	arrived chan int
}

type counting struct {
	treadlev1.UnimplementedWorkerServiceServer
	n       int
	arrived chan int
}

func (c counting) Push(s grpc.BidiStreamingServer[treadlev1.WorkerFrame, treadlev1.DispatcherFrame]) error {
	c.arrived <- c.n
	<-s.Context().Done()
	return nil
}

func newFleet(t *testing.T, ips ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, arrived: make(chan int, 256)}
	port := "0"
	for i, ip := range ips {
		lis, err := net.Listen("tcp", net.JoinHostPort(ip, port))
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ = net.SplitHostPort(lis.Addr().String())
		srv := grpc.NewServer()
		treadlev1.RegisterWorkerServiceServer(srv, counting{n: i, arrived: f.arrived})
		served := make(chan error, 1)
		go func() { served <- srv.Serve(lis) }()
		t.Cleanup(func() { srv.Stop(); <-served })
		f.servers = append(f.servers, srv)
	}
	f.port = port
	return f
}

func (f *fleet) dialer(addresses ...string) *Dialer {
	f.t.Helper()
	for i := range addresses {
		addresses[i] = net.JoinHostPort(addresses[i], f.port)
	}
	d, err := NewDialer(addresses, link.Push, 1<<20, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}

// reach opens a stream and says which server it came to.
func (f *fleet) reach(d *Dialer, elsewhere bool) int {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	conn, err := d.Move(ctx, elsewhere)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close(errors.New("the test ends")) })
	// gRPC opens the stream at the server with the first message.
	if err := conn.Send(&link.Want{N: 1}); err != nil {
		f.t.Fatal(err)
	}
	select {
	case n := <-f.arrived:
		return n
	case <-ctx.Done():
		f.t.Fatal("no server saw the stream")
		return 0
	}
}

// Workers with one list do not all begin with its first address, and each goes on to the
// others in turn.
func TestDialsSpread(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "127.0.3.1", "127.0.3.2", "127.0.3.3")
	first := map[int]int{}
	for range 30 {
		d := f.dialer("127.0.3.1", "127.0.3.2", "127.0.3.3")
		seen := map[int]bool{}
		for i := range 3 {
			n := f.reach(d, i%2 == 1)
			if i == 0 {
				first[n]++
			}
			seen[n] = true
		}
		if len(seen) != 3 {
			t.Fatalf("three dials reached %v, want each dispatcher once", seen)
		}
	}
	// Each of three is passed over by all of 30 once in 200,000 runs.
	if len(first) != 3 {
		t.Errorf("first dials went to %v, want all of them", first)
	}
}

// A name is looked up at each dial: what joins is found, what left is not tried.
func TestDialsWhatANameStandsFor(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "127.0.4.1", "127.0.4.2")
	d := f.dialer("dispatchers.test")
	var named []string
	d.lookup = func(_ context.Context, host string) ([]string, error) {
		if host != "dispatchers.test" {
			t.Errorf("looked up %q", host)
		}
		return named, nil
	}
	named = []string{"127.0.4.1"}
	if n := f.reach(d, false); n != 0 {
		t.Fatalf("reached %d", n)
	}
	if _, err := d.Move(t.Context(), true); !errors.Is(err, ErrNoOther) {
		t.Fatalf("there is no other: %v", err)
	}
	named = []string{"127.0.4.1", "127.0.4.2"}
	if n := f.reach(d, true); n != 1 {
		t.Fatalf("reached %d, want the one that joined", n)
	}
	named = []string{"127.0.4.2"}
	if n := f.reach(d, false); n != 1 {
		t.Fatalf("reached %d, want the one that is left", n)
	}
	if len(d.tried) > 2 {
		t.Errorf("%d endpoints are remembered", len(d.tried))
	}
}

// A dispatcher that is gone, or a name that stands for nothing, costs one dial nothing but
// the way to the next.
func TestDialPassesOver(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "127.0.5.1", "127.0.5.2")
	d := f.dialer("127.0.5.1", "127.0.5.2", "127.0.5.9", "nowhere.test")
	d.lookup = func(context.Context, string) ([]string, error) { return nil, errors.New("no such name") }
	f.servers[0].Stop()
	for range 8 {
		if n := f.reach(d, false); n != 1 {
			t.Fatalf("reached %d, which has stopped", n)
		}
	}
	f.servers[1].Stop()
	if _, err := d.Dial(t.Context()); err == nil {
		t.Fatal("dialled a fleet that has stopped")
	}
}

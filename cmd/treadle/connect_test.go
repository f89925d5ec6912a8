package main

import (
	"bytes"
	"context"
	"net"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

// ended waits for a process and returns its code.
func ended(t *testing.T, cmd *exec.Cmd, within time.Duration, log *bytes.Buffer) int {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(within):
		_ = cmd.Process.Kill()
		<-done
		t.Errorf("it still ran after %s; stderr:\n%s", within, log.String())
	}
	return cmd.ProcessState.ExitCode()
}

// TestWorkersThatCanNeverAttach end at the first contact and say why.
func TestWorkersThatCanNeverAttach(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	cli(t, "", "certs", "--dir", dir).wantOK(t)
	cli(t, "", "certs", "--dir", at("others")).wantOK(t)
	httpAddr := up(t, "--store", "memory:", "--slots", "0", "--tls-cert", at("server.pem"), "--tls-key", at("server-key.pem"),
		"--tls-client-ca", at("ca.pem"))
	grpcAddr := cliAddress(t)
	for args, want := range map[string]string{
		"--dispatcher " + grpcAddr + " --tls-ca " + at("others/ca.pem"): "certificate signed by unknown authority",
		"--dispatcher " + grpcAddr:                                      "this listener speaks TLS and the client plain text",
		"--dispatcher " + httpAddr + " --tls-ca " + at("ca.pem"):        "8000 is the REST port; gRPC is 50051",
	} {
		cmd := process(t, append([]string{"worker", "--slots", "1", "--no-provision", "--data-dir", t.TempDir()}, strings.Fields(args)...)...)
		var log bytes.Buffer
		cmd.Stderr = &log
		if code := ended(t, cmd, 30*time.Second, &log); code != exitFailed || !strings.Contains(log.String(), want) {
			t.Errorf("treadle worker %s: exit code %d, want 1 and %q; stderr:\n%s", args, code, want, log.String())
		}
	}
	// Beside one that may come back, no other ends a worker.
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := lis.Addr().String()
	_ = lis.Close()
	cmd := process(t, "worker", "--slots", "1", "--no-provision", "--data-dir", t.TempDir(), "--tls-ca", at("others/ca.pem"), "--dispatcher", grpcAddr+","+gone)
	said := &signalled{mark: "not connected to a dispatcher", seen: make(chan struct{})}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-said.seen:
	case <-time.After(30 * time.Second):
		t.Error("it says nothing")
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v; stderr:\n%s", err, said.text.String())
	}
}

// cliAddress is where the command lines of the test go.
func cliAddress(t *testing.T) string {
	t.Helper()
	c, err := treadle.Dial("")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.Address()
}

// TestMapIsInterruptedTwice leaves at once and says how to find what goes on.
func TestMapIsInterruptedTwice(t *testing.T) {
	cancelling := make(chan struct{}, 100)
	srv := fake(t, grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if strings.HasSuffix(info.FullMethod, "CancelTask") {
			cancelling <- struct{}{}
			<-ctx.Done()
		}
		return next(ctx, req)
	}))
	started := hang(srv)
	cmd := process(t, "map", "hang", "1", "2")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	<-started
	_ = cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-cancelling:
	case <-time.After(20 * time.Second):
		t.Error("nothing was cancelled")
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait() // the code tells
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(errOut.String(), "treadle tasks --function hang --filter 'create_time > ") {
		t.Errorf("exit code %d; stderr:\n%s", code, errOut.String())
	}
}

// TestMapEndsWithItsTerminal: what it started is cancelled, as by Ctrl-C.
func TestMapEndsWithItsTerminal(t *testing.T) {
	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("SIGHUP is ignored here, and children inherit that")
	}
	cancelled := make(chan struct{}, 100)
	srv := fake(t, grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if strings.HasSuffix(info.FullMethod, "CancelTask") {
			cancelled <- struct{}{}
		}
		return next(ctx, req)
	}))
	started := hang(srv)
	cmd := process(t, "map", "hang", "1", "2")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	<-started
	_ = cmd.Process.Signal(syscall.SIGHUP)
	_ = cmd.Wait() // the code tells
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || len(cancelled) != 2 {
		t.Errorf("exit code %d, %d tasks cancelled, want %d and 2", code, len(cancelled), exitInterrupted)
	}
}

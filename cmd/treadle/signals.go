package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// errHangup is the cause of the context that a closed terminal ended.
var errHangup = errors.New("the terminal was closed")

var surviveOnce sync.Once

// surviveClosedPipes makes writes to a pipe that nobody reads fail, where they would end the
// program: a server is worth more than its log. Client verbs keep the default, so that
// `treadle map f | head -1` ends. The signal is caught and not ignored, as children
// would inherit that.
func surviveClosedPipes() {
	surviveOnce.Do(func() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) })
}

// onHangup calls heard for each SIGHUP until stop, which waits for what it started; heard may end
// the context. One that was started with SIGHUP ignored, as by nohup, keeps ignoring it.
func onHangup(parent context.Context, heard func(context.CancelCauseFunc)) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	if signal.Ignored(syscall.SIGHUP) {
		return ctx, func() { cancel(nil) }
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-hangups:
				heard(cancel)
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(hangups)
		close(done)
		<-stopped
		cancel(nil)
	}
}

// endAtHangup ends the context when the terminal is closed, as Ctrl-C does: for verbs that
// have something to undo.
func endAtHangup(parent context.Context) (ctx context.Context, stop func()) {
	return onHangup(parent, func(cancel context.CancelCauseFunc) { cancel(errHangup) })
}

// hearHangups says what SIGHUP means to a server or worker: the end, in order, of one that
// was started at a terminal; of any other one to read its files again.
func (n *node) hearHangups(parent context.Context) (ctx context.Context, stop func()) {
	return onHangup(parent, n.hangUp)
}

func (n *node) hangUp(end context.CancelCauseFunc) {
	if n.terminal {
		n.Log.Info("the terminal was closed: shutting down as on SIGTERM")
		end(errHangup)
		return
	}
	reload := n.reload.Load()
	if reload == nil {
		n.Log.Info("SIGHUP: no token or certificate files to reload")
		return
	}
	if err := (*reload)(); err != nil {
		n.Log.Error("reload failed; the previous tokens or certificates stay in use", "error", err)
		return
	}
	n.Log.Info("SIGHUP: tokens and certificates reloaded")
}

package server

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// limitListener accepts a bounded number of connections. One too many is closed at once,
// which its client sees and tries again; left waiting in the system's queue it would
// hang without a word.
type limitListener struct {
	net.Listener
	limit   int64
	name    string
	log     *slog.Logger
	open    atomic.Int64
	refused atomic.Int64
	// told is when the log was last told, in nanoseconds.
	told atomic.Int64
}

// tellEvery keeps a flood out of the log.
const tellEvery = 10 * time.Second

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.limit {
			return &limitedConn{Conn: conn, owner: l}, nil
		}
		l.open.Add(-1)
		l.refused.Add(1)
		conn.Close()
		if now, last := time.Now().UnixNano(), l.told.Load(); now-last >= int64(tellEvery) && l.told.CompareAndSwap(last, now) {
			l.log.Warn("connections are refused: as many as --max-connections allows are open", "listener", l.name, "limit", l.limit)
		}
	}
}

// limitedConn gives its place back once, when it is closed.
type limitedConn struct {
	net.Conn
	owner *limitListener
	once  sync.Once
}

// CloseWrite ends what is sent and leaves the other direction open, which net/http does
// before it closes a connection with a body that nobody read.
func (c *limitedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { c.owner.open.Add(-1) })
	return c.Conn.Close()
}

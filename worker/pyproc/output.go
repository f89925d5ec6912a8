//go:build unix

package pyproc

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	outputBuffer = 32 << 10
	// keptOutput is how much of what a starting runner says is kept for error messages.
	keptOutput = 4 << 10
)

// output is the agent's end of a runner's stdout and stderr. A goroutine (loop) reads it
// all the time, so that no process ever waits for the agent; what it reads goes to the
// attempt that runs, or nowhere.
type output struct {
	file *os.File
	raw  syscall.RawConn
	done chan struct{} // closed when loop has ended

	// mu makes reading and delivering one step: who holds it knows that everything that was
	// read has been delivered.
	mu      sync.Mutex
	paused  *sync.Cond // on mu; what loop waits on while pausing is set
	pausing bool
	sink    func([]byte)
	buf     []byte
	keep    bool
	kept    []byte
}

// newOutput returns the output and the end for the process.
func newOutput() (*output, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	raw, err := r.SyscallConn()
	if err != nil {
		closeAll(r, w)
		return nil, nil, err
	}
	o := &output{file: r, raw: raw, done: make(chan struct{}), buf: make([]byte, outputBuffer), keep: true}
	o.paused = sync.NewCond(&o.mu)
	return o, w, nil
}

// loop reads until the last writer is gone.
func (o *output) loop() {
	defer close(o.done)
	for {
		eof := false
		err := o.raw.Read(func(fd uintptr) bool {
			n, again := o.readOnce(fd)
			eof = n == 0 && !again
			return !again
		})
		if err != nil || eof {
			return
		}
	}
}

// readOnce reads and delivers once; again asks to be called when there is more.
func (o *output) readOnce(fd uintptr) (n int, again bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for o.pausing {
			o.paused.Wait()
		}
		n, err := unix.Read(int(fd), o.buf)
		switch err {
		case nil:
			o.deliver(o.buf[:n])
			return n, false
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, true
		default:
			return 0, false
		}
	}
}

func (o *output) deliver(b []byte) {
	if len(b) == 0 {
		return
	}
	if o.keep {
		o.kept = append(o.kept, b...)
		if drop := len(o.kept) - keptOutput; drop > 0 {
			o.kept = append(o.kept[:0], o.kept[drop:]...)
		}
	}
	if o.sink != nil {
		o.sink(b)
	}
}

// begin gives an attempt the output from now on. Nothing of an earlier attempt can be in
// the pipe: end has read it, and a process that still writes is not kept.
func (o *output) begin(sink func([]byte)) {
	o.mu.Lock()
	o.sink = sink
	o.mu.Unlock()
}

// end delivers what is in the pipe at this moment and takes the output back.
func (o *output) end() {
	o.drain()
	o.mu.Lock()
	o.sink = nil
	o.mu.Unlock()
}

// pause leaves the output in the pipe from now on, but for drain: where several attempts
// follow each other by themselves, only the order of events tells whose it is.
func (o *output) pause() {
	o.mu.Lock()
	o.pausing = true
	o.mu.Unlock()
}

// resume ends pause.
func (o *output) resume() {
	o.mu.Lock()
	o.pausing = false
	o.mu.Unlock()
	o.paused.Broadcast()
}

// drain reads what is in the pipe now, and no more: a process that never stops writing
// cannot hold it up.
func (o *output) drain() {
	// An error means that the file is closed: then loop has read everything.
	_ = o.raw.Control(func(fd uintptr) {
		o.mu.Lock()
		defer o.mu.Unlock()
		left, err := unix.IoctlGetInt(int(fd), fionread)
		for err == nil && left > 0 {
			var n int
			n, err = unix.Read(int(fd), o.buf[:min(left, len(o.buf))])
			if n <= 0 {
				return
			}
			o.deliver(o.buf[:n])
			left -= n
		}
	})
}

// finish waits until everything that a dead process wrote has been delivered. A writer
// that cannot be killed does not hold it up for long.
func (o *output) finish() {
	o.file.SetReadDeadline(time.Now().Add(exitGrace))
	<-o.done
	o.file.Close()
}

// stopKeeping ends the notes for lastWords.
func (o *output) stopKeeping() {
	o.mu.Lock()
	o.keep, o.kept = false, nil
	o.mu.Unlock()
}

// lastWords returns what a runner said before it failed to start, for an error message.
func (o *output) lastWords() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := strings.TrimSpace(string(o.kept))
	if text == "" {
		return ""
	}
	return " and said: " + text
}

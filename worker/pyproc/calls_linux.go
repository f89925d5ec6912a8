package pyproc

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// canTakeBack says that calls which the runner has not read can be taken back.
const canTakeBack = true

// callChannel makes the channel that calls travel on: a socket that keeps messages apart.
// A runner reads one message at a time, so whatever is still in the channel has not been
// looked at, and the kernel gives each message to one reader: to the runner, or back to
// the agent through its copy of the runner's end.
func callChannel() (theirs, ours *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	// Ours alone: the flag belongs to an end, and the runner waits in its reads.
	if err := unix.SetNonblock(fds[1], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), "runner-calls"), os.NewFile(uintptr(fds[1]), "calls"), nil
}

// offer sends a small call unless the channel is full.
func (r *runner) offer(frame []byte) bool {
	raw, err := r.to.SyscallConn()
	if err != nil {
		return false
	}
	sent := false
	_ = raw.Control(func(fd uintptr) {
		for {
			switch err := unix.Send(int(fd), frame, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); {
			case errors.Is(err, unix.EINTR):
				continue
			default:
				sent = err == nil
				return
			}
		}
	})
	return sent
}

// takeBack takes the calls that the runner has not read out of the channel and returns
// their sequence numbers in order. Each was sent as one message.
func (r *runner) takeBack() (seqs []uint32) {
	raw, err := r.theirs.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) {
		var head [headSize]byte
		for {
			n, _, err := unix.Recvfrom(int(fd), head[:], unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EINTR):
			case err != nil || n < headSize:
				return
			default:
				seqs = append(seqs, binary.LittleEndian.Uint32(head[4:]))
			}
		}
	})
	return seqs
}

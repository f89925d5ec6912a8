//go:build unix

package pyproc

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// folderLock is the file in an agent's folder that is locked while the agent lives.
const folderLock = "lock"

// claimFolder makes an agent's folder and locks it for the life of the process, and removes
// those beside it whose process is gone. release removes it.
func claimFolder(dir string, log *slog.Logger) (release func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for the runner: %w", err)
	}
	path := filepath.Join(dir, folderLock)
	// Locked before it has its name: nobody takes it for one whose process is gone.
	lock, err := os.CreateTemp(dir, folderLock+"-")
	if err != nil {
		return nil, fmt.Errorf("lock the runner's folder: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = os.Rename(lock.Name(), path)
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock the runner's folder: %w", err)
	}
	removeAbandoned(filepath.Dir(dir), filepath.Base(dir), log)
	return func() error {
		defer lock.Close()
		return os.RemoveAll(dir)
	}, nil
}

// removeAbandoned removes the folders of agents that are gone. One without a lock is not
// known to be such a folder, and stays.
func removeAbandoned(parent, own string, log *slog.Logger) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, entry := range entries {
		dir := filepath.Join(parent, entry.Name())
		if entry.Name() == own || !entry.IsDir() {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(dir, folderLock), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			if err := os.RemoveAll(dir); err != nil {
				log.Warn("the folder of a worker that is gone cannot be removed", "folder", dir, "error", err)
			}
		}
		lock.Close()
	}
}

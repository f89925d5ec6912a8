package main

import (
	"errors"

	"golang.org/x/sys/windows"
)

var errNotHere = errors.New("there is none on Windows")

// freeSpace is what this user may still write to the drive of a folder, in bytes.
func freeSpace(dir string) (int64, error) {
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	err = windows.GetDiskFreeSpaceEx(path, &free, nil, nil)
	return int64(free), err
}

// fileLimit is how many files a process may have open.
func fileLimit() (soft, hard uint64, err error) { return 0, 0, errNotHere }

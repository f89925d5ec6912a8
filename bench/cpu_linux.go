package bench

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of /proc: Linux shows USER_HZ to programs, 100 on every
// architecture that Go knows.
const tick = time.Second / 100

// ownTime is the processor time of this process.
func ownTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// processTime is the processor time of the given processes with all their children, dead or
// alive, this one left out.
func processTime(pids []int) time.Duration {
	var total time.Duration
	stats := processes()
	counted := map[int]bool{os.Getpid(): true}
	var count func(pid int)
	count = func(pid int) {
		if s, ok := stats[pid]; ok && !counted[pid] {
			counted[pid] = true
			total += s.time
			for child, c := range stats {
				if c.parent == pid {
					count(child)
				}
			}
		}
	}
	for _, pid := range pids {
		count(pid)
	}
	return total
}

// residentBytes is the memory that the given processes have in RAM; 0 where one of them cannot
// be read.
func residentBytes(pids []int) int64 {
	var total int64
	for _, pid := range pids {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
		if err != nil {
			return 0
		}
		fields := strings.Fields(string(data)) // size resident shared ...
		if len(fields) < 2 {
			return 0
		}
		pages, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return 0
		}
		total += pages * int64(os.Getpagesize())
	}
	return total
}

type processStat struct {
	parent int
	// time includes that of the children that were waited for.
	time time.Duration
}

// processes reads /proc. Processes that end meanwhile are left out.
func processes() map[int]processStat {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	out := map[int]processStat{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// pid (name, which may hold anything) state ppid ... utime stime cutime cstime
		text := string(data)
		fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		if len(fields) < 15 {
			continue
		}
		var s processStat
		if s.parent, err = strconv.Atoi(fields[1]); err != nil {
			continue
		}
		for _, f := range fields[11:15] {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				continue
			}
			s.time += time.Duration(n) * tick
		}
		out[pid] = s
	}
	return out
}

// machineTime is the time that all processors together were busy since the start of
// the machine.
func machineTime() time.Duration {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0
	}
	var total time.Duration
	for _, i := range []int{1, 2, 3, 6, 7} { // user, nice, system, irq, softirq
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0
		}
		total += time.Duration(n) * tick
	}
	return total
}

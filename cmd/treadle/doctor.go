package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/internal/tlsfiles"
	"github.com/treadle-dev/treadle/worker/pyproc"
)

// Verdicts of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

// Thresholds of the checks.
const (
	doctorTimeout = 30 * time.Second // of all checks together; starting Python may take long
	dialTimeout   = 2 * time.Second
	failSpace     = 64 << 20
	warnSpace     = 1 << 30
	failFiles     = 256
	warnFiles     = 4096
	warnSkew      = 2 * time.Second
)

// finding is what one check found.
type finding struct {
	Check   string `json:"check"`
	Verdict string `json:"verdict"`
	Detail  string `json:"detail"`
	// Fix says what to do about a verdict other than ok.
	Fix string `json:"fix,omitempty"`
}

func newDoctorCommand() *cobra.Command {
	d := &doctor{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check the installation: server, ports, data folder, Python, limits",
		Long: `Check what Treadle needs on this machine, and the server at --address when one is there.
Each line is ok, warn or fail, with what to do about it. The exit code is 1 when
something fails. Nothing is installed or changed.`,
		Example: `  treadle doctor
  treadle doctor --python ~/venv/bin/python
  treadle doctor --json | jq 'select(.verdict != "ok")'`,
		Args: arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), doctorTimeout)
			defer cancel()
			failed := false
			for _, check := range d.checks(cmd) {
				f := check(ctx)
				failed = failed || f.Verdict == checkFail
				if err := f.print(cmd.OutOrStdout(), asJSON); err != nil {
					return err
				}
			}
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if failed {
				return &silentError{exitFailed}
			}
			return nil
		},
		Annotations: map[string]string{clientMark: "true"},
	}
	fl := cmd.Flags()
	fl.StringVar(&d.dataDir, "data-dir", defaultDataDir(), "where 'treadle up' keeps its state")
	fl.StringVar(&d.httpAddr, "http-addr", "127.0.0.1:8000", "where 'treadle up' listens for REST")
	fl.StringVar(&d.python, "python", "python3", "Python interpreter, a path or a name on PATH")
	addJSONFlag(cmd, &asJSON, "print each check, one JSON object a line")
	bindEnv(cmd)
	return cmd
}

func (f finding) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, f)
	}
	_, err := fmt.Fprintf(w, "%-4s  %-13s  %s\n", f.Verdict, f.Check, printable(f.Detail))
	if err == nil && f.Fix != "" {
		_, err = fmt.Fprintf(w, "      %-13s  fix: %s\n", "", f.Fix)
	}
	return err
}

// doctor runs the checks, one after the other.
type doctor struct {
	dataDir, httpAddr, python string

	// serverUp is set by the check of the server, before those of the ports.
	serverUp bool
}

func (d *doctor) checks(cmd *cobra.Command) []func(context.Context) finding {
	return []func(context.Context) finding{
		func(ctx context.Context) finding { return d.checkServer(ctx, cmd) },
		func(ctx context.Context) finding { return d.checkHTTP(ctx, cmd) },
		d.checkDataDir, d.checkSpace, d.checkPython, d.checkPackages, d.checkMemoryLimit, d.checkFiles, d.checkClock,
	}
}

func found(check, verdict, fix, format string, args ...any) finding {
	return finding{Check: check, Verdict: verdict, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

func (d *doctor) checkServer(ctx context.Context, cmd *cobra.Command) finding {
	const name = "server"
	c, err := dialFor(cmd, false)
	if err != nil {
		return found(name, checkFail, "correct --address or "+treadle.EnvAddress, "%v", err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	info, err := c.Info(ctx)
	if err != nil {
		return d.noServer(ctx, c.Address(), err)
	}
	d.serverUp = true
	detail := fmt.Sprintf("%s answers: version %s, durability %s, payloads to %s, results kept %s",
		c.Address(), info.Version, info.Durability, formatBytes(int64(info.MaxPayload)), info.Retention)
	if mine := versionOf().Version; info.Version != mine {
		return found(name, checkWarn, "use one version on both sides", "%s; this is %s", detail, mine)
	}
	workers, err := c.Workers(ctx)
	if err != nil {
		return found(name, checkFail, "look into the server's log", "%s, but does not list workers: %v", detail, err)
	}
	slots := 0
	for _, w := range workers {
		slots += w.Slots
	}
	if slots == 0 {
		fix := "start one: treadle worker --dispatcher " + c.Address()
		if strings.HasPrefix(info.Durability, "redis") {
			// Whether this server dispatches, too, only a worker would find out.
			fix = "start 'treadle dispatcher' on the same store, and a worker that dials it: treadle worker --dispatcher HOST:PORT of the dispatcher" +
				" (" + c.Address() + " when that is 'treadle up')"
		}
		return found(name, checkWarn, fix, "%s, but no worker is attached", detail)
	}
	return found(name, checkOK, "", "%s; workers: %d, slots: %d", detail, len(workers), slots)
}

// noServer tells an empty port from one where somebody else listens.
func (d *doctor) noServer(ctx context.Context, address string, err error) finding {
	const name = "server"
	if !errors.Is(err, treadle.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		return found(name, checkFail, "see whether the address is Treadle's and the token is right", "%s answers: %v", address, err)
	}
	var e *treadle.Error
	if errors.As(err, &e) && strings.HasPrefix(e.Message, atPrefix(address)) {
		return found(name, checkFail, "correct --address or --"+caFlag+", or their variables", "%s", e.Message)
	}
	conn, dialErr := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
	if dialErr == nil {
		_ = conn.Close()
		return found(name, checkFail, "stop that program, or start Treadle with another --grpc-addr",
			"somebody listens on %s, but it is no Treadle server: %v", address, err)
	}
	return found(name, checkWarn, "start one: treadle up", "nobody answers at %s", address)
}

func (d *doctor) checkHTTP(ctx context.Context, cmd *cobra.Command) finding {
	const name = "http port"
	var secure *tls.Config
	if ca := globalFlag(cmd, caFlag); ca != "" {
		var err error
		if secure, err = tlsfiles.Client(ca, "", ""); err != nil {
			return found(name, checkFail, "correct --"+caFlag, "%v", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", d.httpAddr); err == nil {
		_ = lis.Close()
		if d.serverUp {
			return found(name, checkWarn, "name it by --http-addr if REST is wanted here", "nobody listens on %s", d.httpAddr)
		}
		return found(name, checkOK, "", "%s is free", d.httpAddr)
	}
	skew, err := httpClock(ctx, d.httpAddr, secure)
	if err != nil {
		return found(name, checkFail, "stop that program, or start Treadle with another --http-addr",
			"%s is taken, and it is not Treadle that answers: %v", d.httpAddr, err)
	}
	if skew > warnSkew {
		return found(name, checkWarn, "synchronize the clocks (NTP)", "%s answers; its clock is %s away from this one", d.httpAddr, span(skew))
	}
	return found(name, checkOK, "", "%s answers", d.httpAddr)
}

// httpClock asks a Treadle server for its health and returns how far its clock is
// away; the header counts whole seconds.
func httpClock(ctx context.Context, addr string, secure *tls.Config) (time.Duration, error) {
	scheme := "http"
	if secure != nil {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+addr+"/healthz", nil)
	if err != nil {
		return 0, err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: secure, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 200)) // "... to an HTTPS server", for example
		return 0, fmt.Errorf("/healthz answers %s: %s", resp.Status, bytes.TrimSpace(said))
	}
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, nil // a server may leave it out
	}
	return max(time.Since(theirs).Abs()-time.Second, 0), nil
}

func (d *doctor) checkDataDir(context.Context) finding {
	const name = "data folder"
	if d.dataDir == "" {
		return found(name, checkFail, "name one by --data-dir", "this user has no home directory")
	}
	// The folder may not be there yet: then its nearest parent must take it.
	dir, info, err := nearest(d.dataDir)
	if err != nil {
		return found(name, checkFail, "name another folder by --data-dir", "%v", err)
	}
	if !info.IsDir() {
		return found(name, checkFail, "name a folder by --data-dir", "%s is a file", dir)
	}
	probe, err := os.CreateTemp(dir, ".treadle-doctor-*")
	if err != nil {
		return found(name, checkFail, "give this user the right to write there, or name another --data-dir", "%v", err)
	}
	_, err = probe.WriteString("x")
	err = errors.Join(err, probe.Sync(), probe.Close(), os.Remove(probe.Name()))
	if err != nil {
		return found(name, checkFail, "free space, or name another --data-dir", "%v", err)
	}
	detail := d.dataDir
	if dir != d.dataDir {
		detail += " (made when needed)"
	}
	return found(name, checkOK, "", "%s can be written", detail)
}

// nearest returns the folder itself, or its first parent that is there.
func nearest(dir string) (string, os.FileInfo, error) {
	for {
		info, err := os.Stat(dir)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return dir, info, err
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return dir, nil, err
		}
		dir = parent
	}
}

func (d *doctor) checkSpace(context.Context) finding {
	const name = "disk space"
	dir, _, err := nearest(d.dataDir)
	if err != nil {
		return found(name, checkFail, "name another folder by --data-dir", "%v", err)
	}
	free, err := freeSpace(dir)
	switch {
	case err != nil:
		return found(name, checkWarn, "look yourself", "not known: %v", err)
	case free < failSpace:
		return found(name, checkFail, "free space, or name another --data-dir", "%s free at %s", formatBytes(free), dir)
	case free < warnSpace:
		return found(name, checkWarn, "free space, or shorten --retention", "%s free at %s", formatBytes(free), dir)
	}
	return found(name, checkOK, "", "%s free at %s", formatBytes(free), dir)
}

func (d *doctor) checkPython(ctx context.Context) finding {
	const name = "python"
	in, err := d.interpreter(ctx)
	if err != nil {
		return found(name, checkFail, "install Python 3.9 or newer, or name one by --python PATH", "%v", err)
	}
	return found(name, checkOK, "", "%s is %s", in.Path, in.Version)
}

func (d *doctor) interpreter(ctx context.Context) (pyproc.Interpreter, error) {
	cfg := pyproc.Config{Python: d.python, NoProvision: true}
	if cache, err := os.UserCacheDir(); err == nil {
		cfg.CacheDir = filepath.Join(cache, "treadle")
	}
	return pyproc.Probe(ctx, cfg)
}

func (d *doctor) checkPackages(ctx context.Context) finding {
	const name = "packages"
	in, err := d.interpreter(ctx)
	if err != nil {
		return found(name, checkWarn, "see above", "not known without Python")
	}
	var missing []string
	for pkg, version := range map[string]string{"dill": in.Dill, "cloudpickle": in.Cloudpickle} {
		if version == "" {
			missing = append(missing, pkg)
		}
	}
	switch {
	case len(missing) == 0:
		return found(name, checkOK, "", "dill %s and cloudpickle %s", in.Dill, in.Cloudpickle)
	case in.Libs != "":
		return found(name, checkOK, "", "installed for this interpreter in %s", in.Libs)
	}
	return found(name, checkWarn, fmt.Sprintf("%s -m pip install dill cloudpickle; or leave it to the worker, which installs them once", in.Path),
		"%s lacks %s: functions pickled with them need it", in.Path, strings.Join(missing, " and "))
}

func (d *doctor) checkMemoryLimit(context.Context) finding {
	const name = "memory limit"
	l := pyproc.ProbeLimits()
	switch {
	case strings.HasPrefix(l.Mechanism, "cgroup"):
		return found(name, checkOK, "", "%s: %s", l.Mechanism, l.Detail)
	case l.Mechanism == "RLIMIT_AS":
		return found(name, checkWarn, "give this user a delegated memory control group (systemd: Delegate=memory) if --memory-limit is used",
			"RLIMIT_AS, which counts address space and not memory: %s", l.Detail)
	}
	return found(name, checkWarn, "do without --memory-limit here", "%s: %s", l.Mechanism, l.Detail)
}

func (d *doctor) checkFiles(context.Context) finding {
	const name = "open files"
	soft, hard, err := fileLimit()
	switch {
	case err != nil:
		return found(name, checkOK, "", "no limit is known: %v", err)
	case hard < failFiles:
		return found(name, checkFail, "raise it: ulimit -n 65536", "at most %d", hard)
	case hard < warnFiles:
		return found(name, checkWarn, "raise it for hundreds of workers or clients: ulimit -n 65536", "at most %d", hard)
	}
	return found(name, checkOK, "", "%d, which a server raises to %d", soft, hard)
}

// checkClock catches machines that woke up without a clock. Leases are counted by
// one clock, so that differences between machines do no harm; a year of 1970 in
// every record and id does.
func (d *doctor) checkClock(context.Context) finding {
	const name = "clock"
	now := time.Now()
	if now.Year() < 2026 {
		return found(name, checkFail, "set the clock (NTP): ids and records carry the time", "it is not %s", now.Format(time.RFC3339))
	}
	return found(name, checkOK, "", "%s", now.Format(time.RFC3339))
}

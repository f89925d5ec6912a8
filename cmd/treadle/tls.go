package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/internal/tlsfiles"
	"github.com/treadle-dev/treadle/link/linkpb"
	"github.com/treadle-dev/treadle/server"
	"github.com/treadle-dev/treadle/server/auth"
)

// networkRate is the rate limit of a server that other machines reach, unless it was told
// another: more than anybody needs, and less than what a flood needs.
const networkRate = 20_000

// registerSecurity adds the flags that say who may reach a process, and how.
func (f *serverFlags) registerSecurity(cmd *cobra.Command, r role) {
	fl := cmd.Flags()
	if r == roleWorker {
		fl.StringVar(&f.TLSCA, "tls-ca", "", "CA of the dispatchers' certificates, in PEM, or 'system'; enables TLS (default plain text)")
		fl.StringVar(&f.TLSCert, "tls-cert", "", "client certificate of the worker, in PEM")
		fl.StringVar(&f.TLSKey, "tls-key", "", "private key of --tls-cert, in PEM")
		fl.BoolVar(&f.Insecure, "insecure", false, "send the token to other machines, and serve --http-addr to them, without TLS")
		return
	}
	fl.StringVar(&f.TokenFile, "token-file", "", "file of the tokens that callers need, managed by 'treadle token' (default: no token needed)")
	fl.StringVar(&f.TLSCert, "tls-cert", "", "certificate of all listeners, in PEM; enables TLS (default plain text)")
	fl.StringVar(&f.TLSKey, "tls-key", "", "private key of --tls-cert, in PEM")
	if r != roleServer {
		fl.StringVar(&f.TLSClientCA, "tls-client-ca", "", "CA of workers' certificates, in PEM; workers must then show one")
	}
	fl.IntVar(&f.MaxConnections, "max-connections", server.DefaultMaxConnections, "open connections of each listener")
	f.RateLimit = -1
	fl.Var((*ratePerSecond)(&f.RateLimit), "rate-limit",
		fmt.Sprintf("calls of one token a second, by cost, or off (default off on loopback, else %d)", networkRate))
	fl.IntVar(&f.QuotaWaited, "quota-waited", fabric.DefaultQuotaWaited, "tasks that the calls of one token wait for at a time; 0 is no limit")
	// At a dispatcher they are for what running tasks submit, for the token of each.
	f.registerQuotas(cmd)
	fl.BoolVar(&f.Insecure, "insecure", false, "allow addresses that other machines can reach without TLS or tokens")
}

// registerQuotas adds what one token may have in the store.
func (f *serverFlags) registerQuotas(cmd *cobra.Command) {
	fl := cmd.Flags()
	f.Quotas = fabric.DefaultQuotas
	fl.IntVar(&f.Quotas.Tasks, "quota-tasks", f.Quotas.Tasks, "unfinished tasks of one token; 0 is no limit")
	fl.Var((*byteSize)(&f.Quotas.Bytes), "quota-bytes", "stored bytes of one token: arguments, results and functions; 0 is no limit")
	fl.IntVar(&f.Quotas.Functions, "quota-functions", f.Quotas.Functions, "registered functions of one token; 0 is no limit")
	fl.IntVar(&f.Quotas.Queues, "quota-queues", f.Quotas.Queues, "queue names in use by tasks and functions of one token; 0 is no limit")
}

func (f *serverFlags) validateQuotas() error {
	for _, q := range []struct {
		flag  string
		value int
	}{{"--quota-tasks", f.Quotas.Tasks}, {"--quota-functions", f.Quotas.Functions}, {"--quota-queues", f.Quotas.Queues}} {
		if q.value < 0 {
			return fmt.Errorf("%s %d: want 0 (no limit) or more", q.flag, q.value)
		}
	}
	return nil
}

// validateSecurity refuses what would open a process to others.
func (f *serverFlags) validateSecurity(r role) error {
	switch {
	case (f.TLSCert == "") != (f.TLSKey == ""):
		return errors.New("--tls-cert and --tls-key go together: give both or neither")
	case f.TLSClientCA != "" && f.TLSCert == "":
		return errors.New("--tls-client-ca without --tls-cert and --tls-key: workers show certificates over TLS only")
	case r == roleWorker && f.TLSCert != "" && f.TLSCA == "":
		return errors.New("--tls-cert without --tls-ca: name the CA of the dispatchers (or 'system')")
	case r != roleWorker && f.MaxConnections < 1:
		return fmt.Errorf("--max-connections %d: want at least 1", f.MaxConnections)
	case f.QuotaWaited < 0:
		return fmt.Errorf("--quota-waited %d: want 0 (no limit) or more", f.QuotaWaited)
	}
	if err := f.validateQuotas(); err != nil {
		return err
	}
	if r == roleWorker {
		return f.validateWorkerSecurity()
	}
	flag, addr := f.outward()
	var missing, fix []string
	if f.TLSCert == "" {
		missing, fix = append(missing, "TLS"), append(fix, "--tls-cert and --tls-key ('treadle certs' makes them)")
	}
	if f.TokenFile == "" {
		missing, fix = append(missing, "tokens"), append(fix, "--token-file ('treadle token create' makes one)")
	}
	if addr == "" || len(missing) == 0 || f.Insecure {
		return nil
	}
	return fmt.Errorf("%s %s is not loopback: other machines could reach it without %s, and anyone who reaches it can run code here; "+
		"give %s, or use 127.0.0.1, or set --insecure to allow it", flag, addr, strings.Join(missing, " and "), strings.Join(fix, " and "))
}

func (f *serverFlags) validateWorkerSecurity() error {
	if flag, addr := f.outward(); addr != "" && !f.Insecure {
		return fmt.Errorf("%s %s is not loopback: health and metrics of a worker have neither TLS nor tokens; "+
			"use 127.0.0.1, or set --insecure to allow it", flag, addr)
	}
	return nil
}

// outward returns the first listener that other machines can reach; "" when none can.
func (f *serverFlags) outward() (flag, addr string) {
	for _, a := range [][2]string{{"--grpc-addr", f.GRPCAddr}, {"--http-addr", f.HTTPAddr}} {
		if host, err := splitAddr(a[1]); err == nil && !isLoopback(host) {
			return a[0], a[1]
		}
	}
	return "", ""
}

// secure puts tokens, TLS and limits into the configuration of a server, and sets what
// reads their files again.
func (n *node) secure(cfg *server.Config) (err error) {
	var reloads []func() error
	if n.TokenFile != "" {
		if cfg.Tokens, err = auth.Open(n.TokenFile, n.Log, time.Now); err != nil {
			return fmt.Errorf("--token-file: %w", err)
		}
		reloads = append(reloads, cfg.Tokens.Reload)
	}
	if n.TLSCert != "" {
		if cfg.TLS, err = tlsfiles.OpenServer(n.TLSCert, n.TLSKey, n.TLSClientCA, n.Log); err != nil {
			return fmt.Errorf("--tls-cert, --tls-key, --tls-client-ca: %w", err)
		}
		reloads = append(reloads, cfg.TLS.Reload)
		cfg.WorkerCertificates = n.TLSClientCA != ""
	}
	flag, addr := n.outward()
	if cfg.Insecure = addr != "" && (cfg.TLS == nil || cfg.Tokens == nil); cfg.Insecure {
		n.Log.Warn("INSECURE: other machines can reach this process, and anyone who reaches it can run code here",
			"flag", flag, "address", addr, "tls", cfg.TLS != nil, "tokens", cfg.Tokens != nil)
	}
	cfg.MaxConnections, cfg.RateLimit, cfg.QuotaWaited = n.MaxConnections, n.RateLimit, orNone(n.QuotaWaited)
	cfg.Quotas = n.Quotas
	if n.RateLimit < 0 { // nobody said
		cfg.RateLimit = 0
		if addr != "" {
			cfg.RateLimit = networkRate
		}
	}
	if len(reloads) == 0 {
		return nil
	}
	reload := func() error {
		var errs []error
		for _, r := range reloads {
			errs = append(errs, r())
		}
		return errors.Join(errs...)
	}
	n.reload.Store(&reload)
	return nil
}

// dialOptions are how a worker dials: in plain text, or with TLS; with TREADLE_TOKEN when
// it is set. A token comes by the environment alone, as arguments can be read by
// everybody on the machine.
func (n *node) dialOptions() ([]grpc.DialOption, error) {
	var cfg *tls.Config
	if n.TLSCA != "" {
		var err error
		if cfg, err = tlsfiles.Client(n.TLSCA, n.TLSCert, n.TLSKey); err != nil {
			return nil, fmt.Errorf("--tls-ca, --tls-cert, --tls-key: %w", err)
		}
	}
	options, err := linkpb.Security(cfg, strings.TrimSpace(os.Getenv(treadle.EnvToken)), n.Insecure, n.Dispatchers)
	if err != nil {
		return nil, &usageError{err}
	}
	return options, nil
}

// ratePerSecond is a flag's value: a number, or "off". It is negative until it is set.
type ratePerSecond float64

// Set implements pflag.Value.
func (r *ratePerSecond) Set(text string) error {
	if text == "off" || text == "none" {
		*r = 0
		return nil
	}
	var v float64
	if _, err := fmt.Sscanf(text+"\n", "%g\n", &v); err != nil || v < 0 || v > 1e9 {
		return errors.New("want a number a second, for example 1000, or off")
	}
	*r = ratePerSecond(v)
	return nil
}

// Type implements pflag.Value: the word in the help.
func (r *ratePerSecond) Type() string { return "rate" }

func (r *ratePerSecond) String() string {
	if *r < 0 {
		return ""
	}
	return fmt.Sprintf("%g", float64(*r))
}

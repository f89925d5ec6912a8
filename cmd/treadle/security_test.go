package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/server"
	"github.com/treadle-dev/treadle/server/auth"
)

func TestTokenCommands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.json")
	made := cli(t, "", "token", "create", "--role", "worker", "--name", "gpu hosts", "--expires", "90d", "--file", file)
	secret := made.wantOK(t)
	if !strings.HasPrefix(secret, auth.Prefix) || strings.Contains(secret, "\n") || strings.Contains(made.errOut, secret) {
		t.Errorf("stdout %q, stderr %q", secret, made.errOut)
	}
	t.Setenv(envTokenFile, file)
	var second struct{ Token, ID, Role string }
	if err := json.Unmarshal([]byte(cli(t, "", "token", "create", "--role", "admin", "--json").wantOK(t)), &second); err != nil || second.Role != "admin" {
		t.Fatalf("%+v, %v", second, err)
	}
	list := cli(t, "", "token", "list").wantOK(t)
	for _, want := range []string{"gpu hosts", "worker", "admin", second.ID, "never expires", "expires " + time.Now().UTC().AddDate(0, 0, 90).Format("2006-01-02")} {
		if !strings.Contains(list, want) {
			t.Errorf("%q is not in\n%s", want, list)
		}
	}
	lines := cli(t, "", "token", "list", "--json").wantOK(t)
	if strings.Count(lines, "\n") != 1 {
		t.Errorf("%s", lines)
	}
	for _, s := range []string{secret, second.Token} {
		if _, key, _ := strings.Cut(strings.TrimPrefix(s, auth.Prefix), "_"); key == "" || strings.Contains(list+lines, key) {
			t.Errorf("the list shows a secret:\n%s", list)
		}
	}
	if got := cli(t, "", "token", "revoke", second.ID).wantOK(t); !strings.Contains(got, second.ID) {
		t.Errorf("%s", got)
	}
	cli(t, "", "token", "revoke", second.ID).want(t, exitFailed, "no token "+second.ID)
	if strings.Contains(cli(t, "", "token", "list").wantOK(t), second.ID) {
		t.Error("a revoked token is listed")
	}
	if runtime.GOOS != "windows" {
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
		cli(t, "", "token", "list").want(t, exitFailed, "mode 0644", "chmod 600 "+file)
	}
}

func TestCertsCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	out := cli(t, "", "certs", "--dir", dir, "--host", "fabric.test").wantOK(t)
	for _, want := range []string{
		"localhost, fabric.test", "treadle up --tls-cert " + filepath.Join(dir, "server.pem"),
		"--tls-client-ca " + filepath.Join(dir, "ca.pem"), "treadle worker --tls-ca", filepath.Join(dir, "ca-key.pem"),
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	cli(t, "", "certs", "--dir", dir).want(t, exitFailed, "is there already: nothing is overwritten")
}

// TestWorkerTokenNeedsTLS: a token does not travel to another machine in plain text.
func TestWorkerTokenNeedsTLS(t *testing.T) {
	t.Setenv(treadle.EnvToken, "tdl_x")
	for args, want := range map[string]string{
		"--dispatcher 127.0.0.1:1,localhost:2":                "",
		"--dispatcher 127.0.0.1:1,192.0.2.1:2":                "would travel to 192.0.2.1:2 without TLS",
		"--dispatcher 192.0.2.1:2 --insecure":                 "",
		"--dispatcher 192.0.2.1:2 --tls-ca system":            "",
		"--dispatcher fabric.test:2 --tls-cert c --tls-key k": "--tls-cert without --tls-ca",
	} {
		f, err := parse(t, roleWorker, strings.Fields(args)...)
		if err == nil {
			_, err = (&node{serverFlags: *f}).dialOptions()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

func TestFilesThatAreMissing(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "nowhere")
	store := []string{"up", "--store", "memory:", "--slots", "0", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"}
	cli(t, "", append(store, "--token-file", nowhere)...).want(t, exitFailed, "--token-file: token file: ", nowhere)
	cli(t, "", append(store, "--tls-cert", nowhere, "--tls-key", nowhere)...).want(t, exitFailed, "--tls-cert, --tls-key", nowhere)
}

// TestSecureStack walks a real server with tokens and TLS on the command line.
func TestSecureStack(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	cli(t, "", "certs", "--dir", dir).wantOK(t)
	cli(t, "", "certs", "--dir", at("others")).wantOK(t)
	file := at("tokens.json")
	secrets := map[string]string{}
	for _, role := range []string{"client", "worker"} {
		secrets[role] = cli(t, "", "token", "create", "--role", role, "--file", file).wantOK(t)
	}
	httpAddr := up(t, "--tls-cert", at("server.pem"), "--tls-key", at("server-key.pem"), "--token-file", file)

	cli(t, "", "functions").want(t, exitNoServer, "this listener speaks TLS and the client plain text")
	wrong := cli(t, "", "functions", "--tls-ca", at("others/ca.pem"))
	wrong.want(t, exitNoServer, "its certificate is refused: certificate signed by unknown authority", "check the CA")
	if strings.Contains(wrong.errOut, "treadle up") {
		t.Errorf("a hint that misleads:\n%s", wrong.errOut)
	}
	cli(t, "", "functions", "--address", httpAddr, "--tls-ca", at("ca.pem")).want(t, exitNoServer, "8000 is the REST port; gRPC is 50051")
	t.Setenv("TREADLE_TLS_CA", at("ca.pem"))
	cli(t, "", "functions").want(t, exitRefused, "this server asks for a token", treadle.EnvToken)
	t.Setenv(treadle.EnvToken, secrets["worker"])
	cli(t, "", "functions").want(t, exitRefused, "a worker token", "it takes a token of the role client or admin")
	t.Setenv(treadle.EnvToken, secrets["client"])
	if got := cli(t, "", "doctor", "--http-addr", httpAddr).out; strings.Contains(got, "not Treadle") {
		t.Errorf("%s", got)
	}
	source := at("double.py")
	if err := os.WriteFile(source, []byte(stackFunctions["double"]), 0o600); err != nil {
		t.Fatal(err)
	}
	cli(t, "", "register", source+":double").wantOK(t)
	if got := cli(t, "", "run", "double", "21").wantOK(t); got != "42" {
		t.Errorf("got %s", got)
	}
	cli(t, "", "bench", "--tasks", "20", "--runtime", "python", "--scenario", "latency,rest-call", "--http-addr", httpAddr).wantOK(t)
}

// TestSecure: what the flags mean for a server.
func TestSecure(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	cli(t, "", "certs", "--dir", dir).wantOK(t)
	cli(t, "", "token", "create", "--role", "client", "--file", at("tokens.json")).wantOK(t)
	tlsFlags := "--tls-cert " + at("server.pem") + " --tls-key " + at("server-key.pem")
	for args, want := range map[string]struct {
		insecure, certificates, reloads bool
		rate                            float64
	}{
		"":                                 {},
		"--grpc-addr 0.0.0.0:1 --insecure": {insecure: true, rate: networkRate},
		"--insecure":                       {},
		"--rate-limit 7":                   {rate: 7},
		"--http-addr 0.0.0.0:1 --insecure --rate-limit off":                                   {insecure: true},
		"--grpc-addr 0.0.0.0:1 --insecure " + tlsFlags:                                        {insecure: true, reloads: true, rate: networkRate},
		"--grpc-addr 0.0.0.0:1 --token-file " + at("tokens.json") + " " + tlsFlags:            {reloads: true, rate: networkRate},
		"--tls-client-ca " + at("ca.pem") + " " + tlsFlags:                                    {reloads: true, certificates: true},
		"--insecure --grpc-addr 0.0.0.0:1 --token-file " + at("tokens.json") + " " + tlsFlags: {reloads: true, rate: networkRate},
	} {
		f, err := parse(t, roleUp, strings.Fields(args)...)
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		n := &node{serverFlags: *f, Log: slog.New(slog.NewTextHandler(&log, nil))}
		var cfg server.Config
		err = n.secure(&cfg)
		reload := n.reload.Load()
		if err != nil || cfg.Insecure != want.insecure || cfg.WorkerCertificates != want.certificates || (reload != nil) != want.reloads || cfg.RateLimit != want.rate {
			t.Errorf("%s: insecure %v, certificates %v, rate %g, reloads %v; %v", args, cfg.Insecure, cfg.WorkerCertificates, cfg.RateLimit, reload != nil, err)
		}
		if loud := strings.Contains(log.String(), "INSECURE"); loud != want.insecure {
			t.Errorf("%s: the log says %s", args, log.String())
		}
		if reload != nil {
			if err := (*reload)(); err != nil {
				t.Errorf("%s: %v", args, err)
			}
		}
	}
}

// TestTLSAgainstPlainText: a client that was told of a CA meets a server without TLS.
func TestTLSAgainstPlainText(t *testing.T) {
	dir := t.TempDir()
	cli(t, "", "certs", "--dir", dir).wantOK(t)
	httpAddr := up(t, "--slots", "0")
	cli(t, "", "functions", "--address", httpAddr).want(t, exitNoServer, "8000 is the REST port; gRPC is 50051")
	cli(t, "", "functions", "--tls-ca", filepath.Join(dir, "ca.pem")).want(t, exitNoServer, "the server speaks plain text and this client TLS")
}

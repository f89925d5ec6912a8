package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/internal/dialaddr"
	"github.com/treadle-dev/treadle/internal/tlsfiles"
)

const (
	addressFlag = "address"
	caFlag      = "tls-ca"
	certFlag    = "tls-cert"
	keyFlag     = "tls-key"
	// reasonTLS is what a server with TLS answers in plain text.
	reasonTLS = "TLS_REQUIRED"
	// What completing a name may take, as a person waits for the key.
	completionTime = time.Second
	maxCompletions = 200
)

// clientOptions are the choices that all client verbs have.
type clientOptions struct {
	json     bool
	insecure bool
}

// clientCommand makes a command one that speaks to a server: it gets --json and
// --insecure, and run gets a client.
func clientCommand(
	cmd *cobra.Command, jsonUsage string,
	run func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error,
) *cobra.Command {
	o := &clientOptions{}
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	cmd.Annotations[clientMark] = "true"
	completeChoices(cmd)
	addJSONFlag(cmd, &o.json, jsonUsage)
	cmd.Flags().BoolVar(&o.insecure, "insecure", false,
		"send TREADLE_TOKEN to another machine without TLS")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		c, err := dialFor(cmd, o.insecure)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		return atAddress(c.Address(), run(cmd, c, o, args))
	}
	return cmd
}

// dialFor makes the client of a command. The token comes from the environment alone:
// arguments can be read by everybody on the machine.
func dialFor(cmd *cobra.Command, insecure bool) (*treadle.Client, error) {
	address, err := cmd.Flags().GetString(addressFlag)
	if err != nil {
		return nil, err
	}
	cfg, err := tlsFor(cmd)
	if err != nil {
		return nil, err
	}
	opts := []treadle.Option{treadle.WithFailFast(), treadle.WithUserAgent("treadle-cli/" + versionOf().Version), treadle.WithTLS(cfg)}
	if insecure {
		opts = append(opts, treadle.WithInsecure())
	}
	c, err := treadle.Dial(address, opts...)
	var e *treadle.Error
	if errors.As(err, &e) {
		return nil, misuse("%s (--address, %s)", e.Message, treadle.EnvAddress)
	}
	return c, err
}

// tlsFor is how a command speaks TLS; nil is plain text.
func tlsFor(cmd *cobra.Command) (*tls.Config, error) {
	ca := globalFlag(cmd, caFlag)
	if ca == "" {
		if cmd.Flags().Changed(certFlag) {
			return nil, misuse("--%s without --%s: name the CA of the server (or 'system')", certFlag, caFlag)
		}
		return nil, nil
	}
	cfg, err := tlsfiles.Client(ca, globalFlag(cmd, certFlag), globalFlag(cmd, keyFlag))
	if err != nil {
		return nil, misuse("--%s, --%s, --%s: %w", caFlag, certFlag, keyFlag, err)
	}
	return cfg, nil
}

// globalFlag is a flag of all client verbs, else its variable.
func globalFlag(cmd *cobra.Command, name string) string {
	if v, err := cmd.Flags().GetString(name); err == nil && v != "" {
		return v
	}
	return os.Getenv(envName(name))
}

// explain writes an error for people, with what to do about it.
func explain(ctx context.Context, err error) string {
	if interrupted(ctx, err) && errors.Is(err, context.Canceled) {
		return errInterrupted.Error()
	}
	var nobody *unreachable
	if errors.As(err, &nobody) {
		if nobody.err.Reason == "" && dialaddr.Hopeless(nobody.err.Error()) == "" && !strings.HasPrefix(nobody.err.Message, atPrefix(nobody.address)) {
			return fmt.Sprintf("%v (%s)\nStart a server with 'treadle up', or name another with --address or %s.",
				nobody, transportText(nobody.err), treadle.EnvAddress)
		}
		return fmt.Sprintf("%s\nThe address comes from --address or %s.", nobody.err.Message, treadle.EnvAddress)
	}
	var e *treadle.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	// The name of the RPC and the word for programs are no news for people.
	text := strings.Replace(err.Error(), e.Error(), e.Message, 1)
	if e.Message == "" {
		text = err.Error()
	}
	if errors.Is(e, treadle.ErrUnauthenticated) {
		text += "\nPut the token into the environment variable " + treadle.EnvToken + "."
	}
	return text
}

// atPrefix starts what the client says of an address that it will never reach.
func atPrefix(address string) string { return "at " + address + ": " }

// needsTLS reports whether a server with TLS was spoken to in plain text.
func needsTLS(err error) bool {
	var e *treadle.Error
	return errors.As(err, &e) && e.Reason == reasonTLS
}

// transportText keeps the useful end of what the transport says, for example
// "dial tcp 127.0.0.1:50051: connect: connection refused".
func transportText(e *treadle.Error) string {
	text := e.Message
	for _, start := range []string{"dial ", "authentication handshake failed: "} {
		if i := strings.LastIndex(text, start); i >= 0 {
			text = text[i:]
		}
	}
	return strings.TrimRight(text, `"`)
}

// unreachable is a call that no server answered, with where.
type unreachable struct {
	address string
	err     *treadle.Error
}

func (u *unreachable) Error() string { return "no server answers at " + u.address }
func (u *unreachable) Unwrap() error { return u.err }

// atAddress names the address of a call that did not reach a server.
func atAddress(address string, err error) error {
	var e *treadle.Error
	if errors.As(err, &e) && errors.Is(e, treadle.ErrUnavailable) && e.Reason == "" {
		return &unreachable{address, e}
	}
	return err
}

// completeFunction offers the names of registered functions to the shell.
func completeFunction(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	c, err := dialFor(cmd, os.Getenv(treadle.EnvToken) == "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer func() { _ = c.Close() }()
	seen := map[string]bool{}
	var names []string
	for fn, err := range c.Functions(ctx) {
		if err != nil || len(names) == maxCompletions {
			break
		}
		if !seen[fn.Name] && strings.HasPrefix(fn.Name, prefix) {
			seen[fn.Name] = true
			names = append(names, fn.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

package worker

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"net"

	"github.com/treadle-dev/treadle/internal/tasktoken"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// API is how a running task submits tasks itself, its children: where the dispatcher of its
// worker is, and the token of the attempt. The token submits tasks and registers functions,
// reads and cancels what its task has submitted, and nothing else; it ends with the attempt.
type API struct {
	// Address is the "ip:port" of the dispatcher that the worker is attached to.
	Address string
	// Authority is the "host:port" that the worker was given for it; empty: Address.
	Authority string
	// Token is the bearer token of the attempt.
	Token string
	// TLS is nil where the dispatcher speaks plain text.
	TLS *tls.Config
	// CA holds, in PEM, the certificates that TLS trusts; empty for those of the system.
	CA []byte
}

// APIFrom returns how the handler that ctx belongs to submits tasks. Ask again after an
// error: the worker may have moved to another dispatcher. It fails outside of a handler, and
// where the dispatcher serves no running tasks.
func APIFrom(ctx context.Context) (API, error) {
	a, ok := ctx.Value(attemptKey{}).(*Attempt)
	if !ok {
		return API{}, errors.New("this is no handler's context")
	}
	if a.API == nil {
		return API{}, errNoAPI
	}
	return a.API(a.Token)
}

var errNoAPI = errors.New("this worker does not say how tasks reach its dispatcher")

// endpoint is a link that knows where it leads.
type endpoint interface {
	Endpoint() (address, authority string)
}

// api makes what an attempt needs to call its dispatcher. Where the worker is not attached at
// present, it is that of the last one: the claim counts there until another has it.
func (a *Agent) api(tok task.Token) (API, error) {
	if a.cfg.API == nil {
		return API{}, errNoAPI
	}
	a.mu.Lock()
	session, key, at := a.terms.Session, a.terms.TaskKey, a.attachedTo
	a.mu.Unlock()
	if len(key) == 0 {
		return API{}, errors.New("the dispatcher of this worker is of an earlier release, or serves no running tasks: " +
			"name a server (treadle.Client(\"HOST:PORT\", token=...))")
	}
	out, err := a.cfg.API()
	if err != nil {
		return API{}, err
	}
	if at.Address != "" {
		out.Address, out.Authority = at.Address, at.Authority
	}
	if out.TLS != nil && out.TLS.ServerName == "" && out.Authority != "" {
		host, _, err := net.SplitHostPort(out.Authority)
		if err != nil {
			return API{}, err
		}
		out.TLS = out.TLS.Clone()
		out.TLS.ServerName = host
	}
	out.Token = tasktoken.Mint(key, session, tok.Task, tok.Claim)
	return out, nil
}

// leadsTo is where a link leads, as far as it says so.
func leadsTo(conn link.Conn) (at API) {
	if e, ok := conn.(endpoint); ok {
		at.Address, at.Authority = e.Endpoint()
	}
	return at
}

// Certificates returns the certificates in a PEM text, and nothing else of it: keys stay
// where they are.
func Certificates(text []byte) (out []byte) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return out
		}
		if block.Type == "CERTIFICATE" {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
		}
	}
}

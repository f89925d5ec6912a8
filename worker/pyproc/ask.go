//go:build unix

package pyproc

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// A function that submits tasks itself asks for the way to its dispatcher, and for the token
// of its attempt, when it makes a client: the runner writes the task's id into a pipe and reads
// an answer from another one. So a token is in no environment and no argument, and tasks that
// submit nothing cost nothing. script/treadle_runner/about.py is the other half.

// answerWait is how long a runner may take to read an answer before no more are given.
const answerWait = 5 * time.Second

// given are the attempts that a runner was given last; it may run any of the last aheadCalls.
type given struct {
	mu   sync.Mutex
	last [2 * aheadCalls]struct {
		token task.Token
		api   func(task.Token) (worker.API, error)
	}
	next int
}

func (g *given) add(a *worker.Attempt) {
	g.mu.Lock()
	g.last[g.next].token, g.last[g.next].api = a.Token, a.API
	g.next = (g.next + 1) % len(g.last)
	g.mu.Unlock()
}

// find returns how the attempt of a task calls its dispatcher.
func (g *given) find(id task.ID) (worker.API, error) {
	g.mu.Lock()
	for i := 1; i <= len(g.last); i++ {
		at := &g.last[(g.next-i+len(g.last))%len(g.last)]
		if at.token.Task != id {
			continue
		}
		token, api := at.token, at.api
		g.mu.Unlock()
		if api == nil {
			return worker.API{}, errors.New("this worker does not say how tasks reach its dispatcher")
		}
		return api(token)
	}
	g.mu.Unlock()
	return worker.API{}, errors.New("this runner does not run that task")
}

// told is the answer to a question, as JSON.
type told struct {
	Address   string `json:"address,omitempty"`
	Authority string `json:"authority,omitempty"`
	Token     string `json:"token,omitempty"`
	TLS       bool   `json:"tls,omitempty"`
	CA        string `json:"ca,omitempty"`
	Error     string `json:"error,omitempty"`
}

// answer answers the questions of the runner until its end.
func (r *runner) answer() {
	defer close(r.answered)
	var id task.ID
	for {
		if _, err := io.ReadFull(r.asks, id[:]); err != nil {
			return
		}
		var out told
		if api, err := r.given.find(id); err != nil {
			out.Error = err.Error()
		} else {
			out = told{Address: api.Address, Authority: api.Authority, Token: api.Token, TLS: api.TLS != nil, CA: string(api.CA)}
		}
		body, err := json.Marshal(out)
		if err != nil {
			return
		}
		frame := append(binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...)
		_ = r.tells.SetWriteDeadline(time.Now().Add(answerWait))
		if _, err := r.tells.Write(frame); err != nil {
			return // what it would read next would be no answer
		}
	}
}

//go:build unix

package pyproc

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// TestFunctionsAskForTheirDispatcher: each attempt gets the token that is its own, as often
// and from as many threads as it likes; children that it forks do not.
func TestFunctionsAskForTheirDispatcher(t *testing.T) {
	src := `import _treadle_task, os, threading
def f(n):
    told = _treadle_task.api()
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(_treadle_task.api())) for _ in range(n)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(seen) == n and all(other == told for other in seen), seen
    r, w = os.pipe()
    if os.fork() == 0:
        try:
            _treadle_task.api()
        except RuntimeError as exc:
            os.write(w, str(exc).encode())
        os._exit(0)
    os.wait()
    os.close(w)
    with open(r) as child:
        return [told, child.read()]
`
	e := start(t, 1)
	tokens := 0
	for i, api := range []worker.API{
		{Address: "127.0.0.1:1"},
		{Address: "[::1]:2", Authority: "dispatchers.test:2", TLS: &tls.Config{MinVersion: tls.VersionTLS13}, CA: []byte(strings.Repeat("x", 200_000))},
	} {
		for range 2 {
			a := fromSource(src, `{"args":[20],"kwargs":{}}`)
			a.Token.Claim, a.Parent = task.ID{byte(i), 9}, task.ID{4}
			a.API = func(tok task.Token) (worker.API, error) {
				if tok != a.Token {
					return worker.API{}, fmt.Errorf("asked for %v", tok)
				}
				tokens++
				out := api
				out.Token = "tdt_" + tok.Claim.String()
				return out, nil
			}
			out := string(run(t, e, 0, a).Result)
			for _, want := range []string{`"address":"` + api.Address, "tdt_" + a.Token.Claim.String(), "do it in the function itself"} {
				if !strings.Contains(strings.ReplaceAll(out, `": "`, `":"`), want) {
					t.Errorf("%s is not in %.600s", want, out)
				}
			}
			if got := strings.Contains(out, "dispatchers.test:2") && strings.Contains(out, strings.Repeat("x", 200_000)); got != (i == 1) {
				t.Errorf("what certificates are checked by: %.600s", out)
			}
		}
	}
	if tokens != 4*21 {
		t.Errorf("%d tokens were made, want one for each question", tokens)
	}
	a := fromSource("import _treadle_task\ndef f():\n    _treadle_task.api()", "")
	if out := run(t, e, 0, a); out.End != task.EndRaised || !strings.Contains(out.Failure.Message, "does not say how") {
		t.Error(describe(out))
	}
	a.API = func(task.Token) (worker.API, error) { return worker.API{}, errors.New("no luck") }
	if out := run(t, e, 0, a); out.End != task.EndRaised || out.Failure.Message != "no luck" {
		t.Error(describe(out))
	}
	want(t, runJSON(t, e, "import treadle\ndef f(): return [treadle.current_task().parent, hasattr(treadle, 'Client')]", ""), "[null,false]")
}

// TestQuestionsAboutOthers: a runner is told of the attempts that it was given last, and of
// no others.
func TestQuestionsAboutOthers(t *testing.T) {
	var g given
	api := func(tok task.Token) (worker.API, error) { return worker.API{Token: tok.Task.String()}, nil }
	for i := range 3 * len(g.last) {
		g.add(&worker.Attempt{Token: task.Token{Task: task.ID{1, byte(i)}}, API: api})
	}
	for i := range 3 * len(g.last) {
		got, err := g.find(task.ID{1, byte(i)})
		if known := i >= 2*len(g.last); known != (err == nil) || known && got.Token != (task.ID{1, byte(i)}).String() {
			t.Errorf("attempt %d: %+v, %v", i, got, err)
		}
	}
	if len(g.last) < 2*aheadCalls {
		t.Errorf("room for %d attempts, a runner may have %d", len(g.last), aheadCalls)
	}
}

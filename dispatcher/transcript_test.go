package dispatcher

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// TestTranscripts runs the stories in testdata: each command is an event, the text
// below it is what the engine wants done. Rewrite them with -rewrite and judge the diff.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		story := newStory()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			return story.run(t, d)
		})
	})
}

// story is an engine with names for people in place of ids.
type story struct {
	engine  *Engine
	now     time.Time
	ids     int
	names   map[task.ID]string
	byName  map[string]task.ID
	claims  map[string]store.ClaimRequest
	resumes map[string]resume
	tokens  map[string]task.Token
}

func newStory() *story {
	s := &story{
		now: time.Unix(1_000_000, 0), names: map[task.ID]string{}, byName: map[string]task.ID{},
		claims: map[string]store.ClaimRequest{}, resumes: map[string]resume{}, tokens: map[string]task.Token{},
	}
	cfg, err := Config{ID: s.id("this"), NewID: s.claimID, Registrar: noHandlers{}, Jitter: func() float64 { return 0 }}.withDefaults()
	if err != nil {
		panic(err)
	}
	s.engine = newEngine(cfg)
	return s
}

func (s *story) id(name string) task.ID {
	if id, ok := s.byName[name]; ok {
		return id
	}
	s.ids++
	id := task.ID{0: 1, 14: byte(s.ids >> 8), 15: byte(s.ids)}
	s.byName[name], s.names[id] = id, name
	return id
}

func (s *story) claimID() task.ID {
	return s.id(fmt.Sprintf("c%d", len(s.byName)))
}

// token returns the token that a task was claimed under, or a stale one.
func (s *story) token(name string) task.Token {
	if tok, ok := s.tokens[name]; ok {
		return tok
	}
	return task.Token{Task: s.id(name), Epoch: 1, Claim: s.id("old"), Attempt: 1}
}

// args of a command: positional words and key=value pairs.
type args struct {
	words []string
	pairs map[string]string
}

func parseArgs(d *datadriven.TestData) args {
	a := args{pairs: map[string]string{}}
	for _, c := range d.CmdArgs {
		if len(c.Vals) == 0 {
			a.words = append(a.words, c.Key)
			continue
		}
		a.pairs[c.Key] = strings.Join(c.Vals, ",")
	}
	return a
}

func (a args) int(key string, or int) int {
	v, ok := a.pairs[key]
	if !ok {
		return or
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		panic(err)
	}
	return n
}

func (s *story) run(t *testing.T, d *datadriven.TestData) string {
	t.Helper()
	a := parseArgs(d)
	if ev := s.event(t, d, a); ev != nil {
		s.engine.step(s.now, ev)
	}
	return s.print(s.engine.take(s.now))
}

func (s *story) event(t *testing.T, d *datadriven.TestData, a args) event {
	t.Helper()
	var who string
	var session task.ID
	if len(a.words) > 0 {
		who = a.words[0]
		session = s.id(who)
	}
	frame := func(f link.Frame) event { return received{session: session, frame: f} }
	tokens := func() []task.Token {
		var out []task.Token
		for _, w := range a.words[1:] {
			out = append(out, s.token(w))
		}
		return out
	}
	switch d.Cmd {
	case "config":
		for _, m := range a.words {
			s.engine.cfg.Modes = append(s.engine.cfg.Modes, link.Mode(m))
		}
		for key, field := range map[string]*time.Duration{"every": &s.engine.cfg.MoveEvery, "age": &s.engine.cfg.StreamAge} {
			if text, ok := a.pairs[key]; ok {
				var err error
				if *field, err = time.ParseDuration(text); err != nil {
					t.Fatal(err)
				}
			}
		}
		return nil
	case "open":
		return opened{session: session, mode: link.Mode(a.words[1])}
	case "hello":
		h := &link.Hello{
			Version: a.int("version", link.Version), Worker: a.pairs["worker"], Slots: a.int("slots", 1), MaxSlots: a.int("most", 0),
			Queues: []string{"default"}, Runtimes: []string{"python"}, Moves: a.pairs["moves"] != "",
		}
		for _, w := range a.words[1:] {
			h.Held = append(h.Held, link.Holding{Token: s.token(w), StartedAt: s.now})
		}
		return frame(h)
	case "resumed":
		r := s.resumes[who]
		ev := resumed{session: session, held: r.hello.Held}
		for _, h := range r.hello.Held {
			v := task.VerdictRecorded
			if s.names[h.Token.Task] == a.pairs["stale"] {
				v = task.VerdictStale
			}
			ev.verdicts = append(ev.verdicts, v)
		}
		if a.pairs["error"] != "" {
			ev.err = errors.New(a.pairs["error"])
		}
		return ev
	case "claimed":
		req, ok := s.claims[who]
		if !ok {
			t.Fatalf("%s has no claim under way", who)
		}
		delete(s.claims, who)
		ev := claimed{request: req}
		for _, w := range a.words[1:] {
			tok := task.Token{Task: s.id(w), Epoch: 1, Claim: req.Claim, Attempt: 1}
			s.tokens[w] = tok
			ev.tasks = append(ev.tasks, store.Claimed{Token: tok, Task: &task.Task{ID: tok.Task, Queue: "default", Runtime: "python"}})
		}
		return ev
	case "accept":
		f := &link.Accepts{}
		for _, tok := range tokens() {
			f.Items = append(f.Items, link.Accept{Token: tok})
		}
		return frame(f)
	case "outcome":
		f := &link.Outcomes{}
		run, err := time.ParseDuration(a.pairs["run"])
		if a.pairs["run"] != "" && err != nil {
			t.Fatal(err)
		}
		end := task.End(a.pairs["end"])
		if end == task.EndNone {
			end = task.EndSucceeded
		}
		for _, tok := range tokens() {
			f.Items = append(f.Items, link.Report{Token: tok, Outcome: task.Outcome{End: end, RunTime: run}})
		}
		return frame(f)
	case "settled":
		return settled{session: session, token: s.token(a.words[1]), verdict: task.Verdict(a.words[2])}
	case "beat":
		f := &link.Beat{Seq: uint64(a.int("seq", 1)), Slots: a.int("slots", 0), Unfit: a.int("unfit", 0) == 1}
		for _, tok := range tokens() {
			f.Held = append(f.Held, link.Holding{Token: tok, StartedAt: s.now})
		}
		return frame(f)
	case "renewed":
		ev := renewed{session: session, seq: uint64(a.int("seq", 0))}
		for _, tok := range tokens() {
			ev.items = append(ev.items, store.Renewal{Token: tok})
			v := task.VerdictRecorded
			if s.names[tok.Task] == a.pairs["stale"] {
				v = task.VerdictStale
			}
			ev.verdicts = append(ev.verdicts, v)
		}
		return ev
	case "want":
		return frame(&link.Want{N: a.int("n", 1)})
	case "need":
		return frame(&link.NeedFunction{Hash: [32]byte{1}})
	case "loaded":
		return loaded{session: session, hash: [32]byte{1}, bytes: []byte("code")}
	case "drain":
		return frame(&link.Drain{Reason: "asked to"})
	case "bye":
		return frame(&link.Bye{Reason: "done", Retry: a.pairs["retry"] != ""})
	case "close":
		return closed{session: session, reason: link.ErrClosed}
	case "ring":
		return rung{signals: []store.Signal{s.signal(t, a)}}
	case "stop":
		return stopping{reason: "the process stops"}
	case "advance":
		step, err := time.ParseDuration(a.words[0])
		if err != nil {
			t.Fatal(err)
		}
		s.now = s.now.Add(step)
		return ticked{}
	default:
		t.Fatalf("unknown command %q", d.Cmd)
		return nil
	}
}

func (s *story) signal(t *testing.T, a args) store.Signal {
	t.Helper()
	switch a.words[0] {
	case "ready":
		return store.Signal{Kind: store.Ready, Queue: "default", Runtime: "python"}
	case "wanted":
		return store.Signal{Kind: store.Wanted, Queue: "default", Runtime: "python", From: s.id("other"), Count: a.int("n", 1)}
	case "attending":
		return store.Signal{Kind: store.Attending, From: s.id(a.words[1]), Runtime: a.words[2], Count: a.int("n", 0)}
	case "revoked":
		tok := s.token(a.words[1])
		return store.Signal{Kind: store.Revoked, Task: tok.Task, Claim: tok.Claim}
	default:
		t.Fatalf("unknown signal %q", a.words[0])
		return store.Signal{}
	}
}

// print shows effects in the order in which the loop carries them out.
func (s *story) print(r ready) string {
	var b bytes.Buffer
	for _, n := range r.notes {
		fmt.Fprintf(&b, "note: %s", n.text)
		if n.err != nil {
			fmt.Fprintf(&b, " (%v)", n.err)
		}
		fmt.Fprintf(&b, ", %d held\n", n.count)
	}
	for _, x := range r.settles {
		from := "nobody"
		if !x.session.IsZero() {
			from = s.names[x.session]
		}
		fmt.Fprintf(&b, "settle %s %s, verdict to %s", s.names[x.settlement.Token.Task], x.settlement.Outcome.End, from)
		if !x.settlement.Session.IsZero() {
			fmt.Fprintf(&b, ", unless %s has lost it", s.names[x.settlement.Session])
		}
		b.WriteString("\n")
	}
	for _, x := range r.renews {
		fmt.Fprintf(&b, "renew for %s (seq %d):", s.names[x.session], x.seq)
		for _, it := range x.items {
			fmt.Fprintf(&b, " %s", s.names[it.Token.Task])
			if !it.StartedAt.IsZero() {
				b.WriteString("(started)")
			}
			if until := it.Until.Sub(s.now); until != s.engine.cfg.Lease {
				fmt.Fprintf(&b, "(until %s)", until)
			}
		}
		b.WriteString("\n")
	}
	for _, x := range r.resumes {
		s.resumes[s.names[x.session]] = x
		fmt.Fprintf(&b, "resume %s as %s, holding %d\n", x.request.Worker, s.names[x.session], len(x.request.Held))
	}
	for range r.loads {
		b.WriteString("load a function\n")
	}
	for _, c := range r.claims {
		s.claims[s.names[c.Session]] = c
		fmt.Fprintf(&b, "claim up to %d for %s\n", c.Max, s.names[c.Session])
	}
	for _, x := range r.sends {
		fmt.Fprintf(&b, "-> %s: %s\n", s.names[x.session], s.frame(x.frame))
	}
	for _, h := range r.hangups {
		fmt.Fprintf(&b, "hang up %s: %s\n", s.names[h.session], h.reason)
	}
	for _, sig := range r.rings {
		if sig.Kind == store.Attending {
			fmt.Fprintf(&b, "ring attending %s %d\n", sig.Runtime, sig.Count)
			continue
		}
		fmt.Fprintf(&b, "ring wanted %d\n", sig.Count)
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}

func (s *story) frame(f link.Frame) string {
	tokens := func(toks []task.Token) string {
		var names []string
		for _, tok := range toks {
			names = append(names, s.names[tok.Task])
		}
		return "[" + strings.Join(names, " ") + "]"
	}
	switch f := f.(type) {
	case *link.Welcome:
		return "Welcome, stale " + tokens(f.Stale)
	case *link.Offers:
		var toks []task.Token
		for _, o := range f.Items {
			toks = append(toks, o.Token)
		}
		return "Offers " + tokens(toks)
	case *link.Acks:
		var out []string
		for _, a := range f.Items {
			out = append(out, s.names[a.Token.Task]+" "+string(a.Verdict))
		}
		return "Acks [" + strings.Join(out, ", ") + "]"
	case *link.BeatAck:
		return fmt.Sprintf("BeatAck %d, stale %s", f.Seq, tokens(f.Stale))
	case *link.Revoke:
		return "Revoke " + tokens(f.Tokens)
	case *link.Recall:
		return fmt.Sprintf("Recall %d", f.N)
	case *link.FunctionBytes:
		return fmt.Sprintf("FunctionBytes %q", f.Bytes)
	case *link.Move:
		return fmt.Sprintf("Move, elsewhere %t: %s", f.Elsewhere, f.Reason)
	case *link.Bye:
		return fmt.Sprintf("Bye, retry %t: %s", f.Retry, f.Reason)
	default:
		return fmt.Sprintf("%T", f)
	}
}

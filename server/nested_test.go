package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/treadle-dev/treadle/fabric"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/tasktoken"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// nest is a server with running tasks.
type nest struct {
	*env
	issuer *tasktoken.Issuer
	ring   *ring
	fn     string
}

func newNest(t *testing.T, change ...func(*Config)) *nest {
	t.Helper()
	n := &nest{issuer: tasktoken.New(), ring: newRing(t)}
	n.env = start(t, append([]func(*Config){n.ring.use(t), func(c *Config) { c.TaskTokens = n.issuer }}, change...)...)
	source := []byte("def f(): pass")
	f, err := n.store.PutFunction(t.Context(), task.Function{
		ID: n.srv.cfg.NewID(), Name: "f", Queue: "default", Runtime: task.RuntimePython, Form: task.FormSource, CreatedAt: time.Now(),
		Hash: sha256.Sum256(source), Size: len(source),
	}, source, store.Key{})
	if err != nil {
		t.Fatal(err)
	}
	n.fn = f.ID.String()
	return n
}

// parent submits a task of the client's token and starts it.
func (n *nest) parent(change ...func(*task.Task)) store.Claimed {
	n.t.Helper()
	fn, err := task.ParseID(n.fn)
	if err != nil {
		n.t.Fatal(err)
	}
	t := &task.Task{
		ID: n.srv.cfg.NewID(), Function: fn, FunctionName: "f", Queue: "default", Runtime: task.RuntimePython, Form: task.FormSource,
		Args: task.EncodingJSON, Returns: task.EncodingJSON, Spec: task.Spec{Priority: 9}, CreatedBy: n.ring.ids[auth.Client],
	}
	for _, f := range change {
		f(t)
	}
	if _, err := n.store.Submit(n.t.Context(), time.Now(), []store.Submission{{Task: t}}); err != nil {
		n.t.Fatal(err)
	}
	c := n.claim()
	if c.Task.ID != t.ID {
		n.t.Fatal("another task was claimed")
	}
	return c
}

// token is what the worker of a claim makes for it.
func token(issuer *tasktoken.Issuer, c store.Claimed) string {
	session := task.ID{7}
	return tasktoken.Mint(issuer.SessionKey(session), session, c.Token.Task, c.Token.Claim)
}

func (n *nest) as(c store.Claimed) context.Context { return with(n.t.Context(), token(n.issuer, c)) }

func with(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func (n *nest) child(ctx context.Context) string {
	n.t.Helper()
	t, err := n.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: n.fn})
	if err != nil {
		n.t.Fatal(err)
	}
	return t.GetTaskId()
}

// tried is one method as a running task calls it; about is the task that it is about.
type tried struct {
	name  string
	about bool // it names a task
	call  func(ctx context.Context, f treadlev1.FabricServiceClient, fn, about string) error
}

// first reads the first message of a stream, or its end.
func first[T any](s grpc.ServerStreamingClient[T], err error) error {
	if err != nil {
		return err
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

var taskMethods = []tried{
	{"RegisterFunction", false, func(ctx context.Context, f treadlev1.FabricServiceClient, _, _ string) error {
		_, err := f.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "g", Source: "def g(): pass"})
		return err
	}},
	{"GetFunction", false, func(ctx context.Context, f treadlev1.FabricServiceClient, fn, _ string) error {
		_, err := f.GetFunction(ctx, &treadlev1.GetFunctionRequest{Function: fn})
		return err
	}},
	{"Execute", false, func(ctx context.Context, f treadlev1.FabricServiceClient, fn, _ string) error {
		_, err := f.Execute(ctx, &treadlev1.ExecuteRequest{Function: fn})
		return err
	}},
	{"ExecuteBatch", false, func(ctx context.Context, f treadlev1.FabricServiceClient, fn, _ string) error {
		_, err := f.ExecuteBatch(ctx, &treadlev1.ExecuteBatchRequest{Requests: []*treadlev1.ExecuteRequest{{Function: fn}}})
		return err
	}},
	{"Call", false, func(ctx context.Context, f treadlev1.FabricServiceClient, fn, _ string) error {
		_, err := f.Call(ctx, &treadlev1.CallRequest{Function: fn, Timeout: durationpb.New(time.Millisecond)})
		return err
	}},
	{"GetTask", true, func(ctx context.Context, f treadlev1.FabricServiceClient, _, about string) error {
		_, err := f.GetTask(ctx, &treadlev1.GetTaskRequest{TaskId: about})
		return err
	}},
	{"GetResult", true, func(ctx context.Context, f treadlev1.FabricServiceClient, _, about string) error {
		_, err := f.GetResult(ctx, &treadlev1.GetResultRequest{TaskId: about})
		return err
	}},
	{"AwaitResults", true, func(ctx context.Context, f treadlev1.FabricServiceClient, _, about string) error {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		s, err := f.AwaitResults(ctx, &treadlev1.AwaitResultsRequest{TaskIds: []string{about}})
		if err = first(s, err); status.Code(err) == codes.DeadlineExceeded {
			return nil // it waits: it was admitted
		}
		return err
	}},
	{"WatchTask", true, func(ctx context.Context, f treadlev1.FabricServiceClient, _, about string) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := f.WatchTask(ctx, &treadlev1.WatchTaskRequest{TaskId: about})
		return first(s, err)
	}},
	{"GetLogs", true, func(ctx context.Context, f treadlev1.FabricServiceClient, _, about string) error {
		_, err := f.GetLogs(ctx, &treadlev1.GetLogsRequest{TaskId: about})
		return err
	}},
	{"CancelTask", true, func(ctx context.Context, f treadlev1.FabricServiceClient, _, about string) error {
		_, err := f.CancelTask(ctx, &treadlev1.CancelTaskRequest{TaskId: about})
		return err
	}},
}

// TestEveryMethodAgainstATaskToken: a running task reaches its children by the methods that
// are for it, at a server and at a dispatcher alike, and nothing else.
func TestEveryMethodAgainstATaskToken(t *testing.T) {
	for _, only := range []bool{false, true} {
		t.Run(fmt.Sprintf("workers only %v", only), func(t *testing.T) {
			n := newNest(t, func(c *Config) { c.WorkersOnly, c.Dispatcher = only, sessions{make(chan link.Mode, 1)} })
			parent := n.parent()
			other := n.parent()
			ctx := n.as(parent)
			mine, foreign := n.child(ctx), n.child(n.as(other))
			grand := func() string { // a child of a child
				c := n.claim()
				return n.child(n.as(c))
			}()
			for _, m := range taskMethods {
				if err := m.call(ctx, n.fabric, n.fn, mine); err != nil {
					t.Errorf("%s of its own child: %v", m.name, err)
				}
				if !m.about {
					continue
				}
				for what, id := range map[string]string{"another's child": foreign, "itself": parent.Task.ID.String(), "a running task": other.Task.ID.String(), "a grandchild": grand} {
					if err := m.call(ctx, n.fabric, n.fn, id); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "not submitted by task") {
						t.Errorf("%s of %s: %v", m.name, what, err)
					}
				}
				if err := m.call(ctx, n.fabric, n.fn, n.srv.cfg.NewID().String()); status.Code(err) != codes.NotFound {
					t.Errorf("%s of no task: %v", m.name, err)
				}
			}
			// One of another's among many.
			s, err := n.fabric.AwaitResults(ctx, &treadlev1.AwaitResultsRequest{TaskIds: []string{mine, foreign}})
			if err = first(s, err); status.Code(err) != codes.PermissionDenied {
				t.Errorf("AwaitResults of both: %v", err)
			}
			if got, err := n.store.Task(t.Context(), parent.Task.ID); err != nil || got.Status != task.Running {
				t.Errorf("the parent is %v, %v", got, err)
			}
			for _, method := range methodsOf(n.srv.grpc) {
				service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
				if service == "grpc.health.v1.Health" || service == "treadle.v1.FabricService" && slices.ContainsFunc(taskMethods, func(m tried) bool { return m.name == name }) {
					continue
				}
				callCtx, cancel := context.WithTimeout(ctx, 20*time.Second)
				if err := callAny(callCtx, n.conn, method, false); status.Code(err) != codes.PermissionDenied {
					t.Errorf("%s: %v", method, err)
				}
				cancel()
			}
			for name, token := range map[string]string{
				"forged":                tasktoken.Mint(make([]byte, tasktoken.KeySize), task.ID{7}, parent.Token.Task, parent.Token.Claim),
				"of another dispatcher": token(tasktoken.New(), parent),
				"of another claim":      tasktoken.Mint(n.issuer.SessionKey(task.ID{7}), task.ID{7}, parent.Token.Task, other.Token.Claim),
				"of no task":            tasktoken.Mint(n.issuer.SessionKey(task.ID{7}), task.ID{7}, task.ID{1}, task.ID{2}),
				"cut":                   token(n.issuer, parent)[:40],
			} {
				for _, m := range taskMethods {
					if err := m.call(with(t.Context(), token), n.fabric, n.fn, mine); status.Code(err) != codes.Unauthenticated || strings.Contains(err.Error(), token) {
						t.Errorf("%s with a token %s: %v", m.name, name, err)
					}
				}
			}
			for _, path := range []string{"/v1/tasks", "/v1/tasks/" + mine, "/metrics", "/"} {
				if a := n.do("GET", path, nil, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token(n.issuer, parent)) }); a.status != 403 && !(only && a.status == 404) {
					t.Errorf("REST %s answers %d", path, a.status)
				}
			}
		})
	}
}

// TestTaskTokensEnd: with the attempt, however that ends.
func TestTaskTokensEnd(t *testing.T) {
	ends := map[string]func(n *nest, c store.Claimed){
		"finished": func(n *nest, c store.Claimed) { n.settle(c, succeed([]byte("1"), task.EncodingJSON)) },
		"retried": func(n *nest, c store.Claimed) {
			n.settle(c, task.Outcome{End: task.EndRaised, Failure: &task.Failure{Type: "E", Message: "m"}})
		},
		"lost": func(n *nest, _ store.Claimed) {
			if _, err := n.store.Reap(n.t.Context(), time.Now().Add(time.Hour), 100); err != nil {
				n.t.Fatal(err)
			}
		},
		"cancelled": func(n *nest, c store.Claimed) {
			if _, err := n.store.Cancel(n.t.Context(), time.Now(), []task.ID{c.Task.ID}, false); err != nil {
				n.t.Fatal(err)
			}
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			n := newNest(t)
			c := n.parent(func(t *task.Task) { t.FunctionRetries, t.MaxRetries = 1, 3 })
			ctx := n.as(c)
			child := n.child(ctx)
			// Calls that wait end with it, too.
			stream, err := n.fabric.AwaitResults(ctx, &treadlev1.AwaitResultsRequest{TaskIds: []string{child}})
			if err != nil {
				t.Fatal(err)
			}
			waits := make(chan error, 2)
			go func() { _, err := stream.Recv(); waits <- err }()
			go func() {
				_, err := n.fabric.GetResult(ctx, &treadlev1.GetResultRequest{TaskId: child, Wait: durationpb.New(time.Minute)})
				waits <- err
			}()
			n.eventually("both calls wait", func() bool { _, _, waits := n.srv.core.Waiting(); return waits >= 2 })
			end(n, c)
			for range 2 {
				select {
				case err := <-waits:
					if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "ended with its attempt") {
						t.Errorf("a waiting call ends with %v", err)
					}
				case <-time.After(20 * time.Second):
					t.Fatal("a call waits on")
				}
			}
			for _, m := range taskMethods {
				if err := m.call(ctx, n.fabric, n.fn, child); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "ended with its attempt") {
					t.Errorf("%s: %v", m.name, err)
				}
			}
			if name != "retried" && name != "lost" {
				return
			}
			// The next attempt has a token of its own, and the children of the one before.
			now := time.Now().Add(time.Hour)
			got, err := n.store.Claim(t.Context(), now, []store.ClaimRequest{{
				Claim: task.ID{1}, Session: task.ID{2}, Worker: "w2", Queues: []string{"default"}, Runtimes: []string{task.RuntimePython}, Max: 1,
				Until: now.Add(time.Hour),
			}})
			if err != nil || len(got[0]) != 1 || got[0][0].Task.ID != c.Task.ID {
				t.Fatalf("%v, %v", got, err)
			}
			if _, err := n.fabric.GetTask(n.as(got[0][0]), &treadlev1.GetTaskRequest{TaskId: child}); err != nil {
				t.Error(err)
			}
		})
	}
}

// A child belongs to the owner of its parent, has no more time, and its request id is its
// parent's own.
func TestChildrenTakeAfterTheirParents(t *testing.T) {
	deadline := time.Now().Add(time.Hour).Truncate(time.Microsecond).UTC()
	n := newNest(t)
	c := n.parent(func(t *task.Task) { t.Deadline = deadline })
	ctx := n.as(c)
	for _, given := range []time.Time{{}, deadline.Add(time.Minute), deadline.Add(-time.Minute)} {
		req := &treadlev1.ExecuteRequest{Function: n.fn, Options: &treadlev1.ExecuteOptions{}}
		want := deadline
		if !given.IsZero() {
			req.Options.Deadline = timestamppb.New(given)
		}
		if !given.IsZero() && given.Before(want) {
			want = given
		}
		got, err := n.fabric.Execute(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		if at := got.GetOptions().GetDeadline().AsTime(); !at.Equal(want) || got.GetParentId() != c.Task.ID.String() || got.GetCreatedBy() != n.ring.ids[auth.Client] {
			t.Errorf("deadline %s, want %s; parent %s, owner %s", at, want, got.GetParentId(), got.GetCreatedBy())
		}
	}
	f, err := n.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "g", Source: "def g(): pass", RequestId: "r"})
	if err != nil || f.GetCreatedBy() != n.ring.ids[auth.Client] {
		t.Errorf("%v, %v", f, err)
	}
	list, err := n.fabric.ListTasks(n.ring.as(t.Context(), auth.Client), &treadlev1.ListTasksRequest{Filter: "parent = " + c.Task.ID.String()})
	if err != nil || len(list.GetTasks()) != 3 {
		t.Errorf("%d children are listed, want 3: %v", len(list.GetTasks()), err)
	}
	_, err = n.fabric.ListTasks(n.ring.as(t.Context(), auth.Client), &treadlev1.ListTasksRequest{Filter: "parent = x"})
	if status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	// A client and two parents use the same request id for the same request.
	req := &treadlev1.ExecuteRequest{Function: n.fn, RequestId: "same"}
	ids := map[string]bool{}
	other := n.parent()
	for _, ctx := range []context.Context{ctx, n.as(other), n.ring.as(t.Context(), auth.Client)} {
		a, err := n.fabric.Execute(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := n.fabric.Execute(ctx, req)
		if err != nil || a.GetTaskId() != b.GetTaskId() {
			t.Errorf("asked again: %v, %v", b, err)
		}
		ids[a.GetTaskId()] = true
	}
	if len(ids) != 3 {
		t.Errorf("%d tasks, want each caller's own", len(ids))
	}
}

// A task that submits itself fills its owner's quota and no more, at a dispatcher that asks
// nobody for tokens, too.
func TestForkBombsAreBoundedByTheOwnersQuota(t *testing.T) {
	for _, asks := range []bool{true, false} {
		n := newNest(t, func(c *Config) {
			c.Quotas = fabric.Quotas{Tasks: 20}
			if !asks {
				c.Tokens = nil
			}
		})
		n.parent()
		running := []store.Claimed{n.parent()}
		made, refused := 0, 0
		for len(running) > 0 && made < 100 {
			ctx := n.as(running[0])
			running = running[1:]
			for range 2 {
				_, err := n.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: n.fn})
				if err == nil {
					made++
					running = append(running, n.claim())
					continue
				}
				if refused++; status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "quota tasks: token "+n.ring.ids[auth.Client]) {
					t.Fatal(err)
				}
			}
		}
		if made != 18 || refused == 0 {
			t.Errorf("%d tasks were made and %d refused, want 18 beside the two that run", made, refused)
		}
	}
}

// A server without a dispatcher says where tokens of tasks count, and a dispatcher whom it
// serves the API to.
func TestTaskTokensElsewhere(t *testing.T) {
	n := newNest(t)
	c := n.parent()
	plain := start(t)
	_, err := plain.fabric.GetTask(with(t.Context(), token(n.issuer, c)), &treadlev1.GetTaskRequest{TaskId: c.Task.ID.String()})
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "counts at the dispatcher") {
		t.Error(err)
	}
	for _, asks := range []bool{true, false} {
		only := newNest(t, func(cfg *Config) {
			cfg.WorkersOnly = true
			if !asks {
				cfg.Tokens = nil
			}
		})
		for _, role := range []auth.Role{auth.Client, auth.Admin} {
			_, err := only.fabric.ListTasks(only.ring.as(t.Context(), role), &treadlev1.ListTasksRequest{})
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "running tasks only") {
				t.Errorf("%s: %v", role, err)
			}
		}
	}
}

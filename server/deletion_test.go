package server

import (
	"fmt"
	"net/http"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/treadle-dev/treadle/fabric"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

func TestDeleteFunction(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	register := func() *treadlev1.Function {
		t.Helper()
		f, err := e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "f", Payload: anyPickle})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	older, newer := register(), register()
	made, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: newer.GetFunctionId(), Payload: anyPickle})
	if err != nil {
		t.Fatal(err)
	}
	remove := func(id string) error {
		_, err := e.fabric.DeleteFunction(ctx, &treadlev1.DeleteFunctionRequest{FunctionId: id})
		return err
	}
	err = remove(newer.GetFunctionId())
	info := infoOf(status.Convert(err))
	if status.Code(err) != codes.FailedPrecondition || info.GetReason() != reasonInUse || info.GetMetadata()["tasks"] != "1" {
		t.Fatalf("deleting a function in use: %v %v", err, info)
	}
	a := e.do(http.MethodDelete, "/v1/functions/"+newer.GetFunctionId(), nil)
	if obj, _ := a.json["error"].(map[string]any); a.status != http.StatusConflict || obj["reason"] != reasonInUse {
		t.Fatalf("deleting a function in use over REST: %d %s", a.status, a.raw)
	}
	e.settle(e.claim(), succeed(anyPickle, task.EncodingPickle))
	if err := remove(newer.GetFunctionId()); err != nil {
		t.Fatal(err)
	}
	// It was cached when it was executed.
	if _, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: newer.GetFunctionId(), Payload: anyPickle}); status.Code(err) != codes.NotFound {
		t.Errorf("executing a deleted function: %v", err)
	}
	if got, err := e.fabric.GetFunction(ctx, &treadlev1.GetFunctionRequest{Function: "f"}); err != nil || got.GetFunctionId() != older.GetFunctionId() {
		t.Errorf("the name means %v, %v, want the one left", got, err)
	}
	if got, err := e.fabric.GetTask(ctx, &treadlev1.GetTaskRequest{TaskId: made.GetTaskId()}); err != nil || got.GetFunctionName() != "f" {
		t.Errorf("the finished task reads %v, %v", got, err)
	}
	for _, id := range []string{newer.GetFunctionId(), "f", "", "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"} {
		if err := remove(id); status.Code(err) != codes.NotFound {
			t.Errorf("deleting %q: %v", id, err)
		}
	}
	e.must(e.do(http.MethodDelete, "/v1/functions/"+older.GetFunctionId(), nil), http.StatusOK)
	e.must(e.get("/v1/functions/f"), http.StatusNotFound)
	e.must(e.do(http.MethodDelete, "/v1/functions/"+older.GetFunctionId(), nil), http.StatusNotFound)
}

func TestTransientFunctions(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t), withQuotas(fabric.Quotas{Functions: 2}))
	register := func(role auth.Role, name, key string, transient bool) (*treadlev1.Function, error) {
		return e.fabric.RegisterFunction(ring.as(t.Context(), role),
			&treadlev1.RegisterFunctionRequest{Name: name, Payload: anyPickle, RequestId: key, Transient: transient})
	}
	first, err := register(auth.Client, "f", "a", true)
	if err != nil || !first.GetTransient() {
		t.Fatalf("%v, %v", first, err)
	}
	for i := range 3 {
		if again, err := register(auth.Client, "f", fmt.Sprint(i), true); err != nil || again.GetFunctionId() != first.GetFunctionId() {
			t.Errorf("the same again: %v, %v, want %s", again, err, first.GetFunctionId())
		}
	}
	if other, err := register(auth.Admin, "f", "", true); err != nil || other.GetFunctionId() == first.GetFunctionId() {
		t.Errorf("another token's: %v, %v, want its own", other, err)
	}
	stays, err := register(auth.Client, "f", "", false)
	if err != nil || stays.GetFunctionId() == first.GetFunctionId() || stays.GetTransient() {
		t.Errorf("one that stays: %v, %v", stays, err)
	}
	_, err = register(auth.Client, "g", "", true)
	wantOver(t, err, "functions", "2", "2")
	if again, err := register(auth.Client, "f", "", true); err != nil || again.GetFunctionId() != first.GetFunctionId() {
		t.Errorf("the same again over the quota: %v, %v, want %s", again, err, first.GetFunctionId())
	}
	if _, err := e.fabric.DeleteFunction(ring.as(t.Context(), auth.Client), &treadlev1.DeleteFunctionRequest{FunctionId: stays.GetFunctionId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := register(auth.Client, "g", "", true); err != nil {
		t.Errorf("after one was deleted: %v", err)
	}
}

package restjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

func TestDecode(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC))
	for text, want := range map[string]proto.Message{
		`{}`: &treadlev1.ExecuteRequest{},
		`{"function":"f","args":[1, {"x" : 1.0}],"kwargs":{"a":null},"request_id":"r"}`: &treadlev1.ExecuteRequest{
			Function: "f", Args: []byte(`[1, {"x" : 1.0}]`), Kwargs: []byte(`{"a":null}`), RequestId: "r"},
		`{"args":null,"kwargs":null,"function":null,"options":null,"requestId":"r"}`: &treadlev1.ExecuteRequest{RequestId: "r"},
		`{"function":"a","function":"b","args":[1],"args":[2]}`:                      &treadlev1.ExecuteRequest{Function: "b", Args: []byte("[2]")},
		`{"unknown":{"function":"x"},"function":"f"}`:                                &treadlev1.ExecuteRequest{Function: "f"},
		`{"options":{"priority":0,"timeout":"1.5s","deadline":"2026-01-02T04:04:05.6+01:00","max_retries":"7","functionRetries":2.0,"memory_limit":"9007199254740993"}}`: &treadlev1.ExecuteRequest{
			Options: &treadlev1.ExecuteOptions{Priority: proto.Int32(0), Timeout: durationpb.New(1500 * time.Millisecond), Deadline: at,
				MaxRetries: proto.Int32(7), FunctionRetries: proto.Int32(2), MemoryLimit: 9007199254740993}},
		`{"options":{"timeout":"500ms"}}`: &treadlev1.ExecuteRequest{Options: &treadlev1.ExecuteOptions{Timeout: durationpb.New(500 * time.Millisecond)}},
		`{"options":{"timeout":2}}`:       &treadlev1.ExecuteRequest{Options: &treadlev1.ExecuteOptions{Timeout: durationpb.New(2 * time.Second)}},
		`{"requests":[{"function":"a","args":[[]]},{"function":"b"},{}]}`: &treadlev1.ExecuteBatchRequest{Requests: []*treadlev1.ExecuteRequest{
			{Function: "a", Args: []byte("[[]]")}, {Function: "b"}, {}}},
		`{"payload":" aGVs\nbG8= "}`:                  &treadlev1.RegisterFunctionRequest{Payload: []byte("hello")},
		`{"payload":"aGVsbG8"}`:                       &treadlev1.RegisterFunctionRequest{Payload: []byte("hello")},
		`{"payload":"-_8="}`:                          &treadlev1.RegisterFunctionRequest{Payload: []byte{0xfb, 0xff}},
		`{"payload":""}`:                              &treadlev1.RegisterFunctionRequest{},
		`{"name":"\u00fc\ud83d\ude00\n"}`:             &treadlev1.RegisterFunctionRequest{Name: "ü😀\n"},
		`{"task_ids":["a","b"]}`:                      &treadlev1.AwaitResultsRequest{TaskIds: []string{"a", "b"}},
		`{"name":""}`:                                 &treadlev1.RegisterRootRequest{Name: proto.String("")},
		`{"result":null,"status":"FAILED"}`:           &treadlev1.TaskResult{Result: []byte("null"), Status: treadlev1.Task_FAILED},
		`{"result":"x","status":3,"resultPickle":""}`: &treadlev1.TaskResult{Result: []byte(`"x"`), Status: treadlev1.Task_COMPLETED, ResultPickle: []byte{}},
	} {
		got := want.ProtoReflect().New().Interface()
		if err := Decode([]byte(text), got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	for text, want := range map[string]string{
		``: TypeSyntax, `{`: TypeSyntax, `{"function":"f"} x`: TypeSyntax, "{\"function\":\"\xff\"}": TypeSyntax, `{"function":5,}`: TypeSyntax,
		`{"args":[1,]}`: TypeSyntax, `{"unknown":tru}`: TypeSyntax, `{"unknown":` + strings.Repeat("[", 600) + strings.Repeat("]", 600) + `}`: TypeSyntax,
		`[]`: TypeObject, `null`: TypeObject, `"x"`: TypeObject, `{"options":5}`: TypeObject, `{"options":[]}`: TypeObject,
		`{"function":5}`: TypeString, `{"function":["x"]}`: TypeString, `{"function":"\ud800"}`: TypeString, `{"payload":5}`: TypeBytes, `{"payload":"*"}`: TypeBytes,
		`{"payload":"A"}`: TypeBytes, `{"options":{"priority":1.5}}`: TypeInt, `{"options":{"priority":"x"}}`: TypeInt, `{"options":{"priority":4294967296}}`: TypeInt,
		`{"options":{"priority":true}}`: TypeInt, `{"options":{"memory_limit":1e300}}`: TypeInt, `{"options":{"timeout":"x"}}`: TypeDuration,
		`{"options":{"timeout":{}}}`: TypeDuration, `{"options":{"deadline":"tomorrow"}}`: TypeTime, `{"options":{"deadline":5}}`: TypeTime,
	} {
		var e *Error
		if err := Decode([]byte(text), &treadlev1.ExecuteRequest{}); !errors.As(err, &e) || e.Type != want {
			t.Errorf("%.60s: %v, want %s", text, err, want)
		} else if e.Type != TypeSyntax && len(text) > 5 && strings.HasPrefix(text, `{"options":{`) && len(e.Path) != 2 {
			t.Errorf("%s: the fault is at %v", text, e.Path)
		}
	}
	err := Decode([]byte(`{"requests":[{},{"options":{"priority":"x"}}]}`), &treadlev1.ExecuteBatchRequest{})
	if err == nil || !strings.HasPrefix(err.Error(), "requests.1.options.priority: ") {
		t.Errorf("%v", err)
	}
	if err := Decode([]byte(`{"status":"NOPE"}`), &treadlev1.TaskResult{}); err == nil {
		t.Error("an unknown status is accepted")
	}
}

// TestDecodeOwned holds the reading that shares memory against the one that does not.
func TestDecodeOwned(t *testing.T) {
	large := strings.Repeat(`aGVsbG8gd29y\n`, ownedFrom/12)
	text := strings.Repeat(`\u00fc\ud83d\ude00\"x\n`, ownedFrom/20)
	for name, doc := range map[string]string{
		"text":            `{"name":"f","payload":"` + large + `"}`,
		"escapes":         `{"name":"` + text + `","payload":"x"}`,
		"twice":           `{"payload":"` + large + `","payload":"` + large + large + `"}`,
		"unknown before":  `{"other":["` + large + `"],"payload":"` + large + `","name":"f"}`,
		"syntax at end":   `{"payload":"` + large + `"} x`,
		"syntax within":   `{"payload":"` + large + `","name":tru}`,
		"type, then text": `{"payload":"` + large + `","name":5}`,
		"half surrogate":  `{"payload":"` + large + `\ud800"}`,
		"not UTF-8":       `{"payload":"` + large + "\xff" + `"}`,
	} {
		want := &treadlev1.RegisterRootRequest{}
		wantErr := Decode([]byte(doc), want)
		got := &treadlev1.RegisterRootRequest{}
		err := DecodeOwned([]byte(doc), got)
		if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
			t.Errorf("%s: %v, want %v", name, err, wantErr)
		} else if err == nil && !proto.Equal(got, want) {
			t.Errorf("%s: another message", name)
		}
	}
	for name, doc := range map[string]string{
		"base64 and JSON": `{"payload":"` + large + `","args":["` + large + `", 1.0],"kwargs":{},"function":"f"}`,
		"not base64":      `{"payload":"` + large + `*"}`,
		"JSON, then text": `{"args":["` + text + `"],"kwargs":{"a":"` + text + `"},"options":{"priority":3}}`,
	} {
		want := &treadlev1.ExecuteRequest{}
		wantErr := Decode([]byte(doc), want)
		got := &treadlev1.ExecuteRequest{}
		err := DecodeOwned([]byte(doc), got)
		if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
			t.Errorf("%s: %v, want %v", name, err, wantErr)
		} else if err == nil && !proto.Equal(got, want) {
			t.Errorf("%s: another message", name)
		}
	}
}

// text is a Value for tests.
type text string

func (v text) JSONLen() int { return len(v) }

func (v text) WriteJSON(w io.Writer) error {
	_, err := io.WriteString(w, string(v))
	return err
}

func TestDocument(t *testing.T) {
	large := bytes.Repeat([]byte("\xfbhello"), largeFrom/5)
	for _, tail := range []int{0, 1, 2} {
		for name, m := range map[string]proto.Message{
			"small":  &treadlev1.TaskResult{TaskId: "t", Result: []byte(`{"n": 1.0}`)},
			"raw":    &treadlev1.TaskResult{TaskId: "t", Result: []byte(`"` + strings.Repeat("x", largeFrom) + `"`), Error: &treadlev1.TaskError{Message: "m"}},
			"base64": &treadlev1.TaskResult{TaskId: "t", ResultPickle: large[:len(large)-tail], ResultRepr: "<x>"},
			"list":   &treadlev1.AwaitResultsResponse{Results: []*treadlev1.TaskResult{{ResultPickle: large}, {TaskId: "u", ResultPickle: large}}},
		} {
			want, err := Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			doc, err := Prepare(m, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := doc.Write(&got); err != nil || !bytes.Equal(got.Bytes(), want) || doc.Len() != len(want) {
				t.Errorf("%s: %d bytes, Len says %d, want %d: %v", name, got.Len(), doc.Len(), len(want), err)
			}
			if len(doc.text) > 1000 {
				t.Errorf("%s: %d bytes of text hold the value", name, len(doc.text))
			}
		}
	}
	m := &treadlev1.GetRootResultResponse{TaskId: "t", Status: "COMPLETED"}
	doc, err := Prepare(m, map[protoreflect.FullName]Value{"treadle.v1.GetRootResultResponse.result": text(`a\n`)})
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := doc.Write(&got); err != nil || got.String() != `{"task_id":"t","status":"COMPLETED","result":"a\n"}` {
		t.Errorf("%s, %v", got.String(), err)
	}
}

func TestTarget(t *testing.T) {
	var in *treadlev1.CallInput
	m, ok := Target(&in)
	if !ok || in == nil || m != proto.Message(in) {
		t.Errorf("%v %v", m, in)
	}
	if m, ok := Target(in); !ok || m != proto.Message(in) {
		t.Error("a message is not its own target")
	}
	for _, v := range []any{nil, 5, new(int), new(*int), (*treadlev1.CallInput)(nil)} {
		if _, ok := Target(v); ok && v != any((*treadlev1.CallInput)(nil)) {
			t.Errorf("%T is a target", v)
		}
	}
}

func TestEncode(t *testing.T) {
	for want, m := range map[string]proto.Message{
		`{"task_id":"t","status":"COMPLETED","result":{"n": 1.0}}`:                                &treadlev1.TaskResult{TaskId: "t", Status: treadlev1.Task_COMPLETED, Result: []byte(`{"n": 1.0}`)},
		`{"task_id":"t","status":"QUEUED"}`:                                                       &treadlev1.TaskResult{TaskId: "t", Status: treadlev1.Task_QUEUED},
		`{"task_id":"","status":"STATUS_UNSPECIFIED","result_pickle":"+/8=","result_repr":"<x>"}`: &treadlev1.TaskResult{ResultPickle: []byte{0xfb, 0xff}, ResultRepr: "<x>"},
		`{"tasks":[],"next_page_token":""}`:                                                       &treadlev1.ListTasksResponse{},
		`{"number":0,"worker":"","started_at":"2026-01-02T03:04:05.6Z","end":"","reason":"a\"b\n"}`: &treadlev1.Attempt{
			StartedAt: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)), Reason: "a\"b\n"},
		`{"timeout":"-0.5s","max_retries":0,"memory_limit":9007199254740993}`: &treadlev1.ExecuteOptions{
			Timeout: durationpb.New(-500 * time.Millisecond), MaxRetries: proto.Int32(0), MemoryLimit: 9007199254740993},
		`{"version":"","durability":"","max_payload":5,"retention":"86400s"}`: &treadlev1.ServerInfo{MaxPayload: 5, Retention: durationpb.New(24 * time.Hour)},
	} {
		got, err := Encode(m)
		if err != nil || string(got) != want {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"requests":[{"function":"f","args":[1,"x"],"options":{"priority":3,"timeout":"1.5s","deadline":"2026-01-02T03:04:05Z"}}]}`,
		`{"requests":[{"payload":"aGVsbG8="},{"kwargs":{"a":{}}}]}`, `{"requests":null}`, `[]`, `{"requests":[{"options":{"memoryLimit":"5"}}]} x`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &treadlev1.ExecuteBatchRequest{}
		err := Decode(data, m)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Msg == "" {
				t.Fatalf("%q: %v", data, err)
			}
			return
		}
		if !json.Valid(data) {
			t.Fatalf("%q is no JSON", data)
		}
		// What was read is what is written, if its times are times.
		out, err := Encode(m)
		if err != nil || !json.Valid(out) {
			t.Fatalf("%q becomes %q: %v", data, out, err)
		}
		again := &treadlev1.ExecuteBatchRequest{}
		if err := Decode(out, again); err != nil {
			t.Fatalf("%q becomes %q, which is not read: %v", data, out, err)
		}
		if !proto.Equal(m, again) {
			t.Fatalf("%q becomes %q, which is %v, not %v", data, out, again, m)
		}
	})
}

func BenchmarkDecodePayload(b *testing.B) {
	data := []byte(`{"name":"f","payload":"` + strings.Repeat(strings.Repeat("A", 76)+`\n`, 100_000) + `"}`)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	b.Run("here", func(b *testing.B) {
		for b.Loop() {
			if err := Decode(data, &treadlev1.RegisterRootRequest{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("protojson", func(b *testing.B) {
		for b.Loop() {
			if err := protojson.Unmarshal(data, &treadlev1.RegisterRootRequest{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

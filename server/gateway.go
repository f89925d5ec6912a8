package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/pickle"
	"github.com/treadle-dev/treadle/server/restjson"
)

// newGateway builds the mux that turns REST into calls of our own gRPC services.
func (s *Server) newGateway() (*runtime.ServeMux, error) {
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, marshaler{}),
		runtime.SetQueryParameterParser(queryParser{}),
		runtime.WithErrorHandler(s.callFailed),
		runtime.WithRoutingErrorHandler(s.notRouted),
		runtime.WithStreamErrorHandler(func(_ context.Context, err error) *status.Status { return status.Convert(err) }),
		runtime.WithMiddlewares(s.routed),
		runtime.WithForwardResponseOption(s.createdStatus),
		runtime.WithForwardResponseOption(answered),
		runtime.WithForwardResponseRewriter(rewritten),
		// A POST never reads as a GET, whatever its headers say: curl -d sends a form's type.
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithDisableChunkedEncoding(),
		runtime.WithWriteContentLength(),
	)
	ctx := context.Background()
	if err := treadlev1.RegisterRootServiceHandlerClient(ctx, mux, treadlev1.NewRootServiceClient(s.inline)); err != nil {
		return nil, fmt.Errorf("server: routes of the root: %w", err)
	}
	if err := treadlev1.RegisterFabricServiceHandlerClient(ctx, mux, treadlev1.NewFabricServiceClient(s.inline)); err != nil {
		return nil, fmt.Errorf("server: routes under /v1: %w", err)
	}
	return mux, nil
}

// exchange is what the parts of one HTTP request tell each other; it travels in the
// request's context.
type exchange struct {
	body *body
	// result is set by the root service where a result is too large to be text first.
	result *pickle.Encoded
	// written says that the answer was written already.
	written bool
	// route is the pattern that matched.
	route string
	// matched is set instead of serving when probe is, to learn which methods a path has.
	probe, matched bool
	mux            *runtime.ServeMux
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	ex, _ := ctx.Value(exchangeKey{}).(*exchange)
	return ex
}

// routed notes the route that a request took, and refuses what it does not know.
func (s *Server) routed(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, params map[string]string) {
		ex := exchangeOf(r.Context())
		foreign := isForeignVerb(r, params)
		if ex.probe {
			ex.matched = !foreign
			return
		}
		if e := nameless(r.URL.Path); e != nil {
			writeError(w, r, *e)
			return
		}
		if foreign {
			writeMethodNotAllowed(w, r, allowedMethods(ex.mux, r))
			return
		}
		p, _ := runtime.HTTPPattern(r.Context())
		ex.route = p.String()
		e := judgeTimeout(r.Header.Get("Grpc-Timeout"))
		if e == nil {
			e = s.routes.judge(ex, r, params)
		}
		if e != nil {
			writeError(w, r, *e)
			return
		}
		next(w, r, params)
	}
}

// isForeignVerb reports whether the last part of a path is a verb that takes POST
// while the request is a GET: it would be taken for an id or a name that ends so.
func isForeignVerb(r *http.Request, params map[string]string) bool {
	return r.Method == http.MethodGet &&
		(strings.HasSuffix(params["task_id"], ":cancel") || strings.HasSuffix(params["function"], ":call")) && !isRoot(r.URL.Path)
}

// createdStatus answers accepted registrations and executions at the root with the
// configured status.
func (s *Server) createdStatus(_ context.Context, w http.ResponseWriter, m proto.Message) error {
	if s.cfg.RESTCreatedStatus == http.StatusOK {
		return nil
	}
	switch m.(type) {
	case *treadlev1.RegisterRootResponse, *treadlev1.ExecuteRootResponse:
		w.WriteHeader(s.cfg.RESTCreatedStatus)
	}
	return nil
}

// resultField is where the root service leaves room for exchange.result.
var resultField = (&treadlev1.GetRootResultResponse{}).ProtoReflect().Descriptor().Fields().ByName("result").FullName()

// answered writes an answer with a large value as it is encoded. Others it leaves to the
// gateway, which makes one buffer of the whole.
func answered(ctx context.Context, w http.ResponseWriter, m proto.Message) error {
	ex := exchangeOf(ctx)
	if ex == nil {
		return nil
	}
	var doc restjson.Document
	var err error
	switch x := m.(type) {
	case *treadlev1.GetRootResultResponse:
		if ex.result == nil {
			return nil
		}
		doc, err = restjson.Prepare(m, map[protoreflect.FullName]restjson.Value{resultField: *ex.result})
	case *treadlev1.TaskResult:
		if len(x.GetResult()) < largeValue && len(x.GetResultPickle()) < largeValue {
			return nil
		}
		doc, err = restjson.Prepare(m, nil)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	ex.written = true
	w.Header().Set("Content-Length", strconv.Itoa(doc.Len()))
	if err := ex.body.write(doc.Len(), doc.Write); err != nil {
		panic(http.ErrAbortHandler) // the client has half an answer: nothing can be added to it
	}
	return nil
}

// rewritten keeps the gateway from writing an answer again.
func rewritten(ctx context.Context, m proto.Message) (any, error) {
	if ex := exchangeOf(ctx); ex != nil && ex.written {
		return nothing{}, nil
	}
	return m, nil
}

// nothing is an answer that was written already.
type nothing struct{}

// notRouted answers requests that no route takes.
func (s *Server) notRouted(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, httpStatus int) {
	ex := exchangeOf(r.Context())
	if ex.probe {
		return
	}
	if e := nameless(r.URL.Path); e != nil {
		writeError(w, r, *e)
		return
	}
	if httpStatus == http.StatusMethodNotAllowed {
		allow := allowedMethods(ex.mux, r)
		writeMethodNotAllowed(w, r, allow)
		return
	}
	writeError(w, r, restError{http: http.StatusNotFound, code: codes.NotFound, reason: reasonRoute,
		text: fmt.Sprintf("Not Found: no route %s %.200q", r.Method, r.URL.Path)})
}

// allowedMethods asks the mux which methods a path has.
func allowedMethods(mux *runtime.ServeMux, r *http.Request) []string {
	var allow []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		ex := &exchange{probe: true, mux: mux}
		probe := r.Clone(context.WithValue(r.Context(), exchangeKey{}, ex))
		probe.Method = method
		mux.ServeHTTP(nowhere{}, probe)
		if ex.matched {
			allow = append(allow, method)
			if method == http.MethodGet {
				allow = append(allow, http.MethodHead)
			}
		}
	}
	return allow
}

// nowhere is the writer of probes; nothing is written to it.
type nowhere struct{}

func (nowhere) Header() http.Header         { return http.Header{} }
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) WriteHeader(int)             {}

// callFailed answers a call that ended in an error.
func (s *Server) callFailed(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	ex := exchangeOf(r.Context())
	if ex.body != nil && ex.body.err != nil {
		writeError(w, r, *ex.body.err)
		return
	}
	var malformed *runtime.HTTPStatusError
	if errors.As(err, &malformed) {
		writeError(w, r, restError{http: malformed.HTTPStatus, code: codes.InvalidArgument, reason: reasonInvalid, text: malformed.Error()})
		return
	}
	st := status.Convert(err)
	setRetryAfter(w, st)
	writeError(w, r, s.restErrorOf(ctx, r, st))
}

// restErrorOf is the way back through the error table: from a status to HTTP.
func (s *Server) restErrorOf(ctx context.Context, r *http.Request, st *status.Status) restError {
	e := restError{code: st.Code(), text: st.Message()}
	if info := infoOf(st); info != nil {
		e.reason, e.field = info.GetReason(), info.GetMetadata()["field"]
		e.http = httpByReason[e.reason]
	}
	if e.http == 0 {
		// Made by gRPC or the gateway, not by a handler.
		e.http, e.reason = runtime.HTTPStatusFromCode(st.Code()), reasonInternal
		switch st.Code() {
		case codes.InvalidArgument:
			e.reason = reasonInvalid
		case codes.ResourceExhausted:
			e.http, e.reason = http.StatusRequestEntityTooLarge, reasonTooLarge
		case codes.Canceled:
			e.reason = reasonCancelled
		case codes.DeadlineExceeded:
			e.reason = reasonTimeout
		case codes.Unavailable:
			e.reason = "UNAVAILABLE"
		default:
			s.log.WarnContext(ctx, "unexpected status behind REST", "path", r.URL.Path, "code", st.Code(), "error", st.Message())
		}
	}
	if isRoot(r.URL.Path) && st.Code() == codes.InvalidArgument && e.reason != reasonPayload {
		e.http = http.StatusUnprocessableEntity
		e.faults = faultsOf(st, e)
	}
	return e
}

// faultsOf lists the faults of a request's shape in FastAPI's form.
func faultsOf(st *status.Status, e restError) []fault {
	violations := violationsOf(st)
	if len(violations) == 0 {
		violations = []*errdetails.BadRequest_FieldViolation{{Field: e.field, Description: e.text, Reason: "value_error"}}
	}
	var list []fault
	for _, v := range violations {
		loc := []any{"body"}
		if v.GetField() != "" {
			loc = append(loc, v.GetField())
		}
		list = append(list, fault{Loc: loc, Msg: v.GetDescription(), Type: v.GetReason()})
	}
	return list
}

// marshaler is restjson as the gateway wants it.
type marshaler struct{}

func (marshaler) ContentType(any) string       { return "application/json" }
func (marshaler) StreamContentType(any) string { return "application/x-ndjson" }
func (marshaler) Delimiter() []byte            { return []byte("\n") }

// Marshal writes a message, or what the gateway wraps around the messages of a
// stream: they are written plain, one a line, and an error as {"error": ...}.
func (marshaler) Marshal(v any) ([]byte, error) {
	switch x := v.(type) {
	case proto.Message:
		return restjson.Encode(x)
	case map[string]any:
		if m, ok := x["result"].(proto.Message); ok {
			return restjson.Encode(m)
		}
	case map[string]proto.Message:
		if st, ok := x["error"]; ok {
			return streamError(st), nil
		}
	case nothing:
		return nil, nil
	}
	return nil, fmt.Errorf("no JSON form for %T", v)
}

func (m marshaler) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		b, err := m.Marshal(v)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	})
}

// Unmarshal reads one whole document, whose memory the message may share afterwards; no
// document at all leaves the message empty.
func (marshaler) Unmarshal(data []byte, v any) error { return unmarshal(data, v, false) }

func unmarshal(data []byte, v any, strict bool) error {
	if len(bytes.TrimLeft(data, " \t\r\n")) == 0 {
		if _, ok := v.(*treadlev1.ExecuteBatchRequest); ok {
			return batchWanted
		}
		return io.EOF
	}
	m, ok := restjson.Target(v)
	if !ok {
		return fmt.Errorf("no message to read into in %T", v)
	}
	if strict {
		return restjson.DecodeStrict(data, m)
	}
	return restjson.DecodeOwned(data, m)
}

// batchWanted is what an empty body is told where it would be a batch of nothing.
var batchWanted = &restjson.Error{Path: []string{"requests"}, Type: restjson.TypeObject, Offset: -1,
	Msg: `the body is empty: want {"requests": [...]}`}

// NewDecoder reads the whole body at once, within the limits of the server.
func (marshaler) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		b, ok := r.(*body)
		if !ok {
			return fmt.Errorf("the gateway reads from %T", r)
		}
		data, err := b.readAll()
		if err != nil {
			return err
		}
		err = unmarshal(data, v, b.strict)
		if err != nil && !errors.Is(err, io.EOF) {
			b.refuse(err)
		}
		return err
	})
}

// queryParser reads query parameters as restjson reads fields. What it meets was found
// good by [restRoutes.judge], or is to be ignored.
type queryParser struct{}

func (queryParser) Parse(msg proto.Message, values url.Values, filter *utilities.DoubleArray) error {
	m := msg.ProtoReflect()
	for key, texts := range values {
		f := m.Descriptor().Fields().ByName(protoreflect.Name(key))
		if f == nil || filter.HasCommonPrefix([]string{key}) || len(texts) == 0 {
			continue
		}
		if err := restjson.SetText(m, f, texts[len(texts)-1]); err != nil {
			return err
		}
	}
	return nil
}

func isRoot(path string) bool { return path != "/v1" && !strings.HasPrefix(path, "/v1/") }

func writeMethodNotAllowed(w http.ResponseWriter, r *http.Request, allow []string) {
	slices.Sort(allow)
	w.Header().Set("Allow", strings.Join(allow, ", "))
	writeError(w, r, restError{http: http.StatusMethodNotAllowed, code: codes.Unimplemented, reason: reasonMethod,
		text: fmt.Sprintf("Method Not Allowed: %.200q takes %s, not %.20s", r.URL.Path, strings.Join(allow, " or "), r.Method)})
}

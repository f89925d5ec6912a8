package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/treadle-dev/treadle/server/restjson"
)

// Reading of bodies.
const (
	// largeValue is the size from which results are written to a client as they are encoded.
	largeValue = 1 << 20
	// bodyGrace and bodyRate give the time that a body or answer of some size may take.
	bodyGrace = 15 * time.Second
	bodyRate  = 256 << 10
)

// body is the body of one request. Nothing of it is read before a route asks for
// all of it, and a route that does not ask sees an empty body.
type body struct {
	r     *http.Request
	w     http.ResponseWriter
	rest  io.ReadCloser
	limit int64
	grace time.Duration
	held  holding
	// strict says that fields which the route does not know are refused.
	strict bool
	// err is why the body was refused.
	err *restError
}

// Read makes body a request's Body: for those who do not call readAll it is empty.
func (b *body) Read([]byte) (int, error) { return 0, io.EOF }

// Close does nothing: net/http closes what it opened.
func (b *body) Close() error { return nil }

// release gives the budget back, that of a large answer too.
func (b *body) release() {
	b.held.dropRequest()
	b.held.dropAnswer()
}

var errRefused = errors.New("the body was refused")

func (b *body) fail(e restError) error {
	b.err = &e
	return errRefused
}

// readAll returns the whole body.
func (b *body) readAll() ([]byte, error) {
	if enc := b.r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, b.fail(restError{http: http.StatusUnsupportedMediaType, code: codes.InvalidArgument, reason: reasonEncoding,
			text: fmt.Sprintf("Content-Encoding %.40q is not supported: send the body as it is", enc)})
	}
	size := b.r.ContentLength
	if size > b.limit {
		return nil, b.tooLarge(size)
	}
	b.setDeadline()
	data, err := b.readWithin(size)
	if err == nil {
		// A deadline left behind would end a call that waits for its task: net/http goes
		// on reading, to notice when the client leaves. After a refusal it stays, as
		// net/http then reads what is left of the body.
		b.clearDeadline()
	}
	return data, err
}

func (b *body) readWithin(size int64) ([]byte, error) {
	if size < 0 {
		return b.readUnknown()
	}
	if err := b.hold(size); err != nil {
		b.drop(size)
		return nil, err
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(b.rest, data); err != nil {
		return nil, b.broken(err)
	}
	return data, nil
}

// readUnknown reads a body that does not say its length. One that turns out to be
// large holds as much of the budget as the largest.
func (b *body) readUnknown() ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(b.rest, freeBody+1))
	if err != nil {
		return nil, b.broken(err)
	}
	if len(data) <= freeBody {
		return data, nil
	}
	if err := b.hold(b.limit); err != nil {
		b.drop(b.limit)
		return nil, err
	}
	for int64(len(data)) <= b.limit {
		if len(data) == cap(data) {
			grown := make([]byte, len(data), min(2*int64(cap(data)), b.limit+1))
			copy(grown, data)
			data = grown
		}
		n, err := b.rest.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if err == io.EOF {
			return data, nil
		}
		if err != nil {
			return nil, b.broken(err)
		}
	}
	return nil, b.tooLarge(-1)
}

// hold takes room in the budget for a large body.
func (b *body) hold(size int64) error {
	err := b.held.takeRequest(b.r.Context(), size)
	if err == nil {
		return nil
	}
	b.w.Header().Set("Retry-After", "1")
	return b.fail(restError{http: http.StatusServiceUnavailable, code: codes.Unavailable, reason: reasonBusy, text: errBusy{}.Error()})
}

// write runs f, which writes an answer of that size, and bounds the time that the client
// may take to read it.
func (b *body) write(size int, f func(io.Writer) error) error {
	limit := b.grace + time.Duration(size/bodyRate)*time.Second
	c := http.NewResponseController(b.w)
	_ = c.SetWriteDeadline(time.Now().Add(limit))
	err := f(b.w)
	if err == nil {
		_ = c.SetWriteDeadline(time.Time{}) // the connection may serve more requests
	}
	return err
}

// setDeadline bounds the time that the client may take, by the size it announced.
// Where there is no connection to bound, as in tests, there is nobody to be slow.
func (b *body) setDeadline() {
	size := b.r.ContentLength
	if size < 0 {
		size = b.limit
	}
	limit := b.grace + time.Duration(size/bodyRate)*time.Second
	_ = http.NewResponseController(b.w).SetReadDeadline(time.Now().Add(limit))
}

func (b *body) clearDeadline() {
	_ = http.NewResponseController(b.w).SetReadDeadline(time.Time{})
}

func (b *body) broken(err error) error {
	b.w.Header().Set("Connection", "close")
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return b.fail(restError{http: http.StatusRequestTimeout, code: codes.DeadlineExceeded, reason: reasonSlowBody,
			text: "the body arrived too slowly"})
	}
	return b.fail(restError{http: http.StatusBadRequest, code: codes.InvalidArgument, reason: reasonInvalid,
		text: fmt.Sprintf("the body could not be read: %v", err)})
}

// drop reads what is still under way of a body that was refused, within reason: a client
// that is cut off while it sends often never reads the answer.
func (b *body) drop(most int64) {
	b.setDeadline()
	_, _ = io.CopyN(io.Discard, b.rest, most)
}

// tooLarge refuses the body.
func (b *body) tooLarge(size int64) error {
	if size <= 4*b.limit {
		b.drop(4 * b.limit)
	}
	said := "the body, sent without its length,"
	if size >= 0 {
		said = fmt.Sprintf("the body of %d bytes", size)
	}
	return b.fail(restError{http: http.StatusRequestEntityTooLarge, code: codes.ResourceExhausted, reason: reasonTooLarge,
		text: fmt.Sprintf("%s is larger than the limit of %d bytes (4/3 of --max-payload and 5 %%)", said, b.limit)})
}

// refuse notes that the document was not what the route wants.
func (b *body) refuse(err error) {
	e := restError{http: http.StatusBadRequest, code: codes.InvalidArgument, reason: reasonInvalid, text: err.Error()}
	var shape *restjson.Error
	if errors.As(err, &shape) {
		e.field = strings.Join(shape.Path, ".")
		if len(shape.Path) == 0 && shape.Type != restjson.TypeSyntax {
			e.text = "the body: " + e.text
		}
		if shape.Type == restjson.TypeUnknown {
			e.reason = reasonUnknown
		}
		if isRoot(b.r.URL.Path) {
			e.http = http.StatusUnprocessableEntity
			e.faults = []fault{shapeFault(shape)}
		}
	}
	b.err = &e
}

func shapeFault(e *restjson.Error) fault {
	loc := []any{"body"}
	if e.Type == restjson.TypeSyntax {
		loc = append(loc, e.Offset)
	}
	for _, step := range e.Path {
		loc = append(loc, step)
	}
	return fault{Loc: loc, Msg: e.Msg, Type: e.Type}
}

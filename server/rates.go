package server

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/server/auth"
)

// idsPerUnit is how many waited ids, or rows of a page, cost as much as one call. They are
// about that much cheaper: their records are read in batches.
const idsPerUnit = 100

// meter takes the cost of a call, or of a page, from what its caller has left. req is nil
// for streams and pages.
func (g *guard) meter(ctx context.Context, method string, req any) error {
	if g.limits == nil {
		return nil
	}
	rule, _ := auth.RuleOf(method)
	return g.limits.charge(ctx, cost(rule.Cost, req))
}

// cost is what a request counts against the rate limit: 1, and more where it makes more
// work. AwaitResults is charged by its handler, when its ids are there: see [costOfIDs].
func cost(kind auth.Cost, req any) int {
	switch kind {
	case auth.CostNothing, auth.CostIDs:
		return 0
	case auth.CostItems:
		if batch, ok := req.(*treadlev1.ExecuteBatchRequest); ok {
			return max(1, len(batch.GetRequests()))
		}
	case auth.CostPage:
		if list, ok := req.(interface{ GetPageSize() int32 }); ok {
			if n, err := pageSize(list.GetPageSize()); err == nil {
				return 1 + n/idsPerUnit
			}
		}
	}
	return 1
}

// costOfIDs is what one AwaitResults costs, in one piece: a second piece could find the
// bucket no longer full, which a cost of more than it holds needs.
func costOfIDs(n int) int { return 1 + n/idsPerUnit }

// charge is take for whoever makes the call; nil limits and calls that cost nothing pass.
func (l *rateLimits) charge(ctx context.Context, n int) error {
	if l == nil || n == 0 {
		return nil
	}
	p, _ := auth.From(ctx)
	return l.take(p.Account(), n)
}

// rateLimits are token buckets, one for each principal, that hold what may come in one
// second. A nil rateLimits limits nothing.
type rateLimits struct {
	perSecond float64
	burst     int
	now       func() time.Time

	mu      sync.Mutex
	buckets map[string]*rate.Limiter
}

func newRateLimits(perSecond float64, now func() time.Time) *rateLimits {
	if perSecond <= 0 {
		return nil
	}
	return &rateLimits{perSecond: perSecond, burst: int(math.Ceil(perSecond)), now: now, buckets: make(map[string]*rate.Limiter)}
}

// take lets n through or refuses them with when to come back. A request for more than a
// bucket holds passes when the bucket is full and leaves a debt behind it, so that the
// rate holds over time.
func (l *rateLimits) take(id string, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[id]
	if b == nil {
		b = rate.NewLimiter(rate.Limit(l.perSecond), l.burst)
		l.buckets[id] = b
	}
	now, first := l.now(), min(n, l.burst)
	if !b.AllowN(now, first) {
		missing := float64(first) - b.TokensAt(now)
		wait := time.Duration(math.Ceil(missing / l.perSecond * float64(time.Second)))
		return &limited{wait: wait, perSecond: l.perSecond}
	}
	for n -= first; n > 0; n -= l.burst {
		b.ReserveN(now, min(n, l.burst))
	}
	return nil
}

// forget drops full buckets: one made anew would be full as well.
func (l *rateLimits) forget() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for id, b := range l.buckets {
		if b.TokensAt(now) >= float64(l.burst) {
			delete(l.buckets, id)
		}
	}
}

// limited is a call over the rate limit.
type limited struct {
	wait      time.Duration
	perSecond float64
}

func (e *limited) Error() string {
	return fmt.Sprintf("over the limit of %g calls a second, by cost (--rate-limit): come back in %s",
		e.perSecond, e.wait.Round(time.Millisecond))
}

// GRPCStatus is the error as a status, with ErrorInfo and RetryInfo.
func (e *limited) GRPCStatus() *status.Status {
	st, err := status.New(codes.ResourceExhausted, e.Error()).WithDetails(
		&errdetails.ErrorInfo{Reason: reasonRate, Domain: errorDomain},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(e.wait)})
	if err != nil {
		return status.New(codes.Internal, "an error could not be described: "+err.Error())
	}
	return st
}

// retryAfter is the wait that a status asks for; 0 when it asks for none.
func retryAfter(st *status.Status) time.Duration {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// setRetryAfter says in an answer over REST when to come back.
func setRetryAfter(w http.ResponseWriter, st *status.Status) {
	if wait := retryAfter(st); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
}

package server

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/protobuf/proto"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/collector"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Bounds of a list beside its page_size.
const (
	// maxPageBytes ends a page early, in bytes of protobuf. A record that is larger by
	// itself is a page by itself.
	maxPageBytes = 4 << 20
	// basicMessage is how much of an error's message the basic view has, in bytes.
	basicMessage = 1 << 10
	// rowsAtOnce is how many tasks are read from the store at first, before it is known how
	// large they are: one has up to 256 KiB of error.
	rowsAtOnce = 32
	// maxRowsAtOnce bounds it later on: short rows say nothing of those that follow, and 64 of
	// the longest are 16 MiB.
	maxRowsAtOnce = 64
)

// listPage is a page that is being filled.
type listPage struct{ left, bytes int }

func newListPage(size int32) (*listPage, error) {
	n, err := pageSize(size)
	return &listPage{left: n}, err
}

// takes reports whether one more record fits, and counts it.
func (p *listPage) takes(m proto.Message) bool {
	n := proto.Size(m)
	if p.left == 0 || p.bytes > 0 && p.bytes+n > maxPageBytes {
		return false
	}
	p.left, p.bytes = p.left-1, p.bytes+max(n, 1)
	return true
}

func (f service) ListFunctions(ctx context.Context, req *treadlev1.ListFunctionsRequest) (*treadlev1.ListFunctionsResponse, error) {
	page, err := newListPage(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	before, err := parsePageToken(req.GetPageToken(), pageFunctions, "")
	if err != nil {
		return nil, err
	}
	found, err := f.s.core.ListFunctions(ctx, before, page.left)
	if err != nil {
		return nil, err
	}
	out := &treadlev1.ListFunctionsResponse{}
	more := page.left == len(found)
	for _, fn := range found {
		m := functionProto(fn)
		if !page.takes(m) {
			more = true
			break
		}
		out.Functions, before = append(out.Functions, m), fn.ID
	}
	if more {
		out.NextPageToken = pageToken(before, pageFunctions, "")
	}
	return out, nil
}

func (f service) ListTasks(ctx context.Context, req *treadlev1.ListTasksRequest) (*treadlev1.ListTasksResponse, error) {
	page, err := newListPage(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	show, err := taskView(req.GetView())
	if err != nil {
		return nil, err
	}
	q, err := f.s.core.ListQuery(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	if q.Before, err = parsePageToken(req.GetPageToken(), pageTasks, req.GetFilter()); err != nil {
		return nil, err
	}
	out := &treadlev1.ListTasksResponse{}
	rows := rowsAtOnce
	// A store may give up early on rows that do not match; a page may then be short,
	// though seldom empty.
	for empty := 0; empty < maxListRounds; {
		q.Limit = min(page.left, rows)
		found, next, err := f.s.core.ListTasks(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, t := range found {
			m := show(t)
			if !page.takes(m) {
				out.NextPageToken = pageToken(q.Before, pageTasks, req.GetFilter())
				return out, nil
			}
			out.Tasks, q.Before = append(out.Tasks, m), t.ID
		}
		if next.IsZero() {
			out.NextPageToken = ""
			return out, nil
		}
		q.Before = next
		out.NextPageToken = pageToken(next, pageTasks, req.GetFilter())
		if page.left == 0 {
			return out, nil
		}
		if len(found) == 0 {
			empty++
		}
		rows = nextRows(found)
	}
	return out, nil
}

// nextRows is how many tasks to read next: such as those before them make at most
// maxPageBytes in memory.
func nextRows(last []*task.Task) int {
	bytes := 0
	for _, t := range last {
		bytes += 1 << 10
		if f := t.Failure; f != nil {
			bytes += len(f.Message) + len(f.Traceback) + len(f.Pickle) + len(f.ForeignPickle)
		}
	}
	if bytes == 0 {
		return maxRowsAtOnce
	}
	if bytes >= maxPageBytes/4 {
		// Most of it is garbage in a moment, and many pages may be asked for at once.
		collector.Passing(collector.Large)
	}
	return max(rowsAtOnce, min(maxRowsAtOnce, len(last)*maxPageBytes/bytes))
}

// taskView is how a list shows a task.
func taskView(v treadlev1.ListTasksRequest_View) (func(*task.Task) *treadlev1.Task, error) {
	switch v {
	case treadlev1.ListTasksRequest_VIEW_UNSPECIFIED, treadlev1.ListTasksRequest_BASIC:
		return basicTask, nil
	case treadlev1.ListTasksRequest_FULL:
		return taskProto, nil
	default:
		return nil, invalid("view", "view %d: want BASIC or FULL", v)
	}
}

// basicTask is a task without what its error carries for a debugger: with it, a page of
// failed tasks could have 250 MB.
func basicTask(t *task.Task) *treadlev1.Task {
	if t.Failure == nil {
		return taskProto(t)
	}
	short, failure := *t, *t.Failure
	short.Failure = &failure
	failure.Traceback, failure.Pickle, failure.ForeignPickle = "", nil, nil
	if len(failure.Message) > basicMessage {
		const mark = "... (cut)"
		failure.Message = task.ClipText(failure.Message, basicMessage-len(mark)) + mark
	}
	return taskProto(&short)
}

func (f service) ListWorkers(ctx context.Context, req *treadlev1.ListWorkersRequest) (*treadlev1.ListWorkersResponse, error) {
	page, err := newListPage(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, given, err := parseKeyToken(req.GetPageToken(), pageWorkers, 1)
	if err != nil {
		return nil, err
	}
	list, err := f.s.core.Workers(ctx)
	if err != nil {
		return nil, err
	}
	out := &treadlev1.ListWorkersResponse{}
	for _, p := range list {
		if given && p.Worker <= after[0] {
			continue
		}
		m := workerProto(p)
		if !page.takes(m) {
			out.NextPageToken = keyToken(pageWorkers, out.Workers[len(out.Workers)-1].GetWorkerId())
			break
		}
		out.Workers = append(out.Workers, m)
	}
	return out, nil
}

func (f service) ListQueues(ctx context.Context, req *treadlev1.ListQueuesRequest) (*treadlev1.ListQueuesResponse, error) {
	page, err := newListPage(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, given, err := parseKeyToken(req.GetPageToken(), pageQueues, 2)
	if err != nil {
		return nil, err
	}
	stats, err := f.s.core.Queues(ctx)
	if err != nil {
		return nil, err
	}
	out := &treadlev1.ListQueuesResponse{}
	for _, q := range stats {
		if given && slices.Compare([]string{q.Queue, q.Runtime}, after) <= 0 {
			continue
		}
		m := queueProto(q)
		if !page.takes(m) {
			last := out.Queues[len(out.Queues)-1]
			out.NextPageToken = keyToken(pageQueues, last.GetName(), last.GetRuntime())
			break
		}
		out.Queues = append(out.Queues, m)
	}
	return out, nil
}

func queueProto(q store.QueueStat) *treadlev1.Queue {
	return &treadlev1.Queue{Name: q.Queue, Runtime: q.Runtime, Queued: int32(q.Queued), Running: int32(q.Running)}
}

// largestQueues keeps the n queues that have most unfinished tasks and sums up the others.
// Of two that have as many the one that sorts first stays.
func largestQueues(stats []store.QueueStat, n int) (kept []store.QueueStat, queued, running int) {
	if len(stats) <= n {
		return stats, 0, 0
	}
	kept = slices.Clone(stats)
	slices.SortStableFunc(kept, func(a, b store.QueueStat) int {
		return cmp.Compare(b.Queued+b.Running, a.Queued+a.Running)
	})
	for _, q := range kept[n:] {
		queued, running = queued+q.Queued, running+q.Running
	}
	return kept[:n], queued, running
}

package server

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/codes"

	"github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/link/linkpb"
	"github.com/treadle-dev/treadle/store"
)

// metrics are what /metrics shows. Each server has a registry of its own, so that
// several fit into one process.
type metrics struct {
	registry *prometheus.Registry
	rpcs     *prometheus.CounterVec
	rpcTime  *prometheus.HistogramVec
	requests *prometheus.CounterVec
	httpTime *prometheus.HistogramVec
}

// latencyBuckets reach from a cached look-up to a call that waits for its task.
var latencyBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

func newMetrics(s store.Store, version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		rpcs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "treadle_grpc_calls_total", Help: "gRPC calls, those behind REST included, by method and code.",
		}, []string{"method", "code"}),
		rpcTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "treadle_grpc_call_seconds", Help: "Duration of gRPC calls; streams that last are left out.", Buckets: latencyBuckets,
		}, []string{"method"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "treadle_http_requests_total", Help: "HTTP requests by route, method and status.",
		}, []string{"route", "method", "status"}),
		httpTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "treadle_http_request_seconds", Help: "Duration of HTTP requests.", Buckets: latencyBuckets,
		}, []string{"route"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "treadle_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "durability": s.Info().Durability},
	})
	info.Set(1)
	m.registry.MustRegister(m.rpcs, m.rpcTime, m.requests, m.httpTime, info, queueCollector{s},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// submitted counts the tasks that were recorded.
func (m *metrics) submitted(core *fabric.Fabric) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "treadle_tasks_submitted_total", Help: "Tasks that this server recorded.",
	}, func() float64 { return float64(core.Submitted()) }))
}

// security says in the metrics how the server is protected.
func (m *metrics) security(cfg *Config) {
	flag := func(name, help string, on bool) {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		if on {
			g.Set(1)
		}
		m.registry.MustRegister(g)
	}
	flag("treadle_tls", "1 when the listeners speak TLS.", cfg.TLS != nil)
	flag("treadle_tokens_required", "1 when callers must have a token.", cfg.Tokens != nil)
	flag("treadle_insecure", "1 when other machines reach this server although TLS or tokens are missing (--insecure).", cfg.Insecure)
}

// door counts the connections of a listener.
func (m *metrics) door(d *door) {
	labels := prometheus.Labels{"listener": d.name}
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "treadle_connections", Help: "Open connections by listener.", ConstLabels: labels,
		}, func() float64 { open, _ := d.counts(); return float64(open) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "treadle_connections_fresh", Help: "Open connections without an admitted call, by listener.", ConstLabels: labels,
		}, func() float64 { _, fresh := d.counts(); return float64(fresh) }))
	for _, reason := range refusals {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "treadle_connections_refused_total", Help: refusedConnections, ConstLabels: prometheus.Labels{"listener": d.name, "reason": reason},
		}, func() float64 { return float64(d.refusedFor(reason)) }))
	}
}

// budget shows what is held of large requests and answers.
func (m *metrics) budget(b *budget) {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "treadle_held_bytes", Help: "Bytes of large requests and answers that are held."},
			func() float64 { used, _, _ := b.held(); return float64(used) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "treadle_held_waiting", Help: "Large requests and answers that wait for room."},
			func() float64 { _, waiting, _ := b.held(); return float64(waiting) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "treadle_held_refused_total", Help: "Large requests and answers that found no room (BUSY)."},
			func() float64 { _, _, refused := b.held(); return float64(refused) }))
}

// links shows what the streams of workers hold.
func (m *metrics) links(b *linkpb.Budget, d Attacher) {
	gauge := func(name, help string, value func() int64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) }))
	}
	gauge("treadle_link_unwritten_bytes", "Bytes of frames that wait for workers to read them.", b.Unwritten)
	gauge("treadle_link_unfinished_bytes", "Bytes of results that workers have sent half.", b.Unfinished)
	gauge("treadle_link_unread_bytes", "Bytes of frames that workers have sent and the dispatcher has not looked at.", b.Unread)
	if l, ok := d.(interface{ Loading() int64 }); ok {
		gauge("treadle_link_function_bytes", "Bytes of functions that are read for workers or on their way to them.", l.Loading)
	}
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "treadle_link_ended_total", Help: "Streams of workers that ended for what they held: unread, or sent half.",
	}, func() float64 { return float64(b.Ended()) }))
}

func (m *metrics) observeRPC(method string, code codes.Code, took time.Duration, lasting bool) {
	m.rpcs.WithLabelValues(method, code.String()).Inc()
	if !lasting {
		m.rpcTime.WithLabelValues(method).Observe(took.Seconds())
	}
}

func (m *metrics) observeHTTP(route, method string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	m.httpTime.WithLabelValues(route).Observe(took.Seconds())
}

// queueCollector asks the store for the queues when somebody scrapes.
type queueCollector struct{ tasks store.Tasks }

// maxQueueSeries bounds the queues that /metrics names: callers choose names as they like,
// and each is two series that a scraper keeps. otherQueues has the rest; no runtime has
// that name, so it is nobody's queue.
const (
	maxQueueSeries = 1000
	otherQueues    = "other"
)

var queueDesc = prometheus.NewDesc("treadle_queue_tasks",
	"Unfinished tasks by queue, runtime and status: the 1000 queues that have most; the rest is summed up as queue and runtime other.",
	[]string{"queue", "runtime", "status"}, nil)

func (queueCollector) Describe(ch chan<- *prometheus.Desc) { ch <- queueDesc }

func (c queueCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	stats, err := c.tasks.QueueStats(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(queueDesc, err)
		return
	}
	stats, queued, running := largestQueues(stats, maxQueueSeries)
	if queued+running > 0 {
		stats = append(stats, store.QueueStat{Queue: otherQueues, Runtime: otherQueues, Queued: queued, Running: running})
	}
	for _, q := range stats {
		ch <- prometheus.MustNewConstMetric(queueDesc, prometheus.GaugeValue, float64(q.Queued), q.Queue, q.Runtime, "QUEUED")
		ch <- prometheus.MustNewConstMetric(queueDesc, prometheus.GaugeValue, float64(q.Running), q.Queue, q.Runtime, "RUNNING")
	}
}

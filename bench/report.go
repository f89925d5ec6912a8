package bench

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what one run of the load generator found, with what must be known to
// judge it.
type Report struct {
	StartedAt time.Time `json:"started_at"`
	// Version is that of the load generator, Server that of the server.
	Version    string        `json:"version"`
	Server     string        `json:"server"`
	Durability string        `json:"durability"`
	Machine    Machine       `json:"machine"`
	Runs       []Measurement `json:"runs"`
	// Sessions are the measurements of [MeasureSessions].
	Sessions []SessionMeasurement `json:"sessions,omitempty"`
}

// Machine is where it ran: server, workers and load generator share it.
type Machine struct {
	CPUs int `json:"cpus"`
	// Model is the processor's name, empty where it is not known.
	Model string `json:"model,omitempty"`
	OS    string `json:"os"`
	Arch  string `json:"arch"`
	Go    string `json:"go"`
}

// Measurement is one scenario in one mode and runtime.
type Measurement struct {
	Mode     string `json:"mode"`
	Runtime  string `json:"runtime"`
	Scenario string `json:"scenario"`
	// Clients is how many work at once, Batch how many tasks each has in a request.
	Clients        int     `json:"clients"`
	Batch          int     `json:"batch,omitempty"`
	Tasks          int64   `json:"tasks"`
	Seconds        float64 `json:"seconds"`
	TasksPerSecond float64 `json:"tasks_per_second"`
	// Latency is that of one task, of a whole batch in ScenarioBatch: from its
	// submission until the client has the result.
	Latency Latency `json:"latency_ms"`
	// CPUMicrosPerTask is the processor time of all processes that are known (load
	// generator, server, workers, runners), 0 when only the first is.
	CPUMicrosPerTask float64 `json:"cpu_us_per_task,omitempty"`
	// ServedCPUMicrosPerTask is the same without the load generator.
	ServedCPUMicrosPerTask float64 `json:"served_cpu_us_per_task,omitempty"`
	// ForeignCPU is how many processors were busy with other things: above 0.2 or so
	// repeat the measurement on a quieter machine.
	ForeignCPU float64 `json:"foreign_cpus,omitempty"`
}

// Latency holds percentiles in milliseconds.
type Latency struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
	Mean float64 `json:"mean"`
}

// ThisMachine describes the machine.
func ThisMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU(), OS: runtime.GOOS, Arch: runtime.GOARCH, Go: runtime.Version()}
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				m.Model = strings.TrimSpace(value)
				break
			}
		}
	}
	return m
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) error {
	model := ""
	if r.Machine.Model != "" {
		model = ", " + r.Machine.Model
	}
	if _, err := fmt.Fprintf(w, "server %s, durability %s; %d CPUs%s, %s/%s, %s\n\n", r.Server, r.Durability,
		r.Machine.CPUs, model, r.Machine.OS, r.Machine.Arch, r.Machine.Go); err != nil {
		return err
	}
	if len(r.Runs) > 0 {
		if err := r.printRuns(w); err != nil {
			return err
		}
	}
	if len(r.Sessions) > 0 {
		return r.printSessions(w)
	}
	return nil
}

func (r *Report) printRuns(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	row := func(cells ...string) { _, _ = fmt.Fprintln(tw, strings.Join(cells, "\t")+"\t") } // Flush returns the error
	row("MODE", "RUNTIME", "SCENARIO", "AT ONCE", "TASKS", "TASKS/S", "P50 MS", "P90 MS", "P99 MS", "MAX MS", "CPU US/TASK", "OTHERS' CPUS")
	for _, m := range r.Runs {
		atOnce := strconv.Itoa(m.Clients)
		if m.Batch > 0 {
			atOnce += "x" + strconv.Itoa(m.Batch)
		}
		cpu, foreign := "-", "-"
		if m.CPUMicrosPerTask > 0 {
			cpu, foreign = digits(m.CPUMicrosPerTask), fmt.Sprintf("%.2f", m.ForeignCPU)
		}
		row(m.Mode, m.Runtime, m.Scenario, atOnce, strconv.FormatInt(m.Tasks, 10), fmt.Sprintf("%.0f", m.TasksPerSecond),
			digits(m.Latency.P50), digits(m.Latency.P90), digits(m.Latency.P99), digits(m.Latency.Max), cpu, foreign)
	}
	return tw.Flush()
}

func (r *Report) printSessions(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	row := func(cells ...string) { _, _ = fmt.Fprintln(tw, strings.Join(cells, "\t")+"\t") } // Flush returns the error
	row("MODE", "LAYOUT", "SESSIONS", "CONNS", "ATTACH S", "IDLE CPU %", "RSS MIB", "KIB/SESSION",
		"CALL P50 MS", "P99 MS", "X", "BATCH TASKS/S", "X", "SERVER US/TASK", "X", "OTHERS' CPUS")
	for _, m := range r.Sessions {
		idle, resident, each, cpu := "-", "-", "-", "-"
		foreign := max(m.Call.ForeignCPU, m.Batch.ForeignCPU)
		others := "-"
		if m.Idle != nil {
			idle, resident = digits(m.Idle.CPUPercent), fmt.Sprintf("%.0f", float64(m.Idle.RSSBytes)/(1<<20))
			each = digits(m.Idle.BytesPerSession / (1 << 10))
			others = fmt.Sprintf("%.2f", max(foreign, m.Idle.ForeignCPU))
		}
		if m.Batch.ServedCPUMicrosPerTask > 0 {
			cpu = digits(m.Batch.ServedCPUMicrosPerTask)
		}
		ratio := [3]string{"1", "1", "-"}
		if cpu != "-" {
			ratio[2] = "1"
		}
		if m.Ratio != nil {
			ratio[0], ratio[1] = digits(m.Ratio.CallP50), digits(m.Ratio.BatchRate)
			if m.Ratio.CPU > 0 {
				ratio[2] = digits(m.Ratio.CPU)
			}
		}
		row(m.Mode, m.Layout, strconv.Itoa(m.Sessions), strconv.Itoa(m.Connections), digits(m.AttachSeconds), idle, resident, each,
			digits(m.Call.Latency.P50), digits(m.Call.Latency.P99), ratio[0], fmt.Sprintf("%.0f", m.Batch.TasksPerSecond), ratio[1],
			cpu, ratio[2], others)
	}
	return tw.Flush()
}

// digits writes a number to three digits.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

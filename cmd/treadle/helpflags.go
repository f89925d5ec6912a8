package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manyFlags is how many flags a list may have before it is told in groups, which are those
// of servers and workers: client verbs stay below.
const manyFlags = 22

// flagGroups are the headings of long lists of flags, in their order; a flag that is in
// none comes last, under "Other flags".
var flagGroups = []struct {
	title string
	flags []string
}{
	{"Listening", []string{"grpc-addr", "http-addr", "allowed-host", "rest-compat", "rest-created-status"}},
	{"Storage", []string{"store", "data-dir", "open-damaged", "retention"}},
	{"Delivery", []string{"dispatcher", "mode", "queues"}},
	{"Pool of Python runners", []string{
		"slots", "idle-after", "python", "python-path", "memory-limit", "max-attempts-per-runner", "no-provision", "drain-timeout",
	}},
	{"Workers that attach", []string{"heartbeat", "lease", "reconnect-grace", "stream-age"}},
	{"Defaults of tasks", []string{"max-retries", "task-timeout"}},
	{"Limits", []string{
		"max-payload", "max-connections", "rate-limit", "quota-tasks", "quota-bytes", "quota-functions", "quota-queues", "quota-waited",
	}},
	{"Security", []string{"token-file", "tls-ca", "tls-cert", "tls-key", "tls-client-ca", "insecure"}},
	{"Names and logs", []string{"name", "log-level", "log-format", "json"}},
}

// flagUsages lists the flags of a command, in groups where there are many.
func flagUsages(cmd *cobra.Command) string {
	all := cmd.LocalFlags()
	count := 0
	all.VisitAll(func(*pflag.Flag) { count++ })
	if count < manyFlags {
		return "Flags:\n" + strings.TrimRight(all.FlagUsages(), " \n")
	}
	var parts []string
	add := func(title string, belongs func(*pflag.Flag) bool) {
		set := pflag.NewFlagSet("", pflag.ContinueOnError)
		all.VisitAll(func(f *pflag.Flag) {
			if belongs(f) {
				set.AddFlag(f)
			}
		})
		if set.HasAvailableFlags() {
			parts = append(parts, title+":\n"+strings.TrimRight(set.FlagUsages(), " \n"))
		}
	}
	for _, g := range flagGroups {
		add(g.title, func(f *pflag.Flag) bool { return slices.Contains(g.flags, f.Name) })
	}
	add("Other flags", func(f *pflag.Flag) bool { return f.Name != "help" && groupOf(f.Name) == "" })
	return strings.Join(parts, "\n\n")
}

// groupOf is the heading of a flag; "" where it has none.
func groupOf(flag string) string {
	for _, g := range flagGroups {
		if slices.Contains(g.flags, flag) {
			return g.title
		}
	}
	return ""
}

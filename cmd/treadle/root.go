package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Groups of commands in the help of the root.
const (
	groupServe  = "serve"
	groupClient = "client"
	groupTools  = "tools"
)

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "treadle",
		Short: "A task fabric: register a function once, run it any number of times",
		Long: `Treadle runs functions as tasks: register a function once, execute it by id any
number of times, watch its tasks and fetch their results.

'treadle up' starts everything in one process. The other commands speak to it, over
gRPC, at --address.

` + exitCodesHelp,
		Example: `  treadle up                                     # in one terminal
  treadle register functions.py:double           # in another
  treadle run double 21
  seq 1 1000 | treadle map double > results.txt
  treadle tasks --status FAILED`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return unknownCommand(cmd, args[0])
		},
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       versionOf().Version,
	}
	root.SetVersionTemplate("treadle {{.Version}}\n")
	root.AddGroup(
		&cobra.Group{ID: groupServe, Title: "Servers and workers:"},
		&cobra.Group{ID: groupClient, Title: "Functions and tasks:"},
		&cobra.Group{ID: groupTools, Title: "Tools:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupServe, serverCommands()...)
	add(groupClient, newRegisterCommand(), newRunCommand(), newMapCommand(), newStatusCommand(), newResultCommand(),
		newWatchCommand(), newLogsCommand(), newCancelCommand(), newTasksCommand(), newFunctionsCommand(),
		newWorkersCommand(), newQueuesCommand())
	add(groupTools, newBenchCommand(), newBenchWorkerCommand(), newDoctorCommand(), newTokenCommand(), newCertsCommand(), newVersionCommand())
	root.SetHelpCommand(newHelpCommand())
	root.SetHelpCommandGroupID(groupTools)
	root.SetCompletionCommandGroupID(groupTools)
	root.PersistentFlags().String(addressFlag, "", "gRPC address of the server (env TREADLE_ADDRESS, default 127.0.0.1:50051)")
	root.PersistentFlags().String(caFlag, "", "CA of the server's certificate, in PEM, or 'system'; enables TLS (env TREADLE_TLS_CA, default plain text)")
	root.PersistentFlags().String(certFlag, "", "client certificate, in PEM, for a server that requires one (env TREADLE_TLS_CERT)")
	root.PersistentFlags().String(keyFlag, "", "private key of --tls-cert, in PEM (env TREADLE_TLS_KEY)")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, name := range []string{addressFlag, caFlag, certFlag, keyFlag} {
			if f := cmd.InheritedFlags().Lookup(name); f != nil && f.Changed && !isClient(cmd) {
				return misuse("'%s' has no --%s", cmd.CommandPath(), name)
			}
		}
		return nil
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{flagError(err)} })
	root.SetUsageTemplate(usageTemplate(root.UsageTemplate()))
	return root
}

// unknownCommand says what may have been meant.
func unknownCommand(parent *cobra.Command, name string) error {
	parent.SuggestionsMinimumDistance = 2
	text := fmt.Sprintf("unknown command %q", name)
	if like := parent.SuggestionsFor(name); len(like) > 0 {
		text += ": did you mean " + strings.Join(like, " or ") + "?"
	}
	return misuse("%s", text)
}

// newHelpCommand is cobra's, except that an unknown command is a misuse.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		Long:  "Show the help of a command, as --help does.",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				if about == nil {
					about = cmd.Root()
				}
				return unknownCommand(about, append(rest, args...)[0])
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			about, _, err := cmd.Root().Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, c := range about.Commands() {
				if c.IsAvailableCommand() && strings.HasPrefix(c.Name(), prefix) {
					names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// addTemplateFuncs changes what all commands of the process share.
var addTemplateFuncs = sync.OnceFunc(func() { cobra.AddTemplateFunc("flagUsages", flagUsages) })

// usageTemplate shows the global flags only where they mean something, and long lists of
// flags in groups.
func usageTemplate(standard string) string {
	addTemplateFuncs()
	standard = strings.Replace(standard, "Flags:\n{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}", "{{flagUsages .}}", 1)
	return strings.Replace(standard, "{{if .HasAvailableInheritedFlags}}",
		`{{if and .HasAvailableInheritedFlags (index .Annotations "`+clientMark+`")}}`, 1)
}

// clientMark annotates commands that speak to a server.
const clientMark = "treadle.client"

func isClient(cmd *cobra.Command) bool { return cmd.Annotations[clientMark] != "" }

// arguments checks the number of arguments; a negative limit means any number.
func arguments(minimum, maximum int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case maximum == 0 && len(args) > 0:
			return misuse("'%s' takes no arguments: %q is one too many", cmd.CommandPath(), args[0])
		case len(args) < minimum:
			return misuse("'%s' wants %s", cmd.CommandPath(), what)
		case maximum >= 0 && len(args) > maximum:
			return misuse("'%s' wants %s: %q is one too many", cmd.CommandPath(), what, args[maximum])
		}
		return nil
	}
}

// protected marks an argument that looks like a flag and is none. No command line can
// hold the character.
const protected = "\x00"

// protectArgs lets `treadle run abs -5` and `treadle register -:f` mean what they say: a
// word that is a negative number, or starts with "-:", and is no flag's value is an
// argument of these verbs. They take the mark off again by [plainArgs].
func protectArgs(root *cobra.Command, args []string) []string {
	verb := slices.IndexFunc(args, func(a string) bool { return a == "run" || a == "map" || a == "register" })
	if verb < 0 {
		return args
	}
	cmd, _, err := root.Find(args[verb : verb+1])
	if err != nil {
		return args
	}
	out := slices.Clone(args)
	for i := verb + 1; i < len(out); i++ {
		switch {
		case out[i] == "--":
			return out
		case takesValue(cmd, out[i-1]):
		case strings.HasPrefix(out[i], "-:"), strings.HasPrefix(out[i], "-") && json.Valid([]byte(out[i])):
			out[i] = protected + out[i]
		}
	}
	return out
}

// takesValue reports whether a word is a flag whose value is the next word.
func takesValue(cmd *cobra.Command, word string) bool {
	var f *pflag.Flag
	switch name, long := strings.CutPrefix(word, "--"); {
	case long && !strings.Contains(name, "="):
		if f = cmd.Flags().Lookup(name); f == nil {
			f = cmd.InheritedFlags().Lookup(name)
		}
	case !long && len(word) == 2 && word[0] == '-':
		f = cmd.Flags().ShorthandLookup(word[1:])
	}
	return f != nil && f.NoOptDefVal == ""
}

// plainArgs takes off what [protectArgs] put on.
func plainArgs(args []string) []string {
	out := slices.Clone(args)
	for i, a := range out {
		out[i] = strings.TrimPrefix(a, protected)
	}
	return out
}

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by release builds (-ldflags "-X main.version=v1.2.3"); others take
// what the Go tool recorded.
var version string

// buildInfo says what this binary is.
type buildInfo struct {
	Version string `json:"version"`
	// Commit is the revision that it was built from; Modified says that the checkout
	// had changes beside it.
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// versionOf describes this binary.
func versionOf() buildInfo {
	b := buildInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		if b.Version == "" && info.Main.Version != "(devel)" {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	if b.Version == "" {
		b.Version = "dev"
	}
	return b
}

func newVersionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Say which version this is",
		Example: `  treadle version
  treadle version --json`,
		Args: arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := versionOf()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), b)
			}
			detail := b.Go + ", " + b.Platform
			if b.Commit != "" {
				detail = "commit " + b.Commit[:min(12, len(b.Commit))] + ", " + detail
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "treadle %s (%s)\n", b.Version, detail)
			return err
		},
	}
	addJSONFlag(cmd, &asJSON, "print one JSON object")
	return cmd
}

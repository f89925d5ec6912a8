package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/treadle-dev/treadle/server/auth"
)

// envTokenFile is the twin of servers' --token-file.
const envTokenFile = "TREADLE_TOKEN_FILE"

func newTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Create, list and revoke the tokens that callers of a server need",
		Long: `Manages the file of tokens that servers and dispatchers read (--token-file). The file
holds hashes, not secrets: a token is shown once, when it is created. Servers apply
changes within about a second, without a restart.

To replace a token, create a new one, hand it out, then revoke the old one. Both are
accepted until then.`,
		Example: `  treadle token create --role client --file tokens.json
  treadle token create --role worker --name gpu-hosts --expires 90d --file tokens.json
  treadle token list --file tokens.json
  treadle token revoke 0123456789abcdef --file tokens.json`,
		Args: arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTokenCreateCommand(), newTokenListCommand(), newTokenRevokeCommand())
	return cmd
}

// fileFlag adds --file, whose twin is that of the servers' flag.
func fileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "file", "", "the token file (env "+envTokenFile+")")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if *file == "" {
			*file = os.Getenv(envTokenFile)
		}
		if *file == "" {
			return misuse("--file is missing: name the file of tokens, or set %s", envTokenFile)
		}
		return nil
	}
}

func newTokenCreateCommand() *cobra.Command {
	var file, name, roleName, expires string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create --role ROLE --file FILE",
		Short: "Create a token and print it once",
		Long: `Creates a token, stores its hash in the file (created if it does not exist) and prints the
token on standard output. The token cannot be shown again.

Roles: a client registers functions, executes tasks and reads everything about them; a
worker attaches to dispatchers and runs tasks; an admin may do both.`,
		Example: `  export TREADLE_TOKEN=$(treadle token create --role client --expires 90d --file tokens.json)`,
		Args:    arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			role, ok := auth.ParseRole(roleName)
			if !ok {
				return misuse("--role %q: want client, worker or admin", roleName)
			}
			now := time.Now()
			var until time.Time
			if expires != "" {
				life, err := parseLife(expires)
				if err != nil {
					return misuse("--expires %q: %w", expires, err)
				}
				until = now.Add(life)
			}
			rec, secret, err := auth.New(role, name, now, until)
			if err != nil {
				return misuse("--name: %w", err)
			}
			if err := auth.Add(file, rec); err != nil {
				return err
			}
			if asJSON {
				out := map[string]any{"token": secret, "id": rec.ID, "role": rec.Role, "name": rec.Name, "expires": rec.Expires}
				return json.NewEncoder(cmd.OutOrStdout()).Encode(out)
			}
			fmt.Fprintln(cmd.OutOrStdout(), secret)
			fmt.Fprintf(cmd.ErrOrStderr(), "Created token %s, role %s, %s. It cannot be shown again.\n", rec.ID, rec.Role, untilText(rec))
			return nil
		},
	}
	cmd.Flags().StringVar(&roleName, "role", "", "client, worker or admin")
	cmd.Flags().StringVar(&name, "name", "", "label for people, for example the team that uses it")
	cmd.Flags().StringVar(&expires, "expires", "", "how long the token is valid, for example 90d or 12h (default forever)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	fileFlag(cmd, &file)
	return cmd
}

func newTokenListCommand() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list --file FILE",
		Short:   "List the tokens of a file, without their secrets",
		Example: `  treadle token list --file tokens.json`,
		Args:    arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			records, err := auth.Read(file)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				for _, r := range records {
					line := map[string]any{"id": r.ID, "role": r.Role, "name": r.Name, "created": r.Created, "expires": r.Expires}
					if err := enc.Encode(line); err != nil {
						return err
					}
				}
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tROLE\tNAME\tCREATED\tEXPIRES")
			for _, r := range records {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.ID, r.Role, r.Name, r.Created.Format(time.RFC3339), untilText(r))
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object for each token")
	fileFlag(cmd, &file)
	return cmd
}

func newTokenRevokeCommand() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "revoke ID --file FILE",
		Short: "Revoke a token: servers refuse it and close the streams that it opened",
		Long: `Removes a token from the file by its id. Servers that read the file refuse the token
within a few seconds and close the streams of workers that use it; the tasks of those
workers run elsewhere.`,
		Example: `  treadle token revoke 0123456789abcdef --file tokens.json`,
		Args:    arguments(1, 1, "one token id, as 'treadle token list' shows it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.HasPrefix(args[0], auth.Prefix) {
				return misuse("that is the token itself, and other users can read command lines: give its id instead, as 'treadle token list' shows it")
			}
			if err := auth.Remove(file, args[0]); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"id": args[0], "revoked": true})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Token %s is revoked.\n", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	fileFlag(cmd, &file)
	return cmd
}

func untilText(r auth.Record) string {
	switch {
	case r.Expires == nil:
		return "never expires"
	case !time.Now().Before(*r.Expires):
		return "expired " + r.Expires.Format(time.RFC3339)
	default:
		return "expires " + r.Expires.Format(time.RFC3339)
	}
}

// parseLife reads a duration in days ("90d"), or in the units of time.ParseDuration.
func parseLife(text string) (time.Duration, error) {
	var life time.Duration
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n > 36500 {
			return 0, fmt.Errorf("want a number of days up to 36500, for example 90d")
		}
		life = time.Duration(n) * 24 * time.Hour
	} else {
		var err error
		if life, err = time.ParseDuration(text); err != nil {
			return 0, fmt.Errorf("want a duration, for example 90d or 12h")
		}
	}
	if life <= 0 {
		return 0, fmt.Errorf("want more than nothing")
	}
	return life, nil
}

// absolute makes a path good from everywhere, as it is to be pasted.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/treadle-dev/treadle/internal/tlsfiles"
)

func newCertsCommand() *cobra.Command {
	var dir, expires string
	var hosts []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "certs --dir DIR",
		Short: "Create a private CA and certificates for servers, workers and clients",
		Long: `Creates a private certificate authority (CA) and three certificates with their keys: one
for servers and dispatchers, valid for localhost and every --host; one for workers; and
one for clients. Keys have mode 0600. No file is overwritten. To renew the certificates,
move the old ones away and run the command again: it uses the CA in the folder.

Whoever has ca-key.pem can create worker certificates: keep it off the machines of the
cluster.`,
		Example: `  treadle certs --dir certs --host fabric.internal --host 10.0.0.5
  treadle certs --dir certs --expires 30d`,
		Args: arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return misuse("--dir is missing: name the folder to write to")
			}
			life, err := parseLife(expires)
			if err != nil {
				return misuse("--expires %q: %w", expires, err)
			}
			for _, h := range hosts {
				if h == "" || strings.ContainsAny(h, ":/ ") && !strings.Contains(h, "::") && strings.Count(h, ":") < 2 {
					return misuse("--host %q: want a name or an address alone, for example fabric.internal", h)
				}
			}
			made, err := tlsfiles.Make(dir, hosts, life, time.Now())
			if err != nil {
				return err
			}
			if asJSON {
				out := map[string]any{"dir": absolute(dir), "new_ca": made, "expires": time.Now().Add(life).UTC().Truncate(time.Second)}
				return json.NewEncoder(cmd.OutOrStdout()).Encode(out)
			}
			at := func(name string) string { return filepath.Join(absolute(dir), name) }
			fmt.Fprintf(cmd.OutOrStdout(), `Certificates for %[5]s are in %[1]s. Run these, with each machine's own files:

treadle up --tls-cert %[2]s.pem --tls-key %[2]s-key.pem --tls-client-ca %[4]s
treadle worker --tls-ca %[4]s --tls-cert %[3]s.pem --tls-key %[3]s-key.pem
treadle functions --tls-ca %[4]s

Keep %[6]s off those machines: whoever has it can create worker certificates.
`, absolute(dir), at("server"), at("worker"), at("ca.pem"), strings.Join(append([]string{"localhost"}, hosts...), ", "), at("ca-key.pem"))
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder to write to; created if it does not exist")
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "name or address of the servers; may be repeated")
	cmd.Flags().StringVar(&expires, "expires", "365d", "how long the certificates are valid; the CA is valid for ten years")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

package buildcheck

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestAnOptionHasItsPlaces holds the table of docs/architecture.md that says where an option of a
// task is known: each file of it knows every option, and no other file knows nearly all of them,
// which would be one more to change with each new option.
func TestAnOptionHasItsPlaces(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	contract := read("proto/treadle/v1/fabric.proto")
	_, message, ok := strings.Cut(contract, "\nmessage ExecuteOptions {")
	if !ok {
		t.Fatal("the contract has no message ExecuteOptions")
	}
	message, _, _ = strings.Cut(message, "\n}")
	var options []string
	for _, m := range regexp.MustCompile(`(?m)^  (?:optional )?[\w.]+ (\w+) = \d+`).FindAllStringSubmatch(message, -1) {
		options = append(options, m[1])
	}
	if len(options) < 6 {
		t.Fatalf("only %q were found as options", options)
	}
	_, section, ok := strings.Cut(read("docs/architecture.md"), "\n## How an option is added\n")
	if !ok {
		t.Fatal("docs/architecture.md has no section How an option is added")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var server, others []string
	for _, m := range regexp.MustCompile("(?m)^\\| (\\d+|with it) \\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
		if m[1] == "with it" {
			others = append(others, m[2])
		} else {
			server = append(server, m[2])
		}
	}
	if len(server) != 7 {
		t.Errorf("the table has %d files that change for any option, want seven: %q", len(server), server)
	}
	known := func(name string) (n int, missing []string) {
		text := strings.ToLower(strings.ReplaceAll(read(name), "_", ""))
		for _, o := range options {
			if regexp.MustCompile(`\b(get)?` + strings.ReplaceAll(o, "_", "") + `\b`).MatchString(text) {
				n++
			} else {
				missing = append(missing, o)
			}
		}
		return n, missing
	}
	for _, name := range server {
		if _, missing := known(name); len(missing) > 0 {
			t.Errorf("%s is said to know every option, and knows nothing of %q", name, missing)
		}
	}
	for _, name := range goFiles(t) {
		if strings.HasSuffix(name, "_test.go") || under(name, "store/storetest") || slices.Contains(server, name) || slices.Contains(others, name) ||
			!slices.ContainsFunc([]string{"task", "fabric", "server", "store", "link", "dispatcher", "worker", "internal"}, func(d string) bool { return under(name, d) }) {
			continue
		}
		if n, _ := known(name); n >= len(options)-1 {
			t.Errorf("%s knows %d of %d options: pass task.Spec whole, or add the file to the table of docs/architecture.md", name, n, len(options))
		}
	}
}

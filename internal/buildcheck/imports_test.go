package buildcheck

import (
	"fmt"
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rule says what the packages of one part of the house may import.
type rule struct {
	// part is a directory; the rule with the longest part that holds a package counts.
	part string
	// imports are the directories of this module that it may import beside itself.
	imports []string
	// outside are the modules or packages of others that it may import; "*" is any.
	outside []string
	// without are packages of the standard library that it must not import, for what is below them
	// too; tests may.
	without []string
	// tests are more directories of this module, for test files only.
	tests []string
	// network is the one file that may import link/linkpb and gRPC as well.
	network string
}

// rules is the house, from the ground up. An import that no rule allows fails; so does
// a package that no rule covers.
var rules = []rule{
	{part: "task"},
	{part: "internal"},
	{
		// The limits of the messages: it knows the contract, and stays closed to who knows frames only.
		part:    "internal/wire",
		imports: []string{"task", "gen"},
		outside: []string{"google.golang.org/grpc", "google.golang.org/protobuf"},
	},
	{part: "gen", outside: []string{
		"google.golang.org/grpc", "google.golang.org/protobuf", "google.golang.org/genproto",
		"github.com/grpc-ecosystem/grpc-gateway/v2",
	}},

	{part: "store", imports: []string{"task", "internal"}},
	{part: "store/moves", imports: []string{"task"}},
	{part: "store/storetest", imports: []string{"store", "task", "internal"}, outside: []string{"*"}},
	{part: "store/pebblestore", imports: []string{"store", "store/moves", "task", "internal"}, outside: []string{"*"}, tests: []string{"store/storetap"}},
	{part: "store/redisstore", imports: []string{"store", "store/moves", "task", "internal"}, outside: []string{"*"}},

	{part: "link", imports: []string{"task", "internal"}},
	{
		part:    "link/linkpb",
		imports: []string{"link", "task", "gen", "internal", "internal/wire"},
		outside: []string{"google.golang.org/grpc", "google.golang.org/protobuf"},
	},

	{
		// The application in plain types: it knows no wire, so that whoever submits or waits can use it.
		part:    "fabric",
		imports: []string{"task", "store", "internal"},
		outside: []string{"github.com/google/uuid"},
		without: []string{"net"},
		tests:   []string{"store/pebblestore"},
	},
	{
		part:    "dispatcher",
		imports: []string{"task", "store", "link", "internal"},
		tests:   []string{"fabric", "store/pebblestore", "store/redisstore", "store/storetap", "worker"},
	},
	{
		part:    "worker",
		imports: []string{"task", "link", "internal"},
		outside: []string{"github.com/google/uuid", "github.com/cenkalti/backoff/v5", "golang.org/x/sys"},
		tests:   []string{"dispatcher", "fabric", "store", "store/pebblestore", "link/linkpb"},
		// Serve alone dials: the agent and the executors know frames, not gRPC.
		network: "worker/serve.go",
	},
	{
		part:    "server",
		imports: []string{"fabric", "dispatcher", "store", "link", "link/linkpb", "task", "gen", "internal", "internal/wire"},
		outside: []string{"*"},
		tests:   []string{"store/pebblestore", "store/redisstore", "worker"},
	},
	{part: "clients/go", imports: []string{"gen", "internal"}, outside: []string{"*"}},

	// The whole in one process, for programs and tests: parts, and the client that calls them.
	{
		part:    "embed",
		imports: []string{"clients/go", "dispatcher", "fabric", "internal", "link", "server", "store", "store/pebblestore", "task", "worker"},
		outside: []string{"github.com/google/uuid", "google.golang.org/grpc"},
	},

	// What is wired up, measured or shown may use everything.
	{part: "cmd", imports: []string{"*"}, outside: []string{"*"}},
	{part: "bench", imports: []string{"*"}, outside: []string{"*"}},
	// Attacks on the finished program: all of it is tests.
	{part: "security", tests: []string{"*"}},
	{part: "examples", imports: []string{"worker", "clients/go", "link", "task"}, outside: []string{"*"}},
}

// ownGraphOnly are parts that may be imported only as a rule's own directory, not as
// something below another: "store" in a rule does not open the backends.
var ownGraphOnly = []string{"store/pebblestore", "store/redisstore", "link/linkpb", "internal/wire"}

// TestImportDirections checks every import of every Go file against the rules.
func TestImportDirections(t *testing.T) {
	checked := 0
	for _, name := range goFiles(t) {
		dir := path.Dir(name)
		r, ok := ruleFor(dir)
		if !ok {
			t.Errorf("%s: no rule covers this package; the parts of the house are named in imports_test.go", dir)
			continue
		}
		for _, imported := range importsOf(t, name) {
			checked++
			if err := r.check(name, imported); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if checked < 100 {
		t.Errorf("only %d imports were seen: the search for files is broken", checked)
	}
}

// TestRulesRefuse checks the check: imports that must be refused, and some that must not.
func TestRulesRefuse(t *testing.T) {
	for _, tt := range []struct {
		file, imported string
		ok             bool
	}{
		{file: "task/x.go", imported: "github.com/google/uuid"},
		{file: "task/x.go", imported: module + "/store"},
		{file: "task/x.go", imported: "log/slog", ok: true},
		{file: "store/x.go", imported: module + "/dispatcher"},
		{file: "store/x.go", imported: module + "/task", ok: true},
		{file: "store/x.go", imported: module + "/store/pebblestore"},
		{file: "store/redisstore/x.go", imported: module + "/store/pebblestore"},
		{file: "link/x.go", imported: module + "/gen/go/treadle/v1"},
		{file: "link/linkpb/x.go", imported: module + "/gen/go/treadle/v1", ok: true},
		{file: "fabric/x.go", imported: module + "/store", ok: true},
		{file: "fabric/x.go", imported: module + "/server/auth"},
		{file: "fabric/x.go", imported: module + "/gen/go/treadle/v1"},
		{file: "fabric/x.go", imported: module + "/link"},
		{file: "fabric/x.go", imported: "google.golang.org/grpc"},
		{file: "fabric/x.go", imported: "net/http"},
		{file: "server/x.go", imported: module + "/fabric", ok: true},
		{file: "dispatcher/x.go", imported: module + "/store/pebblestore"},
		{file: "dispatcher/x_test.go", imported: module + "/store/pebblestore", ok: true},
		{file: "dispatcher/x.go", imported: module + "/link/linkpb"},
		{file: "dispatcher/x.go", imported: module + "/gen/go/treadle/v1"},
		{file: "server/x.go", imported: module + "/store/redisstore"},
		{file: "server/x.go", imported: module + "/worker"},
		{file: "server/x.go", imported: module + "/internal/wire", ok: true},
		{file: "dispatcher/x.go", imported: module + "/internal/wire"},
		{file: "server/auth/x.go", imported: module + "/store", ok: true},
		{file: "worker/x.go", imported: "google.golang.org/grpc"},
		{file: "worker/serve.go", imported: "google.golang.org/grpc", ok: true},
		{file: "worker/pyproc/serve.go", imported: "google.golang.org/grpc"},
		{file: "worker/x_test.go", imported: "google.golang.org/grpc", ok: true},
		{file: "worker/pyproc/x.go", imported: module + "/worker", ok: true},
		{file: "worker/pyproc/x.go", imported: module + "/store"},
		{file: "clients/go/x.go", imported: module + "/task"},
		{file: "internal/clock/x.go", imported: module + "/task"},
		{file: "cmd/treadle/x.go", imported: module + "/store/redisstore", ok: true},
	} {
		r, covered := ruleFor(path.Dir(tt.file))
		if !covered {
			t.Errorf("no rule for %s", tt.file)
			continue
		}
		if err := r.check(tt.file, tt.imported); (err == nil) != tt.ok {
			t.Errorf("%s imports %s: %v, want allowed: %v", tt.file, tt.imported, err, tt.ok)
		}
	}
}

// check says why the file of that name must not import that path, or nil.
func (r rule) check(name, imported string) error {
	isTest := strings.HasSuffix(name, "_test.go")
	own, isOwn := strings.CutPrefix(imported, module+"/")
	first, _, _ := strings.Cut(imported, "/")
	switch {
	case isOwn:
		allowed := slices.Clone(r.imports)
		if isTest {
			allowed = append(allowed, r.tests...)
			// Tests of any part may use the shared suites and the code they test.
			allowed = append(allowed, "store/storetest")
		}
		if name == r.network {
			allowed = append(allowed, "link/linkpb")
		}
		if slices.Contains(allowed, "*") || opens(r.part, own) || under(path.Dir(name), own) {
			return nil
		}
		for _, a := range allowed {
			if opens(a, own) {
				return nil
			}
		}
		return fmt.Errorf("%s must not import %s (it may import %s)", r.part, own, orNone(allowed))
	case !strings.Contains(first, "."):
		// The standard library.
		for _, w := range r.without {
			if under(imported, w) && !isTest {
				return fmt.Errorf("%s must not import %s", r.part, imported)
			}
		}
		return nil
	default:
		allowed := slices.Clone(r.outside)
		if isTest {
			return nil // What tests need of others is no part of the product.
		}
		if name == r.network {
			allowed = append(allowed, "google.golang.org/grpc")
		}
		for _, a := range allowed {
			if a == "*" || under(imported, a) {
				return nil
			}
		}
		return fmt.Errorf("%s must not import %s (of others' code it may import %s)", r.part, imported, orNone(allowed))
	}
}

// opens reports whether a rule that allows directory a allows directory dir.
func opens(a, dir string) bool {
	if !under(dir, a) {
		return false
	}
	for _, closed := range ownGraphOnly {
		if under(dir, closed) && !under(a, closed) {
			return false
		}
	}
	return true
}

// ruleFor returns the rule with the longest part that holds dir.
func ruleFor(dir string) (best rule, ok bool) {
	for _, r := range rules {
		if under(dir, r.part) && len(r.part) > len(best.part) {
			best, ok = r, true
		}
	}
	return best, ok
}

// under reports whether dir is parent or lies below it.
func under(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }

func orNone(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

// goFiles returns the Go files of the main module: other modules of the repository (the
// tools) and test data are left out.
func goFiles(t *testing.T) []string {
	t.Helper()
	all := files(t)
	var modules []string
	for _, name := range all {
		if path.Base(name) == "go.mod" && path.Dir(name) != "." {
			modules = append(modules, path.Dir(name))
		}
	}
	return slices.DeleteFunc(all, func(name string) bool {
		return path.Ext(name) != ".go" || strings.Contains("/"+name, "/testdata/") ||
			slices.ContainsFunc(modules, func(m string) bool { return under(name, m) })
	})
}

func importsOf(t *testing.T, name string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, spec := range f.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, imported)
	}
	return list
}

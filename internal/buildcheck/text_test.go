package buildcheck

import (
	"bytes"
	"path"
	"strings"
	"testing"
)

// maxLines is how long a source file may be; generated code and tests may be longer.
const maxLines = 800

// sources are the endings of files that people write as code.
var sources = map[string]bool{
	".go": true, ".py": true, ".ts": true, ".js": true, ".proto": true, ".lua": true, ".sh": true,
}

// TestFileLength checks that no source file grows past what one can read in a sitting.
func TestFileLength(t *testing.T) {
	for _, name := range files(t) {
		if !sources[path.Ext(name)] || generated(name) || test(name) {
			continue
		}
		if n := bytes.Count(read(t, name), []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines; %d is the limit: split it by what it is about", name, n, maxLines)
		}
	}
}

// TestNames checks that no package is named after nothing in particular.
func TestNames(t *testing.T) {
	for _, name := range goFiles(t) {
		switch path.Base(path.Dir(name)) {
		case "util", "utils", "common", "helpers", "misc":
			t.Errorf("%s: name the package after what it holds", path.Dir(name))
		}
	}
}

// mention is a kind of text that does not belong into the repository.
type mention struct {
	what  string
	words []string
	// inside are the characters that, in front of a word, make it harmless.
	inside string
}

// foreign is what ties a file to one machine, or to where packages come from. The words
// are spelt so that this file does not contain them.
var foreign = []mention{
	{
		what:  "a path of one machine",
		words: []string{"/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/"},
		// A path inside another ("docs/work/", "$HOME/", "~/", "{id}/") is none of a machine.
		inside: "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.$~}/-",
	},
	{
		what: "the host of a package registry",
		words: []string{
			"registry.np" + "mjs.org", "registry.ya" + "rnpkg.com", "py" + "pi.org", "files.python" + "hosted.org",
			"proxy.go" + "lang.org", "sum.go" + "lang.org", "deb.deb" + "ian.org", "cra" + "tes.io",
		},
	},
}

// TestSpeaksOfTheProjectAlone checks that committed text names no machine and no registry:
// a clone must not depend on where it was made.
func TestSpeaksOfTheProjectAlone(t *testing.T) {
	for _, name := range files(t) {
		b := read(t, name)
		if bytes.IndexByte(b, 0) >= 0 {
			continue // Not text.
		}
		for _, f := range foreign {
			for _, at := range f.find(b) {
				line := 1 + bytes.Count(b[:at], []byte("\n"))
				text, _, _ := strings.Cut(string(b[at:min(len(b), at+40)]), "\n")
				t.Errorf("%s:%d: %s: %q", name, line, f.what, text)
			}
		}
	}
}

// TestForeignIsFound checks the check.
func TestForeignIsFound(t *testing.T) {
	for line, want := range map[string]bool{
		"see /wo" + "rk/main/task":                   true,
		`"/ro` + `ot/go"`:                            true,
		"resolved: https://registry.np" + "mjs.org/": true,
		"GOPROXY=https://proxy.go" + "lang.org":      true,
		"/worker and docs/wo" + "rk/x":               false,
		"/rootless":                                  false,
		"$HOME/x ~/x":                                false,
	} {
		got := false
		for _, f := range foreign {
			got = got || len(f.find([]byte(line))) > 0
		}
		if got != want {
			t.Errorf("%q: found %v, want %v", line, got, want)
		}
	}
}

// find returns where in the text the words stand.
func (m mention) find(text []byte) []int {
	var at []int
	for _, word := range m.words {
		for from := 0; ; {
			i := bytes.Index(text[from:], []byte(word))
			if i < 0 {
				break
			}
			i += from
			if i == 0 || !strings.ContainsRune(m.inside, rune(text[i-1])) {
				at = append(at, i)
			}
			from = i + len(word)
		}
	}
	return at
}

func generated(name string) bool {
	return under(name, "gen") || strings.Contains(name, "/src/gen/") || strings.Contains(name, "/_gen/")
}

func test(name string) bool {
	base := path.Base(name)
	return strings.HasSuffix(base, "_test.go") || strings.HasSuffix(base, ".test.ts") ||
		strings.HasPrefix(base, "test_") || strings.Contains(name, "/tests/") || strings.Contains(name, "/testdata/")
}
